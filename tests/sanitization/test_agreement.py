import math

import pytest
import torch
from sklearn.metrics import cohen_kappa_score

from lightning_poison.errors import InconclusiveError
from lightning_poison.sanitization.agreement import MIN_AGREEMENT, check_agreement, cohen_kappa


def predictions(labels, wrong):
    """Return the labels with a share of wrong ones."""
    return torch.where(torch.arange(len(labels)) < wrong * len(labels), (labels + 1) % 10, labels)


def test_limit_is_a_kappa():
    """Of ten balanced classes, κ is (a - 0.1) / 0.9 at accuracy a, so that 0.3 is an accuracy of 37 %."""
    labels = torch.arange(1000) % 10
    check_agreement(labels, predictions(labels, 0.62))
    with pytest.raises(InconclusiveError, match=rf"at least {MIN_AGREEMENT}, but got 0.29: the scorer has not learned"):
        check_agreement(labels, predictions(labels, 0.64))


def test_largest_class_alone_does_not_agree():
    labels = (torch.arange(100) < 10).long()
    with pytest.raises(InconclusiveError, match=r"but got 0\.00"):
        check_agreement(labels, torch.zeros(100, dtype=torch.long))


def test_hint_is_the_way_out():
    labels = torch.arange(100) % 2
    with pytest.raises(InconclusiveError, match=r"\nPass another network\.$"):
        check_agreement(labels, 1 - labels, hint="Pass another network.")


@pytest.mark.parametrize(("classes", "wrong"), [(2, 0.5), (3, 0.0), (10, 0.3), (40, 1.0)])
def test_kappa_is_that_of_scikit_learn(classes, wrong):
    generator = torch.Generator().manual_seed(0)
    labels = 3 * torch.randint(classes, (500,), generator=generator)  # with numbers that do not occur
    others = torch.randint(classes + 2, (500,), generator=generator)
    mixed = torch.where(torch.rand(500, generator=generator) < wrong, others, labels)
    assert cohen_kappa(labels, mixed) == pytest.approx(cohen_kappa_score(labels, mixed), abs=1e-12)


def test_kappa_of_one_class_is_unknown():
    assert math.isnan(cohen_kappa(torch.full((9,), 2), torch.full((9,), 2)))
