import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_poison.data.pixel_range import PixelRange

NORMALIZED = PixelRange(mean=(0.5, 0.4, 0.3), std=(0.25, 0.2, 0.1))


def test_known_normalization():
    raw = torch.tensor([0.5, 0.6, 0.1]).view(3, 1, 1)
    torch.testing.assert_close(NORMALIZED.from_raw(raw), torch.tensor([0.0, 1.0, -2.0]).view(3, 1, 1))
    torch.testing.assert_close(NORMALIZED.to_raw(torch.tensor([0.0, 1.0, -2.0]).view(3, 1, 1)), raw)


def test_no_normalization_is_identity():
    image = torch.rand(1, 2, 2)
    assert PixelRange().to_raw(image) is image
    assert PixelRange().from_raw(image) is image


def test_radius_is_in_units_of_raw_image():
    radius = NORMALIZED.radius(0.1, torch.zeros(2, 3, 4, 4))
    torch.testing.assert_close(radius.flatten(), torch.tensor([0.4, 0.5, 1.0]))
    assert PixelRange().radius(0.1, torch.zeros(5, dtype=torch.float64)).dtype == torch.float64


def test_round_gives_levels():
    rounded = PixelRange(levels=17).round(torch.tensor([-0.3, 0.03, 0.04, 1.4]))
    torch.testing.assert_close(rounded, torch.tensor([0.0, 0.0, 1 / 16, 1.0]))
    free = PixelRange(levels=None).round(torch.tensor([0.123, 2.0]))
    torch.testing.assert_close(free, torch.tensor([0.123, 1.0]))


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 256), st.integers(0, 1000))
def test_round_is_idempotent_and_stays_in_range(levels, seed):
    pixels = PixelRange(mean=(0.45,), std=(0.3,), levels=levels)
    inputs = 3 * torch.randn(2, 1, 3, 3, generator=torch.Generator().manual_seed(seed))
    once = pixels.round(inputs)
    torch.testing.assert_close(pixels.round(once), once)
    assert pixels.contains(once)
    steps = pixels.to_raw(once) * (levels - 1)
    torch.testing.assert_close(steps, steps.round(), atol=1e-3, rtol=0)


class TestRoundRaw:
    @settings(max_examples=60, deadline=None)
    @given(
        levels=st.sampled_from([2, 17, 256]),
        epsilon=st.one_of(st.none(), st.sampled_from([0.01, 1 / 255, 8 / 255, 1 / 16, 0.07, 0.3, 1.0])),
        on_grid=st.booleans(),
        seed=st.integers(0, 1000),
    )
    def test_result_is_on_grid_and_in_ball(self, levels, epsilon, on_grid, seed):
        originals, images = torch.rand(2, 3, 20, generator=torch.Generator().manual_seed(seed))
        if on_grid:
            originals = (originals * (levels - 1)).round() / (levels - 1)
        found = PixelRange(levels=levels).round_raw(2 * images - 0.5, around=originals, epsilon=epsilon)
        steps = found * (levels - 1)
        aligned = (steps - steps.round()).abs() < 1e-3
        assert (aligned | (found == originals)).all()
        assert aligned.all() or not on_grid
        assert 0 <= float(found.min()) <= float(found.max()) <= 1
        if epsilon is not None:
            assert float((found - originals).abs().max()) <= epsilon + 1e-5

    @pytest.mark.parametrize("epsilon", [0.05, 0.3])
    def test_result_is_nearest_level_in_ball(self, epsilon):
        generator = torch.Generator().manual_seed(0)
        originals, images = torch.rand(2, 200, generator=generator, dtype=torch.float64)
        grid = torch.linspace(0, 1, 11, dtype=torch.float64)
        allowed = (grid - originals[:, None]).abs() <= epsilon
        distance = torch.where(allowed, (grid - images[:, None]).abs(), torch.inf)
        expected = torch.where(allowed.any(1), grid[distance.argmin(1)], originals)
        found = PixelRange(levels=11).round_raw(images, around=originals, epsilon=epsilon)
        torch.testing.assert_close(found, expected)

    def test_radius_of_whole_levels_is_reached(self):
        originals = torch.arange(256.0) / 255
        found = PixelRange().round_raw(originals + 8 / 255, around=originals, epsilon=8 / 255)
        assert ((found - originals) * 255).round()[:248].tolist() == [8.0] * 248

    def test_pixel_without_level_in_ball_keeps_value(self):
        originals = torch.tensor([0.5 / 16, 0.4 / 16])
        pixels = PixelRange(levels=17)
        assert pixels.round_raw(originals + 1, around=originals, epsilon=1 / 16).tolist() == [1 / 16, 1 / 16]
        assert torch.equal(pixels.round_raw(originals + 1, around=originals, epsilon=0.02), originals)

    def test_continuous_range_is_only_clamped(self):
        originals = torch.tensor([0.1, 0.5, 0.1])
        found = PixelRange(levels=None).round_raw(torch.tensor([0.123, 0.9, -3]), around=originals, epsilon=0.2)
        assert found.tolist() == pytest.approx([0.123, 0.7, 0.0])

    def test_without_limit_and_normalization(self):
        images = torch.tensor([-0.3, 0.03, 0.04, 1.4])
        found = PixelRange(mean=(0.5,), std=(0.2,), levels=17).round_raw(images)
        torch.testing.assert_close(found, torch.tensor([0.0, 0.0, 1 / 16, 1.0]))

    def test_refuses_radius_without_originals(self):
        with pytest.raises(ValueError, match=r"`around` to be the original images, with `epsilon=0\.1`, but got None"):
            PixelRange().round_raw(torch.zeros(2), epsilon=0.1)


def test_clamp_changes_only_values_outside():
    inputs = NORMALIZED.from_raw(torch.tensor([-0.5, 0.5, 1.5]).view(3, 1, 1))
    torch.testing.assert_close(
        NORMALIZED.to_raw(NORMALIZED.clamp(inputs)).flatten(), torch.tensor([0.0, 0.5, 1.0]), atol=1e-6, rtol=0
    )


def test_contains():
    assert PixelRange().contains(torch.tensor([0.0, 1.0]))
    assert not PixelRange().contains(torch.tensor([0.0, 1.01]))
    assert not PixelRange().contains(torch.tensor([0.0, torch.nan]))
    assert PixelRange().contains(torch.tensor([1.01]), tolerance=0.02)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mean": (0.5,)}, "got no `std`"),
        ({"std": (0.5,)}, "got no `mean`"),
        ({"mean": (0.5,), "std": (0.5, 0.5)}, r"`std` to be as long as `mean` \(1\), but got 2"),
        ({"mean": (0.5,), "std": (0.0,)}, "`std` to be above 0"),
        ({"levels": 1}, "`levels` to be at least 2"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        PixelRange(**arguments)


@pytest.mark.parametrize("shape", [(2, 1, 4, 4), (3, 4), (3,)])
def test_refuses_inputs_of_other_shape(shape):
    with pytest.raises(ValueError, match="with the 3 channels of `mean`"):
        NORMALIZED.to_raw(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(4,), (2, 4)])
def test_refuses_vectors_with_one_channel(shape):
    with pytest.raises(ValueError, match=r"images \(\.\.\., C, H, W\)"):
        PixelRange(mean=(0.5,), std=(0.5,)).from_raw(torch.zeros(shape))


def test_lists_and_tuples_give_equal_ranges():
    assert PixelRange(mean=[0.5], std=[1]) == PixelRange(mean=(0.5,), std=(1.0,))
    assert hash(PixelRange(mean=[0.5], std=[1])) == hash(PixelRange(mean=(0.5,), std=(1.0,)))
