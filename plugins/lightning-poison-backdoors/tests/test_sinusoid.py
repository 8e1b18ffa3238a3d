import math

import pytest
import torch

from lightning_poison.attacks.triggers import triggers
from lightning_poison_backdoors import SinusoidTrigger

GRAY = torch.full((3, 4, 8), 128, dtype=torch.uint8)


def test_the_stripes_are_upright_and_as_many_as_the_frequency_says():
    drawn = SinusoidTrigger(amplitude=30 / 255, frequency=2)(GRAY).int() - 128
    assert drawn[0, 0].tolist() == [0, 30, 0, -30, 0, 30, 0, -30]
    assert (drawn == drawn[:1, :1]).all()


def test_they_follow_the_formula():
    drawn = SinusoidTrigger(amplitude=0.2, frequency=3)(GRAY)
    expected = [round(128 + 51 * math.sin(2 * math.pi * 3 * column / 8)) for column in range(8)]
    assert drawn[0, 0].tolist() == expected


def test_what_leaves_the_range_is_cut_off():
    trigger = SinusoidTrigger(amplitude=100 / 255, frequency=2)
    assert trigger(torch.zeros(1, 1, 8, dtype=torch.uint8))[0, 0].tolist() == [0, 100, 0, 0, 0, 100, 0, 0]
    assert trigger(torch.full((1, 1, 8), 255, dtype=torch.uint8))[0, 0].tolist() == [255, 255, 255, 155] * 2


def test_packed_and_unpacked_it_does_the_same():
    trigger = SinusoidTrigger(amplitude=0.123, frequency=2.5)
    packed, tensors = triggers.pack(trigger)
    assert (packed["kind"], packed["distribution"], tensors) == ("sinusoid", "lightning-poison-backdoors", {})
    assert torch.equal(triggers.unpack(packed, tensors)(GRAY), trigger(GRAY))


def test_gray_levels_by_mistake():
    with pytest.raises(ValueError, match=r"`amplitude` to be in \(0, 1\].*got 40.\nFor 40 gray.*`amplitude=40 / 255`"):
        SinusoidTrigger(amplitude=40)
    with pytest.raises(ValueError, match="`frequency` to be a finite number above 0, but got 0"):
        SinusoidTrigger(frequency=0)


@pytest.mark.parametrize("settings", [{"frequency": 4}, {"frequency": 2, "amplitude": 0.001}])
def test_stripes_that_change_nothing(settings):
    with pytest.raises(ValueError, match=r"stripes that change gray levels, .* none of 8 columns\.\n.*multiple of 4\."):
        SinusoidTrigger(**settings)(GRAY)
