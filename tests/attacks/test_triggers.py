import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_poison.attacks.triggers import PatchTrigger, Trigger, trigger_kinds

WHITE = torch.full((1, 2, 2), 255, dtype=torch.uint8)
BLACK = torch.zeros(3, 5, 6, dtype=torch.uint8)


def changed_area(trigger, image=BLACK):
    changed = (trigger(image) != image).any(0).nonzero()
    return changed.min(0).values.tolist(), changed.max(0).values.tolist()


@pytest.mark.parametrize(
    ("row", "column", "first", "last"),
    [(0, 0, [0, 0], [1, 1]), (-1, -1, [3, 4], [4, 5]), (-2, 3, [2, 3], [3, 4]), (3, 4, [3, 4], [4, 5])],
)
def test_patch_position(row, column, first, last):
    assert changed_area(PatchTrigger(WHITE, row=row, column=column)) == (first, last)


def test_amplitude_blends_image_and_pattern():
    image = torch.full((1, 2, 2), 100, dtype=torch.uint8)
    assert PatchTrigger(WHITE, amplitude=0.2)(image).unique().tolist() == [131]
    assert PatchTrigger(torch.zeros_like(WHITE), amplitude=0.25)(image).unique().tolist() == [75]


def test_color_pattern():
    pattern = torch.tensor([10, 20, 30], dtype=torch.uint8).view(3, 1, 1)
    assert PatchTrigger(pattern)(BLACK)[:, -1, -1].tolist() == [10, 20, 30]


@settings(max_examples=25, deadline=None)
@given(st.integers(-4, 3), st.integers(-5, 4), st.floats(0.01, 1), st.integers(0, 99))
def test_changes_only_patch_area_of_a_copy(row, column, amplitude, seed):
    image = torch.randint(256, (3, 5, 6), generator=torch.Generator().manual_seed(seed)).byte()
    before = image.clone()
    trigger = PatchTrigger(WHITE, row=row, column=column, amplitude=amplitude)
    changed = trigger(image)
    assert torch.equal(image, before)
    assert changed.dtype == torch.uint8
    assert int((changed != image).any(0).sum()) <= 4
    assert (changed >= image).all()


@pytest.mark.parametrize(("row", "column"), [(4, 0), (0, 5), (-5, 0), (0, -6)])
def test_refuses_patch_outside_image(row, column):
    with pytest.raises(ValueError, match=r"Expected a trigger inside the image[\s\S]*Choose a smaller"):
        PatchTrigger(WHITE, row=row, column=column)(BLACK)


def test_refuses_patch_with_other_channels():
    with pytest.raises(ValueError, match=r"pattern of \(3, 1, 1\).*image of \(1, 5, 6\)"):
        PatchTrigger(BLACK[:, :1, :1])(BLACK[:1])


@pytest.mark.parametrize(
    ("pattern", "arguments", "message"),
    [
        (WHITE.float(), {}, "`pattern` to be a uint8 image"),
        (WHITE[0], {}, "`pattern` to be a uint8 image"),
        (WHITE, {"amplitude": 0}, "`amplitude`"),
        (WHITE, {"amplitude": 1.5}, "`amplitude`"),
    ],
)
def test_refuses_invalid_arguments(pattern, arguments, message):
    with pytest.raises(ValueError, match=message):
        PatchTrigger(pattern, **arguments)


def test_pack_round_trip():
    trigger = PatchTrigger(WHITE, row=1, column=-2, amplitude=0.3)
    again = trigger_kinds.unpack(*trigger_kinds.pack(trigger))
    assert isinstance(again, Trigger)
    assert repr(again) == repr(trigger)
    assert torch.equal(again(BLACK), trigger(BLACK))
