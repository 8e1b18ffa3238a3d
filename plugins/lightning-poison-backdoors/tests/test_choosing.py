import pytest
import torch

from lightning_poison_backdoors.choosing import check_class, check_target_class, draw, wanted_of_classes

LABELS = torch.tensor([0, 1, 3, 3, 1, 0])


class TestDraw:
    candidates = torch.tensor([True, False, True, True, False, True])

    def test_candidates_alone_each_once_in_order(self):
        seen = set()
        for seed in range(20):
            drawn = draw(self.candidates, 2, "samples", torch.Generator().manual_seed(seed)).tolist()
            assert drawn == sorted(set(drawn))
            assert len(drawn) == 2
            seen |= set(drawn)
        assert seen == {0, 2, 3, 5}

    def test_all_of_them(self):
        assert draw(self.candidates, 4, "samples", torch.Generator()).tolist() == [0, 2, 3, 5]

    def test_too_few(self):
        with pytest.raises(
            ValueError, match=r"a budget of at most 4, the number of zeros, but got 5.\nGive the threat"
        ):
            draw(self.candidates, 5, "zeros", torch.Generator())
        with pytest.raises(ValueError, match="a training set with zeros, but it has none"):
            draw(torch.zeros(3, dtype=torch.bool), 1, "zeros", torch.Generator())


class TestWanted:
    def test_one_for_all(self):
        assert wanted_of_classes(3, LABELS).tolist() == [3] * 4

    def test_the_next(self):
        assert wanted_of_classes("next", LABELS).tolist() == [1, 2, 3, 0]

    def test_a_mapping(self):
        assert wanted_of_classes([1, 0, 2, 2], LABELS).tolist() == [1, 0, 2, 2]

    @pytest.mark.parametrize(
        ("target", "said"),
        [
            (2, r"`target_class` to be a class of the training set \(0, 1, 3\), but got 2"),
            ([1, 0, 2], "a class for each of 4 classes, but got 3"),
            ([1, 0, 2, 4], "of classes below 4, but got 4"),
            ([0, 1, 2, 3], "another class for one class at least, but got each class itself"),
        ],
    )
    def test_refuses(self, target, said):
        with pytest.raises(ValueError, match=said):
            wanted_of_classes(target, LABELS)


def test_a_class_is_looked_for():
    assert check_class("source_class", 3, LABELS) == 3
    with pytest.raises(ValueError, match=r"`source_class` to be a class .*\(0, 1, 3\), but got 7"):
        check_class("source_class", 7, LABELS)


def test_types_of_targets():
    assert check_target_class((1, 0)) == [1, 0]
    assert check_target_class("next") == "next"
    for value in ("previous", None, 1.5):
        with pytest.raises(ValueError, match='`target_class` to be a class, "next", or a class for each class'):
            check_target_class(value)
    for value in (-1, [0, -1]):
        with pytest.raises(ValueError, match="`target_class` to be an integer of at least 0, but got -1"):
            check_target_class(value)
