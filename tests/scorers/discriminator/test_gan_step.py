"""All classes at once are trained as each alone would be, and a step by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from lightning_poison.runtime import LocalRuntime
from lightning_poison.scorers.discriminator.gan import Gans, GanSettings
from lightning_poison.scorers.discriminator.gan_models import ClassDiscriminators, ClassGenerators

RUNTIME = LocalRuntime(precision="32", threads=1)
SETTINGS = GanSettings(learning_rate=1e-2, l2=1e-3)
CLASSES, SHAPE = 3, (2, 8, 8)


def networks(classes, *, seed=0):
    return (
        ClassDiscriminators(SHAPE, classes, width=4, dropout=0.0, seed=seed),
        ClassGenerators(SHAPE, classes, width=4, seed=seed + 1),
    )


def alone(together, number):
    """Return networks of one class that hold the weights of that class."""
    singles = networks(1, seed=50)
    for single, joint in zip(singles, together, strict=True):
        with torch.no_grad():
            for own, weight in zip(single.parameters(), joint.parameters(), strict=True):
                own.copy_(weight.chunk(CLASSES)[number])
    return singles


def batches(count):
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        yield (
            torch.rand(6, CLASSES * SHAPE[0], 8, 8, generator=generator),
            torch.randn(6, CLASSES, 1, 1, generator=generator),
        )


def test_all_at_once_are_each_alone():
    together = networks(CLASSES)
    singles = [alone(together, number) for number in range(CLASSES)]
    gans = Gans(*together, SETTINGS, RUNTIME)
    apart = [Gans(*each, SETTINGS, RUNTIME) for each in singles]
    for real, noise in batches(2):
        losses = gans.step(real, noise)
        for number, own in enumerate(apart):
            images = real.unflatten(1, (CLASSES, -1))[:, number]
            torch.testing.assert_close(own.step(images, noise[:, number : number + 1])[:, 0], losses[:, number])
    for number, single in enumerate(singles):
        for mine, joint in zip(single, together, strict=True):
            for weight, all_weights in zip(mine.parameters(), joint.parameters(), strict=True):
                torch.testing.assert_close(weight, all_weights.chunk(CLASSES)[number], atol=2e-5, rtol=1e-4)


def test_the_losses_by_hand():
    gans = Gans(*networks(1), SETTINGS, RUNTIME)
    with torch.no_grad():
        for weight in gans.discriminators.output.parameters():
            weight.zero_()
    real, noise = next(batches(1))
    telling, fooling = gans.step(real[:, :2], noise[:, :1])[:, 0].tolist()
    assert telling == pytest.approx(2 * math.log(2))
    assert fooling != pytest.approx(math.log(2), abs=1e-6)  # by then the discriminator has moved


def test_the_generator_moves_to_fool_and_the_discriminator_to_tell():
    gans = Gans(*networks(1), GanSettings(learning_rate=1e-4, l2=0.0), RUNTIME)
    real, noise = next(batches(1))
    real, noise = real[:, :2], noise[:, :1]

    def telling(judge, generate):
        with torch.no_grad():
            return float((F.softplus(-judge.judge(real)) + F.softplus(judge.judge(generate(noise)))).mean())

    before = [weight.clone() for weight in (*gans.discriminators.parameters(), *gans.generators.parameters())]
    first = gans.step(real, noise)[0, 0].item()
    after = [*gans.discriminators.parameters(), *gans.generators.parameters()]
    assert all(not torch.equal(*pair) for pair in zip(before, after, strict=True))
    unmoved = networks(1)
    assert telling(*unmoved) == pytest.approx(first, rel=1e-4)
    assert telling(gans.discriminators, unmoved[1]) < first
    with torch.no_grad():
        fooled = [float(gans.discriminators.judge(each(noise)).mean()) for each in (unmoved[1], gans.generators)]
    assert fooled[1] > fooled[0]


def test_the_norm_of_kernels_is_in_the_loss_and_that_of_biases_is_not():
    gans = Gans(*networks(1), SETTINGS, RUNTIME)
    for optimizer in gans.optimizers:
        decays = [
            (weight.ndim, group["weight_decay"]) for group in optimizer.param_groups for weight in group["params"]
        ]
        assert {decay for dimensions, decay in decays if dimensions > 1} == {2 * SETTINGS.l2}
        assert {decay for dimensions, decay in decays if dimensions == 1} == {0}


def test_the_learning_rate_falls_each_epoch():
    gans = Gans(*networks(1), GanSettings(), RUNTIME)
    gans.end_epoch()
    gans.end_epoch()
    rates = [group["lr"] for optimizer in gans.optimizers for group in optimizer.param_groups]
    assert rates == pytest.approx([1e-5 * 0.97**2] * 4)
