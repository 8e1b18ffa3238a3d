import pytest
import torch

from lightning_poison import PixelRange
from lightning_poison_shielding.box import PixelBox


@pytest.mark.parametrize(("radius", "levels"), [(8 / 255, 256), (0.3, 256), (0.1, 17), (1.0, 2)])
def test_rounded_images_lie_on_the_grid_and_in_the_ball(generator, radius, levels):
    bases = (torch.rand(5, 1, 4, 4, generator=generator) * (levels - 1)).round() / (levels - 1)
    wanted = torch.rand(5, 1, 4, 4, generator=generator) * 3 - 1
    found = PixelBox(bases, radius, PixelRange(levels=levels)).rounded(wanted)
    steps = found * (levels - 1)
    torch.testing.assert_close(steps, steps.round().clamp(0, levels - 1), atol=1e-4, rtol=0)
    assert (found - bases).abs().max() <= radius + 1e-6


def test_a_whole_number_of_levels_is_reached():
    bases = torch.arange(200) / 255
    found = PixelBox(bases, 8 / 255, PixelRange()).rounded(bases + 1)
    torch.testing.assert_close(found, bases + 8 / 255)


def test_a_pixel_without_a_level_nearby_stays():
    box = PixelBox(torch.tensor([0.27]), 0.01, PixelRange(levels=11))
    assert box.rounded(torch.tensor([0.9])).tolist() == box.bases.tolist()


def test_the_range_holds_without_a_grid():
    box = PixelBox(torch.tensor([0.1, 0.9]), 0.3, PixelRange(levels=None))
    torch.testing.assert_close(box.rounded(torch.tensor([-1.0, 0.75])), torch.tensor([0.0, 0.75]))
    torch.testing.assert_close(box.clamp(torch.tensor([2.0, 2.0])), torch.tensor([0.4, 1.0]))
