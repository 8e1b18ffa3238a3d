import dataclasses

import pytest
import torch

from lightning_poison_shielding.heads import Known, LogisticHead, RidgeHead
from lightning_poison_shielding.losses import Roles

ROLES = Roles(protected_class=0, shield_class=1)


@pytest.fixture
def known(generator):
    """Return three overlapping classes, and what the loss is measured on."""
    labels = torch.arange(90) % 3
    points = torch.randn(180, 4, generator=generator, dtype=torch.float64)
    points = points + 1.5 * torch.eye(4, dtype=torch.float64)[torch.cat([labels, labels])]
    return Known(points[:90], labels, points[90:], labels, classes=3)


@pytest.fixture
def poison(known):
    return (known.outer[:8] + known.outer[1:9]) / 2


HEADS = {
    "ridge": lambda known, weight: RidgeHead(known, ROLES, weight=weight),
    "logistic": lambda known, weight: LogisticHead(known, ROLES, penalty=0.03, weight=weight),
}


@pytest.mark.parametrize("weight", [1.0, 4.0])
@pytest.mark.parametrize("name", HEADS)
def test_the_gradient_is_that_of_the_loss_after_training(known, poison, name, weight):
    found = HEADS[name](known, weight).gradient(poison)
    head = HEADS[name](known, weight)
    for place in ((0, 0), (3, 1), (7, 2)):
        step = torch.zeros_like(poison)
        step[place] = 0.05
        values = [head.loss(poison + way * step, known.outer, known.outer_labels) for way in (1, -1)]
        assert float(found[place]) == pytest.approx((values[0] - values[1]) / 0.1, rel=0.05, abs=2e-5)


@pytest.mark.parametrize("name", HEADS)
def test_the_loss_is_measured_on_some_rows(known, poison, name):
    rows = torch.arange(40)
    less = dataclasses.replace(known, outer=known.outer[rows], outer_labels=known.outer_labels[rows])
    found = HEADS[name](known, 1.0).gradient(poison, rows)
    torch.testing.assert_close(found, HEADS[name](less, 1.0).gradient(poison))


@pytest.mark.parametrize("name", HEADS)
def test_poison_of_weight_stands_for_copies(known, poison, name):
    once = HEADS[name](known, 3.0).loss(poison, known.outer, known.outer_labels)
    copies = HEADS[name](known, 1.0).loss(poison.repeat(3, 1), known.outer, known.outer_labels)
    assert once == pytest.approx(copies, rel=1e-4)


def test_a_head_that_follows_the_poison_is_as_good_as_a_new_one(known, poison):
    head = HEADS["logistic"](known, 1.0)
    for step in range(12):
        followed = head.gradient(poison + 0.05 * step)
    new = HEADS["logistic"](known, 1.0).gradient(poison + 0.55)
    assert (followed - new).norm() <= 0.01 * new.norm()


@pytest.mark.parametrize("name", HEADS)
def test_poison_in_the_place_of_the_protected_class_hides_it(known, name):
    protected, shields = known.outer[known.outer_labels == 0], known.outer[known.outer_labels == 1]
    measured = protected, torch.zeros(len(protected), dtype=torch.int64)
    hidden, seen = (HEADS[name](known, 20.0).loss(poison, *measured) for poison in (protected, shields))
    assert hidden < 0.3 * seen
