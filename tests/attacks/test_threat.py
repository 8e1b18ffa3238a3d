import pytest
import torch
from torch import nn

from lightning_poison.attacks.threat import Surrogate, Threat, check_surrogates
from lightning_poison.data.pixel_range import PixelRange


@pytest.mark.parametrize(("length", "share", "budget"), [(1000, 0.02, 20), (10, 0.001, 1), (150, 0.01, 2)])
def test_fraction_becomes_budget_of_at_least_one(length, share, budget):
    assert Threat.of_fraction(range(length), share).budget == budget


def test_fraction_keeps_other_limits():
    pixels = PixelRange(levels=17)
    threat = Threat.of_fraction(range(10), 0.5, epsilon=0.1, clean_label=True, may_append=False, pixels=pixels)
    assert threat == Threat(5, epsilon=0.1, clean_label=True, may_append=False, pixels=pixels)


@pytest.mark.parametrize("budget", [0, -1, 2.0, True, "3"])
def test_refuses_invalid_budget(budget):
    with pytest.raises(ValueError, match=r"`budget` to be an integer of at least 1[\s\S]*of_fraction"):
        Threat(budget)


def test_refuses_epsilon_in_gray_levels():
    with pytest.raises(ValueError, match="For a budget of 8 gray levels write `epsilon=8 / 255`"):
        Threat(1, epsilon=8)


@pytest.mark.parametrize("epsilon", [0, -0.1, float("nan"), True])
def test_refuses_invalid_epsilon(epsilon):
    with pytest.raises(ValueError, match=r"`epsilon` to be in \(0, 1\]"):
        Threat(1, epsilon=epsilon)


@pytest.mark.parametrize("share", [0, 1, 2, -0.1])
def test_refuses_invalid_fraction(share):
    with pytest.raises(ValueError, match=r"`poison_fraction` to be a number in \(0, 1\)"):
        Threat.of_fraction(range(10), share)


def test_surrogate_stores_model_and_layer():
    model = nn.Sequential(nn.Linear(2, 2))
    surrogate = Surrogate(model, "0")
    assert surrogate.model is model
    assert surrogate.feature_layer in dict(model.named_modules())
    assert surrogate.model(torch.zeros(1, 2)).shape == (1, 2)


def test_refuses_missing_surrogates():
    with pytest.raises(ValueError, match=r"at least one model to craft on, but got none\.\nPass `surrogates=\[Surrog"):
        check_surrogates(())
    check_surrogates((Surrogate(nn.Identity(), ""),))
