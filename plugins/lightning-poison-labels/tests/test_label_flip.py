import pytest
import torch
from torch.utils.data import TensorDataset

from lightning_poison import Threat, available_attacks, craft, get_attack
from lightning_poison.attacks import AvailabilityObjective, ProtectedClassObjective
from lightning_poison.testing import check_attack
from lightning_poison_labels import LabelFlip

LABELS = torch.arange(200) % 10


@pytest.fixture
def dataset():
    return TensorDataset(torch.zeros(200, 1, 2, 2), LABELS)


def flip(dataset, attack, budget=20, seed=0, **limits):
    return craft(attack, dataset, Threat(budget, **limits), generator=torch.Generator().manual_seed(seed))


def test_it_is_found_through_its_entry_point():
    (offer,) = [offer for offer in available_attacks() if offer.name == "label-flip"]
    assert (offer.source.plugin, offer.source.distribution) == ("labels", "lightning-poison-labels")
    assert offer.summary.startswith("Flips labels")
    assert isinstance(get_attack("label-flip", target_class=3), LabelFlip)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"target_class": 1},
        {"source_class": 0, "target_class": 2},
        {"indices": range(6)},
        {"pairs": "next"},
        {"pairs": [(0, 2), (1, 0)]},
    ],
)
def test_it_keeps_the_contract(settings):
    check_attack(LabelFlip(**settings))


def test_uniform_flips_change_every_chosen_label_to_any_other(dataset):
    poison = flip(dataset, LabelFlip(), budget=200)
    assert len(poison) == 200
    assert poison.inputs is None
    assert (poison.labels != LABELS[poison.indices]).all()
    assert set(((poison.labels - LABELS[poison.indices]) % 10).tolist()) == set(range(1, 10))
    assert isinstance(poison.objective, AvailabilityObjective)


def test_the_budget_says_how_many(dataset):
    assert len(flip(dataset, LabelFlip(), budget=7)) == 7


def test_all_to_one_class(dataset):
    poison = flip(dataset, LabelFlip(target_class=4), budget=180)
    assert len(poison) == 180
    assert (poison.labels == 4).all()
    assert isinstance(poison.objective, AvailabilityObjective)


def test_one_pair(dataset):
    poison = flip(dataset, LabelFlip(4, 9), budget=5)
    assert (LABELS[poison.indices] == 4).all()
    assert poison.labels.tolist() == [9] * 5
    objective = poison.objective
    assert isinstance(objective, ProtectedClassObjective)
    assert (objective.protected_class, objective.target_class) == (4, 9)


def test_one_class_to_any_other(dataset):
    poison = flip(dataset, LabelFlip(source_class=4))
    assert (poison.labels != 4).all()
    assert poison.objective.settings() == {"protected_class": 4, "target_class": -1}


def test_each_class_to_the_next(dataset):
    poison = flip(dataset, LabelFlip(pairs="next"), budget=200)
    assert len(poison) == 200
    assert torch.equal(poison.labels, (LABELS[poison.indices] + 1) % 10)
    assert isinstance(poison.objective, AvailabilityObjective)


def test_given_pairs(dataset):
    poison = flip(dataset, LabelFlip(pairs=[(4, 9), (9, 4), (7, 1)]), budget=60)
    assert LABELS[poison.indices].unique().tolist() == [4, 7, 9]
    assert len(poison) == 60
    partner = {4: 9, 9: 4, 7: 1}
    assert poison.labels.tolist() == [partner[label] for label in LABELS[poison.indices].tolist()]


def test_given_pairs_at_given_places(dataset):
    poison = flip(dataset, LabelFlip(pairs=[(4, 9)], indices=[3, 4, 14, 19]))
    assert poison.indices.tolist() == [4, 14]
    assert poison.settings["pairs"] == [(4, 9)]


def test_two_in_a_hundred(dataset):
    threat = Threat.of_fraction(dataset, 0.02)
    assert len(craft(LabelFlip(), dataset, threat, generator=torch.Generator().manual_seed(0))) == 4


def test_given_places(dataset):
    poison = flip(dataset, LabelFlip(indices=[5, 8, 13]))
    assert poison.indices.tolist() == [5, 8, 13]
    assert poison.settings["indices"] == [5, 8, 13]
    assert flip(dataset, LabelFlip(indices=[5, 8, 13, 8]), budget=3).indices.tolist() == [5, 8, 13]


@pytest.mark.parametrize(
    ("attack", "able"),
    [
        (LabelFlip(source_class=1), 20),
        (LabelFlip(target_class=4), 180),
        (LabelFlip(pairs=[(4, 9), (9, 4)]), 40),
        (LabelFlip(), 200),
    ],
)
def test_a_budget_that_cannot_be_spent(dataset, attack, able):
    with pytest.raises(ValueError, match=rf"`budget` to be at most {able}, .* got 300\.\nLower it to {able}, or"):
        flip(dataset, attack, budget=300)
    assert len(flip(dataset, attack, budget=able)) == able


def test_more_given_places_than_the_budget(dataset):
    with pytest.raises(ValueError, match=r"`indices` to be at most 20 samples.*got 50\.\n.*raise the budget to 50"):
        flip(dataset, LabelFlip(indices=range(50)), budget=20)
    assert flip(dataset, LabelFlip(indices=range(50)), budget=50).indices.tolist() == list(range(50))


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        (LabelFlip(source_class=11), "labels can be flipped"),
        (LabelFlip(target_class=4, indices=[4, 14]), "labels can be flipped"),
        (LabelFlip(indices=[3, 200]), r"data set of 200, but got \[3, 200\]"),
        (LabelFlip(pairs=[(4, 4)]), "labels can be flipped"),
        (LabelFlip(pairs=[(4, 10)]), r"`pairs` of the data set's 10 classes, but got \(4, 10\)"),
        (LabelFlip(pairs=[(-1, 3)]), r"`pairs` of the data set's 10 classes, but got \(-1, 3\)"),
    ],
)
def test_nothing_to_flip(dataset, attack, said):
    with pytest.raises(ValueError, match=said):
        flip(dataset, attack)


def test_no_given_places(dataset):
    with pytest.raises(ValueError, match="labels can be flipped"):
        flip(dataset, LabelFlip(indices=[]))


@pytest.mark.parametrize("attack", [LabelFlip(), LabelFlip(pairs="next"), LabelFlip(target_class=0)])
def test_one_class_alone(attack):
    with pytest.raises(ValueError, match="labels can be flipped"):
        flip(TensorDataset(torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64)), attack)


def test_clean_labels_are_not_for_it(dataset):
    with pytest.raises(ValueError, match="clean_label=True"):
        flip(dataset, LabelFlip(), clean_label=True)


def test_a_class_is_not_flipped_to_itself():
    with pytest.raises(ValueError, match="both are 3"):
        LabelFlip(3, 3)


@pytest.mark.parametrize("classes", [{"source_class": 1}, {"target_class": 1}])
def test_pairs_and_classes_say_the_same_thing_twice(classes):
    with pytest.raises(ValueError, match="either `pairs` or"):
        LabelFlip(pairs="next", **classes)
