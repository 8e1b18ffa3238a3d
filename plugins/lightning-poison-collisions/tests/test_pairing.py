import pytest
import torch

from lightning_poison_collisions.pairing import (
    distances_to_each,
    draw_pool,
    draw_targets,
    group_sizes,
    pick_bases,
    whole_groups,
)

LABELS = torch.arange(30) % 3


@pytest.mark.parametrize(("budget", "each"), [(1, 1), (10, 4), (3, 4), (12, 4), (7, 1)])
def test_group_sizes_use_whole_budget_evenly(budget, each):
    sizes = group_sizes(budget, each)
    assert sum(sizes) == budget
    assert min(sizes) >= min(each, budget)
    assert max(sizes) - min(sizes) <= 1


class TestDrawTargets:
    def test_draws_distinct_samples_of_source_class(self, generator):
        drawn = draw_targets(LABELS, 10, source_class=2, base_class=None, generator=generator)
        assert set(LABELS[drawn].tolist()) == {2}
        assert len(drawn.unique()) == 10

    def test_excludes_base_class(self, generator):
        drawn = draw_targets(LABELS, 20, source_class=None, base_class=1, generator=generator)
        assert set(LABELS[drawn].tolist()) == {0, 2}

    def test_refuses_too_few_samples(self, generator):
        with pytest.raises(ValueError, match="at least 11 samples of class 2, one for each target, but got 10"):
            draw_targets(LABELS, 11, source_class=2, base_class=None, generator=generator)
        with pytest.raises(ValueError, match="of a class other than 1, one for each target, but got 20"):
            draw_targets(LABELS, 21, source_class=None, base_class=1, generator=generator)
        with pytest.raises(ValueError, match="at least 31 samples, one for each target, but got 30"):
            draw_targets(LABELS, 31, source_class=None, base_class=None, generator=generator)


class TestDrawPool:
    def test_draws_at_most_size_samples_of_base_class(self, generator):
        assert LABELS[draw_pool(LABELS, 4, base_class=1, generator=generator)].tolist() == [1] * 4

    def test_refuses_absent_class(self, generator):
        with pytest.raises(ValueError, match=r"a class of the training set \(0, 1, 2\), but got 7"):
            draw_pool(LABELS, 4, base_class=7, generator=generator)


class TestPickBases:
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 2])

    def test_picks_cheapest_samples_of_cheapest_class(self):
        cost = torch.tensor([5.0, 3.0, 9.0, 4.0, 8.0, 7.0, 6.0])
        picked, wanted = pick_bases([cost], [2], self.labels, torch.tensor([2]), once=False)
        assert picked[0].tolist() == [1, 0]
        assert wanted.tolist() == [0]

    def test_excludes_class_of_target(self):
        picked, wanted = pick_bases([torch.arange(7.0)], [2], self.labels, torch.tensor([0]), once=False)
        assert picked[0].tolist() == [3, 4]
        assert wanted.tolist() == [1]

    def test_skips_class_with_too_few_samples(self):
        _, wanted = pick_bases([-torch.arange(7.0)], [3], self.labels, torch.tensor([0]), once=False)
        assert wanted.tolist() == [1]

    def test_uses_each_base_once_if_replaced(self):
        costs, targets = [torch.arange(7.0)] * 2, torch.tensor([2, 2])
        shared, _ = pick_bases(costs, [2, 2], self.labels, targets, once=False)
        own, _ = pick_bases(costs, [2, 2], self.labels, targets, once=True)
        assert torch.equal(shared[0], shared[1])
        assert not set(own[0].tolist()) & set(own[1].tolist())

    def test_refuses_too_few_samples(self):
        with pytest.raises(ValueError, match="Expected 4 bases of one class for each target, but got at most 3 among"):
            pick_bases([torch.arange(7.0)], [4], self.labels, torch.tensor([2]), once=False)


class TestWholeGroups:
    @pytest.mark.parametrize("limit", [1, 2, 3, 5, 100])
    def test_covers_all_positions_without_splitting_groups(self, limit):
        sizes = [3, 1, 2, 4]
        target_of = torch.arange(4).repeat_interleave(torch.tensor(sizes))
        blocks = whole_groups(sizes, limit)
        assert torch.cat(blocks).tolist() == list(range(10))
        targets_of_blocks = [set(target_of[block].tolist()) for block in blocks]
        assert sum(map(len, targets_of_blocks)) == 4
        assert all(
            len(block) <= limit or len(targets) == 1 for block, targets in zip(blocks, targets_of_blocks, strict=True)
        )

    def test_fills_blocks(self):
        assert [len(block) for block in whole_groups([2, 2, 2], 4)] == [4, 2]


def test_distances_of_maps_contribute_equally():
    targets = [torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0, 0.0], [0.0, 0.0]])]
    candidates = [torch.tensor([[1.0], [3.0]]), torch.tensor([[100.0, 0.0], [0.0, 300.0]])]
    first, second = distances_to_each(targets, candidates)
    torch.testing.assert_close(first, torch.tensor([0.4, 3.6]))
    torch.testing.assert_close(second, torch.tensor([0.2, 3.8]))
