import math

import pytest
import torch

from lightning_poison.attacks import PatchTrigger, Trigger, trigger_kinds
from lightning_poison_backdoors import ChainTrigger, SinusoidTrigger
from lightning_poison_backdoors.triggers import checkerboard, corner_patches, white_square

BLACK = torch.zeros(1, 4, 5, dtype=torch.uint8)
PATTERN = torch.tensor([[[1, 2], [3, 4]]], dtype=torch.uint8)
GRAY = torch.full((3, 4, 8), 128, dtype=torch.uint8)


class TestChain:
    def test_one_corner_is_lower_right(self):
        drawn = corner_patches(PATTERN, corners=1)(BLACK)
        assert drawn[0].tolist() == [[0] * 5, [0] * 5, [0, 0, 0, 1, 2], [0, 0, 0, 3, 4]]

    def test_four_corners_are_mirrored(self):
        drawn = corner_patches(PATTERN, corners=4)(BLACK)
        assert drawn[0].tolist() == [[4, 3, 0, 3, 4], [2, 1, 0, 1, 2], [2, 1, 0, 1, 2], [4, 3, 0, 3, 4]]
        assert torch.equal(drawn.flip(-1), drawn)
        assert torch.equal(drawn.flip(-2), drawn)

    def test_amplitude_applies_to_every_corner(self):
        white = torch.full((1, 1, 1), 255, dtype=torch.uint8)
        assert corner_patches(white, corners=4, amplitude=0.2)(BLACK).unique().tolist() == [0, 51]

    def test_parts_are_applied_in_order(self):
        first, second = (PatchTrigger(torch.full((1, 1, 1), level, dtype=torch.uint8)) for level in (10, 20))
        assert int(ChainTrigger([first, second])(BLACK).max()) == 20
        assert int(ChainTrigger([second, first])(BLACK).max()) == 10

    def test_does_not_change_its_argument(self):
        image = BLACK.clone()
        corner_patches(PATTERN, corners=4)(image)
        assert torch.equal(image, BLACK)

    def test_survives_packing(self):
        parts = [PatchTrigger(PATTERN), ChainTrigger([SinusoidTrigger(amplitude=0.1), PatchTrigger(PATTERN, row=0)])]
        trigger = ChainTrigger(parts * 6)  # more than ten, so that prefixes of part names overlap
        unpacked = trigger_kinds.unpack(*trigger_kinds.pack(trigger))
        assert isinstance(unpacked, Trigger)
        assert repr(unpacked) == repr(trigger)
        assert torch.equal(unpacked(BLACK), trigger(BLACK))

    def test_refuses_invalid_arguments(self):
        with pytest.raises(ValueError, match="`parts` to be at least one trigger, but got none"):
            ChainTrigger([])
        with pytest.raises(ValueError, match="`corners` to be one of 1, 4, but got 2"):
            corner_patches(PATTERN, corners=2)


class TestSinusoid:
    def test_stripes_are_vertical_with_given_frequency(self):
        drawn = SinusoidTrigger(amplitude=30 / 255, frequency=2)(GRAY).int() - 128
        assert drawn[0, 0].tolist() == [0, 30, 0, -30, 0, 30, 0, -30]
        assert (drawn == drawn[:1, :1]).all()

    def test_matches_closed_form(self):
        drawn = SinusoidTrigger(amplitude=0.2, frequency=3)(GRAY)
        expected = [round(128 + 51 * math.sin(2 * math.pi * 3 * column / 8)) for column in range(8)]
        assert drawn[0, 0].tolist() == expected

    def test_clips_to_gray_levels(self):
        trigger = SinusoidTrigger(amplitude=100 / 255, frequency=2)
        assert trigger(torch.zeros(1, 1, 8, dtype=torch.uint8))[0, 0].tolist() == [0, 100, 0, 0, 0, 100, 0, 0]
        assert trigger(torch.full((1, 1, 8), 255, dtype=torch.uint8))[0, 0].tolist() == [255, 255, 255, 155] * 2

    def test_survives_packing(self):
        trigger = SinusoidTrigger(amplitude=0.123, frequency=2.5)
        packed, tensors = trigger_kinds.pack(trigger)
        assert (packed["kind"], packed["distribution"], tensors) == ("sinusoid", "lightning-poison-backdoors", {})
        assert torch.equal(trigger_kinds.unpack(packed, tensors)(GRAY), trigger(GRAY))

    def test_refuses_settings_out_of_range(self):
        with pytest.raises(
            ValueError, match=r"`amplitude` to be in \(0, 1\].*got 40.\nFor 40 gray.*`amplitude=40 / 255`"
        ):
            SinusoidTrigger(amplitude=40)
        with pytest.raises(ValueError, match="`frequency` to be a finite number above 0, but got 0"):
            SinusoidTrigger(frequency=0)

    @pytest.mark.parametrize("settings", [{"frequency": 4}, {"frequency": 2, "amplitude": 0.001}])
    def test_refuses_stripes_without_effect(self, settings):
        with pytest.raises(
            ValueError, match=r"stripes that change gray levels, .* none of 8 columns\.\n.*multiple of 4\."
        ):
            SinusoidTrigger(**settings)(GRAY)


class TestPatterns:
    @pytest.mark.parametrize("size", [1, 2, 3, 4])
    def test_checkerboard_has_white_corner(self, size):
        board = checkerboard(size)
        assert board.shape == (1, size, size)
        assert all(
            int(board[0, row, column]) == 255 * ((row + column) % 2 == 0)
            for row in range(size)
            for column in range(size)
        )

    @pytest.mark.parametrize(
        ("size", "side"), [((28, 28), 5), ((32, 32), 6), ((8, 8), 2), ((56, 300), 10), ((3, 4), 2)]
    )
    def test_white_square_scales_with_shorter_side(self, size, side):
        square = white_square(*size)
        assert square.shape == (1, side, side)
        assert (square == 255).all()
