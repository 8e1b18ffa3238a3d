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


def flip(dataset, attack, budget=20, seed=0, **threat_settings):
    return craft(attack, dataset, Threat(budget, **threat_settings), generator=torch.Generator().manual_seed(seed))


def test_entry_point_offers_attack():
    (offer,) = [offer for offer in available_attacks() if offer.name == "label-flip"]
    assert (offer.source.plugin, offer.source.distribution) == ("labels", "lightning-poison-labels")
    assert offer.summary.startswith("Flips labels")
    assert isinstance(get_attack("label-flip", target_class=3), LabelFlip)


@pytest.mark.slow
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
def test_satisfies_attack_contract(settings):
    check_attack(LabelFlip(**settings))


def test_uniform_flips_draw_any_other_class(dataset):
    poison = flip(dataset, LabelFlip(), budget=200)
    assert len(poison) == 200
    assert poison.inputs is None
    assert (poison.labels != LABELS[poison.indices]).all()
    assert set(((poison.labels - LABELS[poison.indices]) % 10).tolist()) == set(range(1, 10))
    assert isinstance(poison.objective, AvailabilityObjective)


def test_flips_as_many_labels_as_budget(dataset):
    assert len(flip(dataset, LabelFlip(), budget=7)) == 7


def test_flips_all_classes_to_target_class(dataset):
    poison = flip(dataset, LabelFlip(target_class=4), budget=180)
    assert len(poison) == 180
    assert (poison.labels == 4).all()
    assert isinstance(poison.objective, AvailabilityObjective)


def test_flips_source_class_to_target_class(dataset):
    poison = flip(dataset, LabelFlip(4, 9), budget=5)
    assert (LABELS[poison.indices] == 4).all()
    assert poison.labels.tolist() == [9] * 5
    objective = poison.objective
    assert isinstance(objective, ProtectedClassObjective)
    assert (objective.protected_class, objective.target_class) == (4, 9)


def test_flips_source_class_to_any_other_class(dataset):
    poison = flip(dataset, LabelFlip(source_class=4))
    assert (poison.labels != 4).all()
    assert poison.objective.settings() == {"protected_class": 4, "target_class": -1}


def test_flips_each_class_to_next(dataset):
    poison = flip(dataset, LabelFlip(pairs="next"), budget=200)
    assert len(poison) == 200
    assert torch.equal(poison.labels, (LABELS[poison.indices] + 1) % 10)
    assert isinstance(poison.objective, AvailabilityObjective)


def test_flips_given_pairs(dataset):
    poison = flip(dataset, LabelFlip(pairs=[(4, 9), (9, 4), (7, 1)]), budget=60)
    assert LABELS[poison.indices].unique().tolist() == [4, 7, 9]
    assert len(poison) == 60
    new_label = {4: 9, 9: 4, 7: 1}
    assert poison.labels.tolist() == [new_label[label] for label in LABELS[poison.indices].tolist()]


def test_flips_given_pairs_at_given_indices(dataset):
    poison = flip(dataset, LabelFlip(pairs=[(4, 9)], indices=[3, 4, 14, 19]))
    assert poison.indices.tolist() == [4, 14]
    assert poison.settings["pairs"] == [(4, 9)]


def test_flips_two_percent(dataset):
    threat = Threat.of_fraction(dataset, 0.02)
    assert len(craft(LabelFlip(), dataset, threat, generator=torch.Generator().manual_seed(0))) == 4


def test_flips_given_indices(dataset):
    poison = flip(dataset, LabelFlip(indices=[5, 8, 13]))
    assert poison.indices.tolist() == [5, 8, 13]
    assert poison.settings["indices"] == [5, 8, 13]
    assert flip(dataset, LabelFlip(indices=[5, 8, 13, 8]), budget=3).indices.tolist() == [5, 8, 13]


@pytest.mark.parametrize(
    ("attack", "eligible"),
    [
        (LabelFlip(source_class=1), 20),
        (LabelFlip(target_class=4), 180),
        (LabelFlip(pairs=[(4, 9), (9, 4)]), 40),
        (LabelFlip(), 200),
    ],
)
def test_refuses_budget_above_eligible_samples(dataset, attack, eligible):
    with pytest.raises(
        ValueError, match=rf"`budget` to be at most {eligible}, .* got 300\.\nLower it to {eligible}, or"
    ):
        flip(dataset, attack, budget=300)
    assert len(flip(dataset, attack, budget=eligible)) == eligible


def test_refuses_more_indices_than_budget(dataset):
    with pytest.raises(ValueError, match=r"`indices` to be at most 20 samples.*got 50\.\n.*raise the budget to 50"):
        flip(dataset, LabelFlip(indices=range(50)), budget=20)
    assert flip(dataset, LabelFlip(indices=range(50)), budget=50).indices.tolist() == list(range(50))


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (LabelFlip(source_class=11), "labels can be flipped"),
        (LabelFlip(target_class=4, indices=[4, 14]), "labels can be flipped"),
        (LabelFlip(indices=[3, 200]), r"`indices` in \[0, 199\], but got \[3, 200\]"),
        (LabelFlip(pairs=[(4, 4)]), "labels can be flipped"),
        (LabelFlip(pairs=[(4, 10)]), r"`pairs` of classes in \[0, 9\], but got \(4, 10\)"),
        (LabelFlip(pairs=[(-1, 3)]), r"`pairs` of classes in \[0, 9\], but got \(-1, 3\)"),
    ],
)
def test_refuses_settings_without_eligible_samples(dataset, attack, message):
    with pytest.raises(ValueError, match=message):
        flip(dataset, attack)


def test_refuses_empty_indices(dataset):
    with pytest.raises(ValueError, match="labels can be flipped"):
        flip(dataset, LabelFlip(indices=[]))


@pytest.mark.parametrize("attack", [LabelFlip(), LabelFlip(pairs="next"), LabelFlip(target_class=0)])
def test_refuses_dataset_of_one_class(attack):
    with pytest.raises(ValueError, match="labels can be flipped"):
        flip(TensorDataset(torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64)), attack)


def test_refuses_clean_label_threat(dataset):
    with pytest.raises(ValueError, match="clean_label=True"):
        flip(dataset, LabelFlip(), clean_label=True)


def test_refuses_equal_source_and_target_class():
    with pytest.raises(ValueError, match="both are 3"):
        LabelFlip(3, 3)


@pytest.mark.parametrize("classes", [{"source_class": 1}, {"target_class": 1}])
def test_refuses_pairs_together_with_classes(classes):
    with pytest.raises(ValueError, match="either `pairs` or"):
        LabelFlip(pairs="next", **classes)
