import torch

from lightning_poison_backdoors.covering import random_pieces


class TestPieces:
    def test_as_many_whole_pieces_as_asked_for(self):
        masks = random_pieces(50, (8, 12), pieces=4, shown=0.5, generator=torch.Generator())
        assert masks.shape == (50, 1, 8, 12)
        blocks = masks.view(50, 4, 2, 4, 3)
        assert torch.equal(blocks.any(4).any(2), blocks.all(4).all(2))
        assert blocks.any(4).any(2).flatten(1).sum(1).tolist() == [8] * 50
        assert masks.float().mean(0).min() > 0.2

    def test_one_at_least_and_all(self):
        few = random_pieces(3, (4, 4), pieces=2, shown=0.01, generator=torch.Generator())
        assert few.flatten(1).sum(1).tolist() == [4] * 3
        assert random_pieces(3, (4, 4), pieces=2, shown=1, generator=torch.Generator()).all()

    def test_sizes_that_pieces_do_not_divide(self):
        masks = random_pieces(9, (7, 5), pieces=2, shown=0.25, generator=torch.Generator())
        assert set(masks.flatten(1).sum(1).tolist()) <= {12, 8, 9, 6}
