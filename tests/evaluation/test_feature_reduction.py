import pytest
import torch
from torch.utils.data import TensorDataset

from lightning_poison.attacks.objectives import AvailabilityObjective
from lightning_poison.attacks.poison import Poison
from lightning_poison.attacks.poisoned_dataset import PoisonedDataset
from lightning_poison.evaluation.feature_map import KINDS
from lightning_poison.evaluation.feature_reduction import feature_map_of

CENTERS = torch.eye(4) * 50
"""Means of clean classes 0 to 2; poison of class 1 is at the fourth."""


@pytest.fixture
def poisoned():
    labels = torch.arange(300) % 3
    inputs = CENTERS[labels] + torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    clean = TensorDataset(inputs, labels)
    chosen = torch.arange(0, 90, 3)
    changed = CENTERS[3] + torch.randn(30, 4, generator=torch.Generator().manual_seed(1))
    poison = Poison(
        chosen, torch.ones(30).long(), AvailabilityObjective(), inputs=changed, domain="sample", attack="shift"
    )
    return PoisonedDataset(clean, poison)


def inputs_of(dataset):
    return torch.stack([dataset[index][0] for index in range(len(dataset))])


def items(count, center):
    return [(CENTERS[center], 2, 1) for _ in range(count)]


def map_of(poisoned, features=inputs_of, count=20, seed=0):
    true, wanted = torch.full((count,), 2), torch.ones(count).long()
    return feature_map_of(features, poisoned, items(count, 3), true, wanted, seed=seed)


def test_poison_and_attacked_items_are_neighbors_in_the_map(poisoned):
    found = map_of(poisoned)
    assert len(found) == 30 + 20 + 160 + 70  # at most 160 with a label of the poison or of the attacked items
    points = torch.tensor([found.xs, found.ys]).T.double()
    assert 0 <= float(points.min()) <= float(points.max()) <= 1
    groups = torch.tensor(
        [3 if kind != "clean" else int(label) for kind, label in zip(found.kinds, found.labels, strict=True)]
    )
    distances = torch.cdist(points, points).fill_diagonal_(torch.inf)
    assert float((groups[distances.argmin(1)] == groups).double().mean()) > 0.97
    assert set(found.kinds) == set(KINDS)
    assert {label for label, kind in zip(found.labels, found.kinds, strict=True) if kind == "attacked"} == {"2"}


def test_same_seed_same_map(poisoned):
    assert map_of(poisoned) == map_of(poisoned)
    assert map_of(poisoned) != map_of(poisoned, seed=1)


@pytest.mark.parametrize(
    "features",
    [
        lambda data: torch.full((len(data), 2), torch.nan),
        lambda data: torch.zeros(len(data)),
        lambda data: torch.zeros(1, 2),
    ],
)
def test_features_of_another_form_are_refused(poisoned, features):
    with pytest.raises(ValueError, match="the features of the model"):
        map_of(poisoned, features)


def test_constant_features_and_no_attacked_items(poisoned):
    found = map_of(poisoned, lambda data: torch.cat([inputs_of(data), torch.ones(len(data), 1)], 1), count=0)
    assert set(found.kinds) == {"clean", "poison"}


def test_few_samples_have_no_map():
    clean = TensorDataset(torch.zeros(6, 4), torch.arange(6) % 2)
    poison = Poison(torch.tensor([0]), torch.tensor([1]), AvailabilityObjective(), attack="flip")
    assert feature_map_of(inputs_of, PoisonedDataset(clean, poison), [], *torch.zeros(2, 0).long(), seed=0) is None
