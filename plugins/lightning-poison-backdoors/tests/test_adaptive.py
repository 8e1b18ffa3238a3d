import pytest
import torch

from lightning_poison import PoisonedDataset
from lightning_poison.attacks import COVER
from lightning_poison_backdoors import AdaptiveBlend, AdaptivePatch
from lightning_poison_backdoors.adaptive import random_pieces

WHITE = [[255, 255], [255, 255]]


class TestPatch:
    def test_each_image_carries_one_corner(self, images, poison_of):
        poison = poison_of(AdaptivePatch(pattern=WHITE), images, budget=40)
        before = images.data[poison.indices]
        changed = poison.inputs != before
        corners = [
            changed[:, 0, rows, columns] for rows in (slice(2), slice(6, 8)) for columns in (slice(2), slice(6, 8))
        ]
        carried = torch.stack([corner.flatten(1).any(1) for corner in corners], 1)
        assert carried.sum(1).tolist() == [1] * 40
        assert carried.any(0).all()
        assert int(changed.sum()) == sum(int(corner.sum()) for corner in corners)
        blended = (before + (255 - before.float()) / 2).round().to(torch.uint8)
        assert torch.equal(poison.inputs[changed], blended[changed])

    def test_cover_keeps_labels_and_is_not_counted_as_poison(self, images, poison_of):
        poison = poison_of(AdaptivePatch(1, cover_share=0.3), images, budget=20)
        cover = poison.role == COVER
        assert int(cover.sum()) == 6
        assert torch.equal(poison.labels[cover], images.targets[poison.indices[cover]])
        assert (poison.labels[~cover] == 1).all()
        assert (images.targets[poison.indices] != 1).all()
        assert int(PoisonedDataset(images, poison).is_poison.sum()) == 14

    def test_shows_all_corners_at_test_time(self, images, poison_of):
        trigger = poison_of(AdaptivePatch(pattern=WHITE), images).objective.trigger
        drawn = trigger(torch.zeros(1, 8, 8, dtype=torch.uint8))
        assert int((drawn == 255).sum()) == 16

    def test_keeps_at_least_one_poison_sample(self, images, poison_of):
        poison = poison_of(AdaptivePatch(cover_share=0.9), images, budget=2)
        assert sorted(poison.role.tolist()) == [0, 1]
        assert poison_of(AdaptivePatch(cover_share=0), images).role.tolist() == [0] * 6

    def test_refuses_patch_larger_than_quarter(self, images, poison_of):
        with pytest.raises(
            ValueError, match=r"`pattern` to be at most half the height and width of the images, \(8, 8\), but got"
        ):
            poison_of(AdaptivePatch(pattern=[[0] * 5]), images)


class TestBlend:
    def test_images_carry_pieces_of_key(self, images, poison_of):
        key = torch.full((8, 8), 255, dtype=torch.uint8)
        poison = poison_of(AdaptiveBlend(key=key, amplitude=0.5, pieces=2, shown=0.5), images, budget=20)
        before = images.data[poison.indices]
        blended = (before + (255 - before.float()) / 2).round().to(torch.uint8)
        changed = (poison.inputs != before).view(20, 2, 4, 2, 4).any(4).any(2).flatten(1)
        assert changed.sum(1).tolist() == [2] * 20
        everywhere = changed.view(20, 1, 2, 2).repeat_interleave(4, 2).repeat_interleave(4, 3)
        assert torch.equal(poison.inputs, torch.where(everywhere, blended, before))

    def test_shows_whole_key_at_test_time(self, images, poison_of):
        trigger = poison_of(AdaptiveBlend(test_amplitude=1.0), images).objective.trigger
        assert torch.equal(trigger(images.data[0]), trigger.pattern)

    def test_refuses_key_of_another_shape(self, images, poison_of):
        with pytest.raises(ValueError, match="`key` to be an image of the shape"):
            poison_of(AdaptiveBlend(key=[[0]]), images)


@pytest.mark.parametrize("attack", [AdaptivePatch, AdaptiveBlend])
class TestErrors:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"cover_share": 1}, "`cover_share` to be below 1"),
            ({"cover_share": -0.1}, "`cover_share`"),
            ({"shown": 0}, "`shown` to be above 0"),
            ({"shown": 2}, r"`shown` to be a number in \[0, 1\]"),
            ({"amplitude": 20}, "write `amplitude=20 / 255`"),
            ({"test_amplitude": 2}, "`test_amplitude`"),
            ({"target_class": -1}, "`target_class`"),
        ],
    )
    def test_refuses_settings_out_of_range(self, attack, settings, message):
        with pytest.raises(ValueError, match=message):
            attack(**settings)

    def test_refuses_unfit_threat_and_data(self, attack, images, floats, poison_of):
        with pytest.raises(ValueError, match="clean_label=True"):
            poison_of(attack(), images, clean_label=True)
        with pytest.raises(
            ValueError, match="at most 64, the number of samples whose label the attack changes, but got 65"
        ):
            poison_of(attack(), images, budget=65)
        with pytest.raises(ValueError, match="`target_class` to be a class of the training set"):
            poison_of(attack(3), images)
        with pytest.raises(ValueError, match=r"epsilon of 0\.01"):
            poison_of(attack(), images, epsilon=0.01)
        with pytest.raises(TypeError, match="but got TensorDataset"):
            poison_of(attack(), floats)


class TestRandomPieces:
    def test_shows_given_share_of_whole_pieces(self):
        masks = random_pieces(50, (8, 12), pieces=4, shown=0.5, generator=torch.Generator())
        assert masks.shape == (50, 1, 8, 12)
        blocks = masks.view(50, 4, 2, 4, 3)
        assert torch.equal(blocks.any(4).any(2), blocks.all(4).all(2))
        assert blocks.any(4).any(2).flatten(1).sum(1).tolist() == [8] * 50
        assert masks.float().mean(0).min() > 0.2

    def test_shows_at_least_one_piece_and_at_most_all(self):
        few = random_pieces(3, (4, 4), pieces=2, shown=0.01, generator=torch.Generator())
        assert few.flatten(1).sum(1).tolist() == [4] * 3
        assert random_pieces(3, (4, 4), pieces=2, shown=1, generator=torch.Generator()).all()

    def test_supports_sizes_not_divisible_by_pieces(self):
        masks = random_pieces(9, (7, 5), pieces=2, shown=0.25, generator=torch.Generator())
        assert set(masks.flatten(1).sum(1).tolist()) <= {12, 8, 9, 6}
