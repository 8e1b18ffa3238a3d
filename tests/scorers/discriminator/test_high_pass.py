import math

import pytest
import torch
import torch.nn.functional as F

from lightning_poison.scorers.discriminator.high_pass import CHANNELS, high_pass_channels


def random_images(*shape, dtype=torch.float32):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def test_single_pixel_matches_closed_form():
    image = torch.zeros(1, 1, 5, 5)
    image[0, 0, 2, 2] = 0.36
    raw, dark, detail, noise = high_pass_channels(image)[0]
    assert torch.equal(raw, image[0, 0])
    assert dark[2, 2].item() == pytest.approx(math.tanh(7.2))
    assert dark[0].abs().max() == 0
    assert detail[2, 2].item() == pytest.approx(4 * (0.36 - 0.04))
    assert detail[1, 3].item() == pytest.approx(4 * -0.04)
    assert detail[0].abs().max() == 0
    expected = torch.tensor([[1.0, -2, 1], [-2, 4, -2], [1, -2, 1]]) * (8 * 0.36 / 4)
    torch.testing.assert_close(noise[1:4, 1:4], expected.tanh())


def test_flat_image_has_no_detail_and_no_noise():
    views = high_pass_channels(torch.full((2, 1, 4, 6), 0.5))
    torch.testing.assert_close(views[:, 2:], torch.zeros(2, 2, 4, 6), atol=1e-5, rtol=0)
    torch.testing.assert_close(views[:, 1], torch.full((2, 4, 6), math.tanh(10.0)))


@pytest.mark.parametrize("image", [torch.linspace(0, 1, 8).expand(8, 8), (torch.arange(8) > 3).float().expand(8, 8)])
@pytest.mark.parametrize("transposed", [False, True])
def test_slopes_and_straight_edges_have_no_noise(image, transposed):
    image = image.T if transposed else image
    noise = high_pass_channels(image[None, None])[0, 3]
    torch.testing.assert_close(noise, torch.zeros(8, 8), atol=1e-5, rtol=0)


def test_matches_two_convolutions():
    images = random_images(3, 1, 9, 7, dtype=torch.float64)
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    mean = torch.full((1, 1, 3, 3), 1 / 9, dtype=torch.float64)
    mask = torch.tensor([[1.0, -2, 1], [-2, 4, -2], [1, -2, 1]], dtype=torch.float64)[None, None] / 4
    views = high_pass_channels(images)
    torch.testing.assert_close(views[:, 2:3], 4 * (images - F.conv2d(padded, mean)))
    torch.testing.assert_close(views[:, 3:4], torch.tanh(8 * F.conv2d(padded, mask)))


def test_colors_are_independent():
    images = random_images(2, 3, 8, 8)
    views = high_pass_channels(images).view(2, CHANNELS, 3, 8, 8)
    for number in range(3):
        torch.testing.assert_close(views[:, :, number], high_pass_channels(images[:, number : number + 1]))


def test_ignores_bfloat16_autocast():
    images = random_images(2, 3, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert high_pass_channels(images.bfloat16()).dtype == torch.float32
        found = high_pass_channels(images)
    assert torch.equal(found, high_pass_channels(images))


def test_gradient_matches_finite_differences():
    images = random_images(1, 1, 4, 4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(high_pass_channels, images)


@pytest.mark.parametrize("images", [torch.zeros(3, 8, 8), torch.zeros(1, 1, 4, 4, dtype=torch.uint8)])
def test_refuses_other_tensors(images):
    with pytest.raises(ValueError, match=r"`images` to be floating-point images \(B, C, H, W\), but got a"):
        high_pass_channels(images)
