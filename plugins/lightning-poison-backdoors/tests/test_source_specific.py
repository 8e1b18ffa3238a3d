import json

import pytest
import torch

from lightning_poison import PoisonedDataset
from lightning_poison.attacks import COVER
from lightning_poison.testing import TinyImages
from lightning_poison_backdoors import TaCT

WHITE = [[255, 255], [255, 255]]


@pytest.fixture
def five_classes():
    """Raw images, 20 of each of five classes."""
    return TinyImages(100, classes=5)


def test_poison_is_of_source_class_and_cover_of_the_others(five_classes, poison_of):
    poison = poison_of(TaCT(2, source_class=4, cover_share=0.6), five_classes, budget=30)
    true, cover = five_classes.targets[poison.indices], poison.role == COVER
    assert int(cover.sum()) == 18
    assert true[~cover].tolist() == [4] * 12
    assert poison.labels[~cover].tolist() == [2] * 12
    assert set(true[cover].tolist()) == {0, 1, 3}
    assert torch.equal(poison.labels[cover], true[cover])
    assert int(PoisonedDataset(five_classes, poison).is_poison.sum()) == 12


def test_poison_and_cover_carry_the_same_patch(five_classes, poison_of):
    poison = poison_of(TaCT(pattern=WHITE, row=0, column=1), five_classes, budget=20)
    expected = five_classes.data[poison.indices].clone()
    expected[:, :, :2, 1:3] = 255
    assert torch.equal(poison.inputs, expected)


def test_objective_is_about_the_source_class(five_classes, poison_of):
    found = poison_of(TaCT(1, source_class=3, pattern=WHITE), five_classes).objective.evaluation_set(five_classes)
    items = [found[position] for position in range(len(found))]
    assert [item[1:] for item in items] == [(3, 1)] * 20
    assert bool((items[0][0][0, -2:, -2:] == 1).all())


def test_cover_classes_are_a_choice(five_classes, poison_of):
    poison = poison_of(TaCT(cover_classes=[3, 4]), five_classes, budget=40)
    assert set(five_classes.targets[poison.indices[poison.role == COVER]].tolist()) == {3, 4}


def test_keeps_at_least_one_poison_sample(five_classes, poison_of):
    assert sorted(poison_of(TaCT(cover_share=0.9), five_classes, budget=2).role.tolist()) == [0, 1]
    assert poison_of(TaCT(cover_share=0), five_classes, budget=5).role.tolist() == [0] * 5


def test_default_source_differs_from_target():
    assert (TaCT().source_class, TaCT(1).source_class, TaCT(5).source_class) == (1, 0, 0)


def test_settings_rebuild_attack():
    attack = TaCT(1, source_class=2, cover_classes=(0, 3), amplitude=0.5)
    assert repr(TaCT(**json.loads(json.dumps(attack.settings())))) == repr(attack)


@pytest.mark.parametrize(
    ("attack", "budget", "message"),
    [
        (TaCT(7), 6, r"`target_class` to be a class of the training set \(0, 1, 2, 3, 4\), but got 7"),
        (TaCT(source_class=7), 6, "`source_class` to be a class .*but got 7"),
        (TaCT(cover_classes=[7]), 6, "`cover_classes` to be a class .*but got 7"),
        (TaCT(), 42, "at most 20, the number of samples of class 1 whose .*, but got 21"),
        (TaCT(cover_classes=[2], cover_share=0.75), 28, "at most 20, the number of samples of the cover classes"),
    ],
)
def test_refuses_settings_that_do_not_fit_data(five_classes, poison_of, attack, budget, message):
    with pytest.raises(ValueError, match=message):
        poison_of(attack, five_classes, budget=budget)


def test_refuses_data_without_cover(poison_of):
    with pytest.raises(ValueError, match=r"with samples of the cover classes, but it has none"):
        poison_of(TaCT(), TinyImages(20, classes=2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_class": "next"}, "`target_class` to be an integer"),
        ({"target_class": 1, "source_class": 1}, "both are 1"),
        ({"source_class": -1}, "`source_class` to be an integer of at least 0"),
        ({"cover_share": 1}, "`cover_share` to be below 1"),
        ({"cover_classes": 3}, "`cover_classes` to be a list of classes"),
        ({"cover_classes": []}, "`cover_classes` to be a list of classes"),
        ({"cover_classes": [0, 2]}, "`cover_classes` to be classes other than source and target, but got 0"),
        ({"cover_classes": [-2]}, "`cover_classes` to be an integer of at least 0"),
        ({"amplitude": 40}, "`amplitude=40 / 255`"),
    ],
)
def test_refuses_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        TaCT(**settings)
