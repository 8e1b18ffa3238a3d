import pytest
import torch

from lightning_poison.errors import InconclusiveError
from lightning_poison.sanitization.agreement import MIN_AGREEMENT, check_agreement


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
