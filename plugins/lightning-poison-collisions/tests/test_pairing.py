import pytest
import torch

from lightning_poison_collisions.pairing import draw_pool, draw_targets, group_sizes, pick_bases

LABELS = torch.arange(30) % 3


@pytest.mark.parametrize(("budget", "each"), [(1, 1), (10, 4), (3, 4), (12, 4), (7, 1)])
def test_the_whole_budget_is_used_and_no_target_gets_fewer(budget, each):
    sizes = group_sizes(budget, each)
    assert sum(sizes) == budget
    assert min(sizes) >= min(each, budget)
    assert max(sizes) - min(sizes) <= 1


class TestDrawTargets:
    def test_they_are_of_the_class_asked_for_and_distinct(self, generator):
        drawn = draw_targets(LABELS, 10, source_class=2, base_class=None, generator=generator)
        assert set(LABELS[drawn].tolist()) == {2}
        assert len(drawn.unique()) == 10

    def test_they_are_not_of_the_bases_class(self, generator):
        drawn = draw_targets(LABELS, 20, source_class=None, base_class=1, generator=generator)
        assert set(LABELS[drawn].tolist()) == {0, 2}

    def test_too_few(self, generator):
        with pytest.raises(ValueError, match="at least 11 samples of class 2, one a target, but got 10"):
            draw_targets(LABELS, 11, source_class=2, base_class=None, generator=generator)
        with pytest.raises(ValueError, match="of a class other than 1, one a target, but got 20"):
            draw_targets(LABELS, 21, source_class=None, base_class=1, generator=generator)
        with pytest.raises(ValueError, match="at least 31 samples, one a target, but got 30"):
            draw_targets(LABELS, 31, source_class=None, base_class=None, generator=generator)


class TestDrawPool:
    def test_it_holds_one_class_and_no_more_than_asked_for(self, generator):
        assert LABELS[draw_pool(LABELS, 4, base_class=1, generator=generator)].tolist() == [1] * 4

    def test_an_absent_class_is_named_with_those_there_are(self, generator):
        with pytest.raises(ValueError, match=r"a class of the training set \(0, 1, 2\), but got 7"):
            draw_pool(LABELS, 4, base_class=7, generator=generator)


class TestPickBases:
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 2])

    def test_the_cheapest_of_the_class_of_the_cheapest(self):
        cost = torch.tensor([5.0, 3.0, 9.0, 4.0, 8.0, 7.0, 6.0])
        picked, wanted = pick_bases([cost], [2], self.labels, torch.tensor([2]), once=False)
        assert picked[0].tolist() == [1, 0]
        assert wanted.tolist() == [0]

    def test_never_the_targets_own_class(self):
        picked, wanted = pick_bases([torch.arange(7.0)], [2], self.labels, torch.tensor([0]), once=False)
        assert picked[0].tolist() == [3, 4]
        assert wanted.tolist() == [1]

    def test_a_class_with_too_few_is_passed_over(self):
        _, wanted = pick_bases([-torch.arange(7.0)], [3], self.labels, torch.tensor([0]), once=False)
        assert wanted.tolist() == [1]

    def test_a_base_is_used_once_where_it_is_replaced(self):
        costs, targets = [torch.arange(7.0)] * 2, torch.tensor([2, 2])
        shared, _ = pick_bases(costs, [2, 2], self.labels, targets, once=False)
        own, _ = pick_bases(costs, [2, 2], self.labels, targets, once=True)
        assert torch.equal(shared[0], shared[1])
        assert not set(own[0].tolist()) & set(own[1].tolist())

    def test_too_few(self):
        with pytest.raises(ValueError, match="Expected 4 bases of one class for each target, but got at most 3 among"):
            pick_bases([torch.arange(7.0)], [4], self.labels, torch.tensor([2]), once=False)
