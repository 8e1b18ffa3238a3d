import pytest
import torch

from lightning_poison.adversarial.adversaries import FGSM, PGD
from lightning_poison.data.pixel_range import PixelRange


def brightness(inputs):
    return inputs.flatten(1).sum(1)


@pytest.fixture
def images():
    return torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("settings", [{"steps": 4}, {"step_size": 0.05, "steps": 4}, {"steps": 2, "restarts": 2}])
def test_pgd_reaches_boundary_of_ball_and_range(settings, images):
    found = PGD(0.1, **settings).perturb(images, brightness, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(found, (images + 0.1).clamp(max=1))


def test_fgsm_default_step_is_a_quarter_longer_than_radius(images):
    start = torch.Generator().manual_seed(1)
    drawn = torch.rand(images.shape, generator=start)
    points = (images + 0.2 * (2 * drawn - 1)).clamp(0, 1)
    found = FGSM(0.2).perturb(images, brightness, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(found, torch.minimum(points + 0.25, images + 0.2).clamp(max=1))
    assert FGSM(0.2).steps == 1


def test_fgsm_without_random_start_is_sign_of_gradient(images):
    torch.testing.assert_close(FGSM(0.2, random_start=False).perturb(images, brightness), (images + 0.2).clamp(max=1))


@pytest.mark.parametrize("adversary", [PGD(0.2, 0.1, steps=4), FGSM(0.2, random_start=False)], ids=repr)
def test_strength_scales_radius_and_step(adversary, images):
    torch.testing.assert_close(adversary.perturb(images, brightness, strength=0.5), (images + 0.1).clamp(max=1))
    assert torch.equal(adversary.perturb(images, brightness, strength=0.0), images)


def test_radius_is_in_units_of_raw_image(images):
    pixels = PixelRange(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    found = PGD(0.1, steps=3).perturb(pixels.from_raw(images), brightness, pixels=pixels)
    torch.testing.assert_close(pixels.to_raw(found), (images + 0.1).clamp(max=1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PGD(8), "For a budget of 8 gray levels write `epsilon=8 / 255`"),
        (lambda: FGSM(8), "For a budget of 8 gray levels write `epsilon=8 / 255`"),
        (lambda: PGD(0), "`epsilon` to be a finite number above 0"),
        (lambda: PGD(0.1, 0.0), "`step_size` to be a finite number above 0"),
        (lambda: FGSM(0.1, -1), "`step_size` to be a finite number above 0"),
        (lambda: PGD(8 / 255, 2), "For a step of 2 gray levels write `step_size=2 / 255`"),
        (lambda: FGSM(8 / 255, 10), "For a step of 10 gray levels write `step_size=10 / 255`"),
        (lambda: PGD(0.1, steps=0), "`steps` to be an integer of at least 1"),
        (lambda: PGD(0.1, norm="l1"), "`norm` to be one of 'linf', 'l2'"),
        (lambda: PGD(0.1, restarts=2, random_start=False), "`restarts` to be 1 without a random start"),
    ],
)
def test_refuses_settings_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_accepts_radius_of_whole_range_and_long_l2_step(images):
    assert FGSM(1.0).as_pgd().step_size == 1.0
    assert PGD(3.0, 2.0, norm="l2").step_size == 2.0
