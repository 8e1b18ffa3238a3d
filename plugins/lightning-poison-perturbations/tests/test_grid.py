import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_poison_perturbations.grid import to_levels


@given(
    levels=st.sampled_from([17, 256]),
    epsilon=st.sampled_from([1 / 16, 8 / 255, 0.07, 0.3, 1.0]),
    seed=st.integers(0, 1000),
)
def test_images_come_to_lie_on_the_grid_and_inside_the_ball(levels, epsilon, seed):
    if epsilon * (levels - 1) < 0.999:
        return
    generator = torch.Generator().manual_seed(seed)
    originals, images = torch.rand(2, 3, 20, generator=generator)
    originals = (originals * (levels - 1)).round() / (levels - 1)
    found = to_levels(2 * images - 0.5, originals, epsilon=epsilon, levels=levels)
    steps = found * (levels - 1)
    assert float((steps - steps.round()).abs().max()) < 1e-3
    assert float((found - originals).abs().max()) <= epsilon + 1e-5
    assert 0 <= float(found.min()) <= float(found.max()) <= 1


def test_a_whole_number_of_levels_may_be_used_up():
    originals = torch.arange(256.0) / 255
    found = to_levels(originals + 8 / 255, originals, epsilon=8 / 255, levels=256)
    assert ((found - originals) * 255).round()[:248].tolist() == [8.0] * 248


def test_a_pixel_off_the_grid_with_no_level_near_keeps_its_value():
    originals = torch.tensor([0.5 / 16, 0.4 / 16])
    found = to_levels(originals + 1, originals, epsilon=1 / 16, levels=17)
    assert found.tolist() == [1 / 16, 1 / 16]
    assert to_levels(originals - 1, originals, epsilon=1 / 16, levels=17).tolist() == [0, 0]


def test_a_continuous_range_is_clamped_only():
    images = torch.tensor([0.123, 0.9, -3.0])
    found = to_levels(images, torch.tensor([0.1, 0.5, 0.1]), epsilon=0.2, levels=None)
    assert found.tolist() == pytest.approx([0.123, 0.7, 0.0])


def test_less_than_a_level_would_change_nothing():
    with pytest.raises(ValueError, match=r"`epsilon` to be at least one grey level, 1 / 16, but got 0\.05"):
        to_levels(torch.zeros(1), torch.zeros(1), epsilon=0.05, levels=17)
