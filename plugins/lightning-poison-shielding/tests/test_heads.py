import dataclasses

import pytest
import torch

from lightning_poison_shielding.heads import HeadData, LogisticHead, RidgeHead
from lightning_poison_shielding.losses import ShieldingGoal

GOAL = ShieldingGoal(protected_class=0, shield_class=1)


@pytest.fixture
def data(generator):
    """Return three overlapping classes and an outer set."""
    labels = torch.arange(90) % 3
    points = torch.randn(180, 4, generator=generator, dtype=torch.float64)
    points = points + 1.5 * torch.eye(4, dtype=torch.float64)[torch.cat([labels, labels])]
    return HeadData(points[:90], labels, points[90:], labels, classes=3)


@pytest.fixture
def poison(data):
    return (data.outer[:8] + data.outer[1:9]) / 2


HEADS = {
    "ridge": lambda data, weight: RidgeHead(data, GOAL, weight=weight),
    "logistic": lambda data, weight: LogisticHead(data, GOAL, penalty=0.03, weight=weight),
}


@pytest.mark.parametrize("weight", [1.0, 4.0])
@pytest.mark.parametrize("name", HEADS)
def test_gradient_matches_loss_after_training(data, poison, name, weight):
    found = HEADS[name](data, weight).gradient(poison)
    head = HEADS[name](data, weight)
    for index in ((0, 0), (3, 1), (7, 2)):
        step = torch.zeros_like(poison)
        step[index] = 0.05
        values = [head.loss(poison + way * step, data.outer, data.outer_labels) for way in (1, -1)]
        assert float(found[index]) == pytest.approx((values[0] - values[1]) / 0.1, rel=0.05, abs=2e-5)


@pytest.mark.parametrize("name", HEADS)
def test_gradient_uses_given_rows(data, poison, name):
    rows = torch.arange(40)
    subset = dataclasses.replace(data, outer=data.outer[rows], outer_labels=data.outer_labels[rows])
    found = HEADS[name](data, 1.0).gradient(poison, rows)
    torch.testing.assert_close(found, HEADS[name](subset, 1.0).gradient(poison))


@pytest.mark.parametrize("name", HEADS)
def test_weighted_poison_is_equivalent_to_copies(data, poison, name):
    weighted = HEADS[name](data, 3.0).loss(poison, data.outer, data.outer_labels)
    copies = HEADS[name](data, 1.0).loss(poison.repeat(3, 1), data.outer, data.outer_labels)
    assert weighted == pytest.approx(copies, rel=1e-4)


def test_warm_started_head_is_as_accurate_as_new_head(data, poison):
    head = HEADS["logistic"](data, 1.0)
    for step in range(12):
        warm_started = head.gradient(poison + 0.05 * step)
    new = HEADS["logistic"](data, 1.0).gradient(poison + 0.55)
    assert (warm_started - new).norm() <= 0.01 * new.norm()


@pytest.mark.parametrize("name", HEADS)
def test_poison_at_protected_features_hides_protected_class(data, name):
    protected, shields = data.outer[data.outer_labels == 0], data.outer[data.outer_labels == 1]
    outer = protected, torch.zeros(len(protected), dtype=torch.int64)
    hidden, visible = (HEADS[name](data, 20.0).loss(poison, *outer) for poison in (protected, shields))
    assert hidden < 0.3 * visible
