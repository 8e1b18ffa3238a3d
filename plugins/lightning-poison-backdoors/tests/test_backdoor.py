import json

import pytest
import torch

from lightning_poison_backdoors import AdaptiveBlend, BadNets, Blended
from lightning_poison_backdoors.backdoor import check_target_class, class_map, draw

LABELS = torch.tensor([0, 1, 3, 3, 1, 0])


class TestDraw:
    candidates = torch.tensor([True, False, True, True, False, True])

    def test_draws_distinct_candidates_in_order(self):
        drawn_ever = set()
        for seed in range(20):
            drawn = draw(self.candidates, 2, "samples", torch.Generator().manual_seed(seed)).tolist()
            assert drawn == sorted(set(drawn))
            assert len(drawn) == 2
            drawn_ever |= set(drawn)
        assert drawn_ever == {0, 2, 3, 5}

    def test_draws_all_candidates(self):
        assert draw(self.candidates, 4, "samples", torch.Generator()).tolist() == [0, 2, 3, 5]

    def test_refuses_too_few_candidates(self):
        with pytest.raises(ValueError, match=r"`budget` to be at most 4, the number of zeros, but got 5\.\nLower"):
            draw(self.candidates, 5, "zeros", torch.Generator())
        with pytest.raises(ValueError, match="a training set with zeros, but it has none"):
            draw(torch.zeros(3, dtype=torch.bool), 1, "zeros", torch.Generator())


class TestClassMap:
    def test_maps_all_classes_to_one(self):
        assert class_map(3, LABELS).tolist() == [3] * 4

    def test_maps_each_class_to_next(self):
        assert class_map("next", LABELS).tolist() == [1, 2, 3, 0]

    def test_accepts_list(self):
        assert class_map([1, 0, 2, 2], LABELS).tolist() == [1, 0, 2, 2]

    @pytest.mark.parametrize(
        ("target_class", "message"),
        [
            (2, r"`target_class` to be a class of the training set \(0, 1, 3\), but got 2"),
            ([1, 0, 2], "a list of 4 classes, one for each, but got 3"),
            ([1, 0, 2, 4], "a list of classes below 4, but got 4"),
            ([0, 1, 2, 3], "a list that changes at least one class, but got the identity"),
        ],
    )
    def test_refuses_invalid_targets(self, target_class, message):
        with pytest.raises(ValueError, match=message):
            class_map(target_class, LABELS)


def test_check_target_class_accepts_class_next_and_sequence():
    assert check_target_class((1, 0)) == [1, 0]
    assert check_target_class("next") == "next"
    for value in ("previous", None, 1.5):
        with pytest.raises(ValueError, match='`target_class` to be a class, "next", or a class for each class'):
            check_target_class(value)
    for value in (-1, [0, -1]):
        with pytest.raises(ValueError, match="`target_class` to be an integer of at least 0, but got -1"):
            check_target_class(value)


@pytest.mark.parametrize("attack", [BadNets("next"), Blended(key=[[1, 2]]), AdaptiveBlend()], ids=repr)
def test_settings_rebuild_attack(attack):
    rebuilt = type(attack)(**json.loads(json.dumps(attack.settings())))
    for name, value in vars(attack).items():
        other = getattr(rebuilt, name)
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other


def test_repr_shows_shape_of_patterns():
    assert repr(Blended(key=[[1, 2]])).startswith("Blended(target_class=0, source_class=None, key=(1, 1, 2), ")
    assert "key=None" in repr(Blended())
