import pytest
import torch
from torch import nn

from lightning_poison.adversarial.pgd import perturb, perturb_against
from lightning_poison.data.pixel_range import PixelRange

ROUNDING = 1e-6


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images():
    return torch.rand(16, 1, 5, 5, generator=seeded())


@pytest.fixture
def weights():
    return torch.randn(1, 5, 5, generator=seeded(1))


@pytest.fixture
def linear(weights):
    return lambda images: (images * weights).flatten(1).sum(1)


@pytest.fixture
def network():
    """Return a small convolutional network with dropout and batch norm, with seeded weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3)
        return nn.Sequential(*layers)


FGSM = {"epsilon": 0.1, "steps": 1, "step_size": 0.1, "random_start": False}


class TestLinearModel:
    """The optimum in the ball and the range has a closed form."""

    def test_fast_gradient_sign(self, images, linear, weights):
        found = perturb(images, linear, **FGSM)
        assert torch.allclose(found, (images + 0.1 * weights.sign()).clamp(0, 1), atol=ROUNDING)

    def test_pgd_reaches_same_corner_from_any_start(self, images, linear, weights):
        found = perturb(images, linear, epsilon=0.1, steps=10, generator=seeded())
        assert torch.allclose(found, (images + 0.1 * weights.sign()).clamp(0, 1), atol=ROUNDING)

    def test_l2_change(self, images, linear, weights):
        gray = torch.full_like(images, 0.5)
        found = perturb(gray, linear, epsilon=0.3, steps=1, step_size=0.3, norm="l2", random_start=False)
        assert torch.allclose(found, 0.5 + 0.3 * weights / weights.norm(), atol=ROUNDING)

    def test_l2_change_from_random_starts(self, images, linear, weights):
        gray = torch.full_like(images, 0.5)
        found = perturb(gray, linear, epsilon=0.3, steps=200, step_size=0.02, norm="l2", generator=seeded())
        assert torch.allclose(found, 0.5 + 0.3 * weights / weights.norm(), atol=0.01)

    def test_tiny_gradients_do_not_vanish(self, linear, weights):
        gray = torch.full((2, 1, 5, 5), 0.5)
        found = perturb(gray, lambda x: 1e-30 * linear(x), epsilon=0.3, steps=1, norm="l2", random_start=False)
        assert torch.allclose(found, 0.5 + 0.3 * weights / weights.norm(), atol=ROUNDING)

    def test_default_step_size(self, linear, weights):
        gray = torch.full((2, 1, 5, 5), 0.5)
        found = perturb(gray, linear, epsilon=0.2, steps=10, random_start=False)
        shorter = perturb(gray, linear, epsilon=0.2, steps=3, step_size=0.05, random_start=False)
        assert torch.allclose(found, 0.5 + 0.2 * weights.sign(), atol=ROUNDING)
        assert torch.allclose(shorter, 0.5 + 0.15 * weights.sign(), atol=ROUNDING)
        slow = perturb(gray, linear, epsilon=0.2, steps=5, norm="l2", random_start=False)
        assert torch.allclose((slow - gray).flatten(1).norm(dim=1), torch.tensor(0.2), atol=ROUNDING)
        once = perturb(
            gray,
            linear,
            epsilon=torch.tensor([0.1, 0.2]),
            steps=1,
            step_size=torch.tensor([0.02, 0.04]),
            random_start=False,
        )
        assert torch.allclose((once - gray).flatten(1).amax(1), torch.tensor([0.02, 0.04]), atol=ROUNDING)

    def test_radius_per_image(self, images, linear, weights):
        radii = torch.linspace(0, 0.3, 16)
        found = perturb(images, linear, epsilon=radii, steps=10, generator=seeded())
        wanted = images + radii.view(-1, 1, 1, 1) * weights.sign()
        assert torch.allclose(found, wanted.clamp(0, 1), atol=ROUNDING)
        assert torch.equal(found[0], images[0])

    def test_l2_radius_per_image(self, linear):
        gray, radii = torch.full((3, 1, 5, 5), 0.5), torch.tensor([0.0, 0.1, 0.4])
        found = perturb(gray, linear, epsilon=radii, steps=5, norm="l2", generator=seeded())
        assert torch.allclose((found - gray).flatten(1).norm(dim=1), radii, atol=1e-5)

    def test_other_pixel_range(self, weights):
        centered = torch.full((1, 1, 5, 5), -0.9)
        found = perturb(centered, lambda x: -x.flatten(1).sum(1), epsilon=0.3, steps=2, low=-1, generator=seeded())
        assert torch.equal(found, torch.full_like(centered, -1.0))


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("steps", [0, 1, 7])
def test_result_is_in_ball_and_range(images, norm, steps):
    before = images.clone()
    found = perturb(
        images,
        lambda x: x.flatten(1).pow(3).sum(1),
        epsilon=0.2,
        steps=steps,
        norm=norm,
        step_size=0.5,
        generator=seeded(),
    )
    change = (found - images).flatten(1)
    size = change.abs().amax(1) if norm == "linf" else change.norm(dim=1)
    assert float(size.max()) <= 0.2 + ROUNDING
    assert float(size.min()) > 0.05
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    assert torch.equal(images, before)
    assert (found.requires_grad, found.dtype) == (False, torch.float32)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_random_starts_fill_the_ball(norm):
    gray = torch.full((4000, 2), 0.5)
    change = perturb(gray, lambda x: x.sum(1), epsilon=0.2, steps=0, norm=norm, generator=seeded()) - 0.5
    inner = change.abs().amax(1) < 0.1 if norm == "linf" else change.norm(dim=1) < 0.1
    assert float(inner.float().mean()) == pytest.approx(0.25, abs=0.03)
    assert float(change.mean()) == pytest.approx(0, abs=0.01)


def test_no_steps_and_no_random_start_return_images(images, linear):
    assert torch.equal(perturb(images, linear, epsilon=0.2, steps=0, random_start=False), images)


def test_result_depends_on_generator(images, network):
    labels = torch.zeros(16, dtype=torch.int64)
    first, again, other = (
        perturb_against(network, images, labels, epsilon=0.1, steps=2, generator=seeded(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_does_not_use_global_generator(images, linear):
    state = torch.get_rng_state()
    first, again = (perturb(images, linear, epsilon=0.1, steps=0) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), state)


def test_keeps_best_restart_of_each_image():
    """With two peaks, more restarts let more images reach the higher one, and no image gets worse."""

    def peaks(images):
        x = images.flatten(1).sum(1)
        return torch.where(x > 0.7, 10 * (x - 0.7), 0.7 - x)

    images = torch.full((64, 1), 0.5)
    values = [
        peaks(perturb(images, peaks, epsilon=0.4, steps=20, step_size=0.05, restarts=restarts, generator=seeded()))
        for restarts in (1, 2, 6)
    ]
    assert (values[1] >= values[0]).all()
    assert (values[2] >= values[1]).all()
    assert [round(float((value > 1).float().mean()), 1) for value in values] == pytest.approx([0.2, 0.4, 0.8], abs=0.11)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_changes_only_masked_pixels(images, linear, norm, dtype):
    mask = torch.zeros(1, 5, 5, dtype=dtype)
    mask[0, 1:4, 2] = 1
    found = perturb(images, linear, epsilon=0.2, steps=5, norm=norm, mask=mask, generator=seeded())
    moved = (found - images) != 0
    assert moved[:, :, 1:4, 2].any(0).all()
    assert not (moved & ~mask.bool()).any()


def test_masked_step_has_full_length(linear, weights):
    gray, mask = torch.full((2, 1, 5, 5), 0.5), torch.zeros(2, 1, 5, 5)
    mask[0, 0, 2], mask[1, 0, 3] = 1, 1
    found = perturb(gray, linear, epsilon=0.3, steps=1, step_size=0.3, norm="l2", mask=mask, random_start=False)
    wanted = 0.3 * weights * mask / (weights * mask).flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    assert torch.allclose(found - gray, wanted, atol=ROUNDING)


def test_empty_mask_changes_nothing(images, linear):
    for norm in ("linf", "l2"):
        found = perturb(images, linear, epsilon=0.3, steps=3, norm=norm, mask=torch.zeros(5, 5), generator=seeded())
        assert torch.equal(found, images)


class TestModel:
    def test_increases_misclassification(self, network, images):
        labels = network.eval()(images).argmax(1)
        found = perturb_against(network, images, labels, epsilon=0.5, steps=10, generator=seeded())
        assert float((network(found).argmax(1) == labels).float().mean()) < 0.3

    def test_targeted_attack(self, network, images):
        wanted = torch.full((16,), 2)
        found = perturb_against(network, images, wanted, epsilon=0.8, steps=20, targeted=True, generator=seeded())
        away = perturb_against(network, images, wanted, epsilon=0.8, steps=20, generator=seeded())
        network.eval()
        assert float((network(found).argmax(1) == 2).float().mean()) > 0.8
        assert (network(found)[:, 2] > network(away)[:, 2]).all()

    def test_custom_loss(self, network, images):
        labels = torch.tensor([0, 1] * 8)
        found = perturb_against(
            network, images, labels, loss=lambda logits, at: logits.gather(1, at[:, None])[:, 0], **FGSM
        )
        network.eval()
        before, after = (network(each).gather(1, labels[:, None])[:, 0] for each in (images, found))
        assert (after > before).all()

    @pytest.mark.parametrize("fails", [False, True])
    def test_restores_model(self, network, images, fails):
        network.train()
        network[1].eval()
        network[0].weight.requires_grad_(False)
        found = {name: value.clone() for name, value in network.state_dict().items()}
        seen = []

        def loss(logits, labels):
            seen.append(([part.training for part in network.modules()], logits.grad_fn is not None))
            assert not any(parameter.requires_grad for parameter in network.parameters())
            if fails:
                raise KeyError
            return nn.functional.cross_entropy(logits, labels, reduction="none")

        try:
            perturb_against(network, images, torch.zeros(16).long(), loss=loss, **FGSM)
        except KeyError:
            assert fails
        assert seen == [([False] * 7, True)]
        assert [part.training for part in network.modules()] == [True, True, False, True, True, True, True]
        assert [parameter.requires_grad for parameter in network.parameters()] == [False] + [True] * 5
        assert [parameter.grad for parameter in network.parameters()] == [None] * 6
        assert all(torch.equal(found[name], value) for name, value in network.state_dict().items())

    def test_does_not_change_accumulated_gradients(self, network, images):
        labels = torch.zeros(16).long()
        nn.functional.cross_entropy(network(images), labels).backward()
        accumulated = [parameter.grad.clone() for parameter in network.parameters()]
        perturb_against(network, images, labels, **FGSM)
        assert all(torch.equal(p.grad, g) for p, g in zip(network.parameters(), accumulated, strict=True))

    def test_under_no_grad(self, network, images):
        labels = torch.zeros(16).long()
        with torch.no_grad():
            found = perturb_against(network, images, labels, **FGSM)
        assert torch.equal(found, perturb_against(network, images, labels, **FGSM))

    def test_radius_of_normalized_inputs_is_in_units_of_raw_image(self, network, images):
        pixels = PixelRange(mean=(0.3,), std=(0.2,))

        class Normalized(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = network

            def forward(self, raw):
                return self.inner(pixels.from_raw(raw))

        labels = torch.zeros(16).long()
        inputs = pixels.from_raw(images)
        options = {"epsilon": 0.1, "steps": 3, "generator": None}
        found = perturb_against(network, inputs, labels, pixels=pixels, **options)
        raw = perturb_against(Normalized(), images, labels, **options)
        assert torch.allclose(pixels.to_raw(found), raw, atol=1e-5)
        assert float((found - inputs).abs().max()) == pytest.approx(0.5, abs=1e-4)

    @pytest.mark.parametrize("norm", ["linf", "l2"])
    def test_autocast(self, network, images, norm):
        """Autocast changes few steps: images are updated in float32, and misclassified as often."""
        labels = network.eval()(images).argmax(1)
        options = {"epsilon": 0.5 if norm == "linf" else 2.0, "steps": 10, "norm": norm}
        plain = perturb_against(network, images, labels, generator=seeded(), **options)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = perturb_against(network, images, labels, generator=seeded(), **options)
        assert found.dtype == torch.float32
        size = (found - images).abs().amax() if norm == "linf" else (found - images).flatten(1).norm(dim=1).amax()
        assert float(size) <= options["epsilon"] + ROUNDING
        assert float((plain - found).abs().mean()) < 0.05
        misclassified = [float((network(each).argmax(1) != labels).float().mean()) for each in (plain, found)]
        assert misclassified[1] == pytest.approx(misclassified[0], abs=0.1)

    def test_bfloat16_images_and_model(self, network, images):
        labels = torch.zeros(16).long()
        found = perturb_against(network.bfloat16(), images.bfloat16(), labels, epsilon=1 / 255, steps=8)
        change = (found.float() - images.bfloat16().float()).abs()
        assert found.dtype == torch.bfloat16
        assert float(change.max()) <= 1 / 255 + 2**-9
        assert float((change > 0).float().mean()) > 0.5

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_normalized_half_precision_images(self, network, images, dtype):
        """Rounding alone moves denormalized white pixels outside the range."""
        pixels = PixelRange(mean=(0.1307,), std=(0.3081,))
        inputs = pixels.from_raw(images.round()).to(dtype)
        found = perturb_against(network.to(dtype), inputs, torch.zeros(16).long(), epsilon=0.1, steps=3, pixels=pixels)
        raw = pixels.to_raw(found.float())
        assert found.dtype == dtype
        assert -0.01 < float(raw.min()) <= float(raw.max()) < 1.01
        assert float((raw - images.round()).abs().max()) == pytest.approx(0.1, abs=0.01)


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"epsilon": -0.1}, "`epsilon` to be a finite number of at least 0, but got -0.1"),
            ({"epsilon": torch.tensor([0.1])}, r"`epsilon` to be a number, or one for each image \(16,\)"),
            ({"epsilon": torch.full((16,), -1.0)}, "`epsilon` to be finite and at least 0 for every image"),
            ({"step_size": float("nan")}, "`step_size` to be a finite number"),
            ({"norm": "l1"}, "one of 'linf', 'l2', but got l1"),
            ({"steps": -1}, "`steps` to be an integer of at least 0"),
            ({"restarts": 0}, "`restarts` to be an integer of at least 1"),
            ({"restarts": 2, "random_start": False}, "`restarts` to be 1 without a random start"),
            ({"mask": torch.ones(4, 4)}, r"`mask` to be 0 and 1, broadcastable to \(16, 1, 5, 5\)"),
            ({"mask": torch.ones(2, 16, 1, 5, 5)}, "`mask`"),
            ({"mask": torch.full((5, 5), 0.5)}, "`mask` to be 0 and 1"),
            ({"low": 0.6}, r"`images` to be in \[0.6, 1\], the pixel range, but got values from 0.0"),
        ],
    )
    def test_refuses_options(self, images, linear, options, message):
        with pytest.raises(ValueError, match=message):
            perturb(images, linear, **{"epsilon": 0.1, "steps": 2} | options)

    @pytest.mark.parametrize(
        ("transform", "message"),
        [
            (lambda x: x * 255, "the pixel range, but got values from .* to 25"),
            (lambda x: (x * 255).to(torch.uint8), "a floating-point batch"),
            (lambda x: x * torch.nan, "got values from nan to nan"),
            (lambda x: x[:0], "a floating-point batch"),
        ],
    )
    def test_refuses_images(self, images, linear, transform, message):
        with pytest.raises(ValueError, match=message):
            perturb(transform(images), linear, epsilon=0.1, steps=2)

    @pytest.mark.parametrize(
        ("loss", "message"),
        [
            (lambda x: x.mean(), "a loss for each of the 16 images.*\n.*reduction"),
            (lambda x: 3.0, "a loss for each of the 16 images"),
            (lambda x: x.detach().flatten(1).sum(1), "differentiable in the images"),
            (lambda x: torch.ones(16, requires_grad=True), "differentiable in the images"),
        ],
    )
    def test_refuses_losses(self, images, loss, message):
        with pytest.raises(ValueError, match=message):
            perturb(images, loss, epsilon=0.1, steps=2)

    @pytest.mark.parametrize("norm", ["linf", "l2"])
    def test_refuses_infinite_gradients(self, images, norm):
        def loss(each):
            return (each - images).flatten(1).sum(1).sqrt()

        with pytest.raises(FloatingPointError, match="NaN or infinity at step 1 of 3"):
            perturb(images, loss, epsilon=0.1, steps=3, norm=norm, random_start=False)

    def test_refuses_inference_mode(self, network, images):
        labels = torch.zeros(16).long()
        with torch.inference_mode(), pytest.raises(RuntimeError, match="inference_mode=False"):
            perturb_against(network, images, labels, **FGSM)
        with torch.inference_mode():
            made = images + 0
        with pytest.raises(RuntimeError, match="clone the images"):
            perturb(made, lambda x: x.flatten(1).sum(1), epsilon=0.1, steps=1)
        assert network.training

    @pytest.mark.parametrize("epsilon", [8, 0, torch.full((16,), 8.0), True])
    def test_refuses_gray_levels(self, network, images, epsilon):
        with pytest.raises(ValueError, match="8 / 255"):
            perturb_against(network, images, torch.zeros(16).long(), epsilon=epsilon, steps=1)

    def test_refuses_labels_and_logits_of_wrong_shape(self, network, images):
        with pytest.raises(ValueError, match=r"`labels` to be as long as `images` \(16\), but got 3"):
            perturb_against(network, images, torch.zeros(3).long(), epsilon=0.1, steps=1)
        with pytest.raises(ValueError, match=r"`model` to be .* \(16, C\)"):
            perturb_against(network[:3], images, torch.zeros(16).long(), epsilon=0.1, steps=1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_ranks_draw_same_starts_as_single_rank(norm):
    images = torch.rand(6, 3, 4, 4, generator=seeded())
    options = {"epsilon": 0.2, "steps": 0, "norm": norm}
    together = perturb(images, lambda x: x.flatten(1).sum(1), generator=seeded(1), **options)
    for rank in range(2):
        part = perturb(images[rank::2], lambda x: x.flatten(1).sum(1), part=(rank, 2), generator=seeded(1), **options)
        assert torch.equal(part, together[rank::2])


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("random_start", [True, False])
def test_preserves_channels_last_with_same_result(norm, random_start):
    images = torch.rand(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    weights = torch.randn(3, 5, 5, generator=torch.Generator().manual_seed(1))
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        seen = []

        def loss(x, seen=seen, layout=layout):
            seen.append(x.is_contiguous(memory_format=layout))
            return (x * weights).flatten(1).sum(1).square()

        own = images.contiguous(memory_format=layout)
        found.append(perturb(own, loss, epsilon=0.1, steps=3, norm=norm, random_start=random_start))
        assert found[-1].is_contiguous(memory_format=layout)
        assert all(seen)
    torch.testing.assert_close(*found)
