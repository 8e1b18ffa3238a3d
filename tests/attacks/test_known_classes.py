import pytest
import torch

from lightning_poison.attacks import known_class


def test_refuses_absent_class_and_lists_the_first_present_ones():
    assert known_class("source_class", 3, torch.tensor([3, 0, 1, 3])) == 3
    with pytest.raises(ValueError, match=r"`source_class` to be a class of the holdout set \(0, 1, 3\), but got 7"):
        known_class("source_class", 7, torch.tensor([3, 0, 1, 3]), where="holdout set")
    with pytest.raises(ValueError, match=r"\(0, 1, .*, 19, …\), but got 25"):
        known_class("source_class", 25, torch.arange(25))
