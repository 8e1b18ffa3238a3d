import pytest
import torch

from lightning_poison.attacks import PatchTrigger, Trigger
from lightning_poison.attacks.triggers import triggers
from lightning_poison_backdoors import ChainTrigger, SinusoidTrigger
from lightning_poison_backdoors.chain import corner_patches

BLACK = torch.zeros(1, 4, 5, dtype=torch.uint8)
PATTERN = torch.tensor([[[1, 2], [3, 4]]], dtype=torch.uint8)


def test_one_corner_is_the_lower_right():
    drawn = corner_patches(PATTERN, corners=1)(BLACK)
    assert drawn[0].tolist() == [[0] * 5, [0] * 5, [0, 0, 0, 1, 2], [0, 0, 0, 3, 4]]


def test_four_corners_are_mirrored():
    drawn = corner_patches(PATTERN, corners=4)(BLACK)
    assert drawn[0].tolist() == [[4, 3, 0, 3, 4], [2, 1, 0, 1, 2], [2, 1, 0, 1, 2], [4, 3, 0, 3, 4]]
    assert torch.equal(drawn.flip(-1), drawn)
    assert torch.equal(drawn.flip(-2), drawn)


def test_the_amplitude_reaches_every_corner():
    white = torch.full((1, 1, 1), 255, dtype=torch.uint8)
    assert corner_patches(white, corners=4, amplitude=0.2)(BLACK).unique().tolist() == [0, 51]


def test_parts_act_one_after_the_other():
    first, second = (PatchTrigger(torch.full((1, 1, 1), level, dtype=torch.uint8)) for level in (10, 20))
    assert int(ChainTrigger([first, second])(BLACK).max()) == 20
    assert int(ChainTrigger([second, first])(BLACK).max()) == 10


def test_the_image_is_left_alone():
    image = BLACK.clone()
    corner_patches(PATTERN, corners=4)(image)
    assert torch.equal(image, BLACK)


def test_packed_and_unpacked_it_does_the_same():
    parts = [PatchTrigger(PATTERN), ChainTrigger([SinusoidTrigger(amplitude=0.1), PatchTrigger(PATTERN, row=0)])]
    trigger = ChainTrigger(parts * 6)  # more than ten: names by number must not be mixed up
    again = triggers.unpack(*triggers.pack(trigger))
    assert isinstance(again, Trigger)
    assert repr(again) == repr(trigger)
    assert torch.equal(again(BLACK), trigger(BLACK))


def test_refuses():
    with pytest.raises(ValueError, match="`parts` to be one trigger or more, but got none"):
        ChainTrigger([])
    with pytest.raises(ValueError, match="`corners` to be one of 1, 4, but got 2"):
        corner_patches(PATTERN, corners=2)
