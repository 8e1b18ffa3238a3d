import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset

from lightning_poison.data.sample_digests import SampleDigests
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.models import fit_state
from lightning_poison.runtime import LocalRuntime
from lightning_poison.sanitization.units import FileUnits
from lightning_poison.scorers.discriminator.gan import (
    Gans,
    GanSettings,
    _epoch,
    fit_gans,
    positions_by_class,
    side_by_side,
)
from lightning_poison.scorers.discriminator.gan_models import ClassDiscriminators, ClassGenerators


def test_defaults_match_table_of_the_paper():
    settings = GanSettings()
    assert (settings.epochs, settings.batch_size, settings.learning_rate) == (75, 32, 1e-5)
    assert (settings.decay, settings.l2) == (0.97, 1e-5)


@pytest.mark.parametrize(("counts", "steps"), [([1000, 1000], 31), ([64, 100], 3), ([5, 3], 1)])
def test_largest_class_determines_the_steps(counts, steps):
    settings = GanSettings(epochs=2)
    assert settings.steps_per_epoch(counts) == steps
    assert settings.total_steps(counts) == 2 * steps


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, "`epochs`"),
        ({"batch_size": 0}, "`batch_size`"),
        ({"learning_rate": 0}, "`learning_rate`"),
        ({"decay": 1.5}, r"`decay` to be a number in \(0, 1\), but got 1.5.\nUse 1"),
        ({"l2": -1}, "`l2`"),
        ({"dropout": 1}, "`dropout` to be below 1"),
        ({"dropout": -0.1}, "`dropout`"),
    ],
)
def test_refuses_numbers_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        GanSettings(**arguments)


def test_accepts_a_constant_learning_rate():
    assert GanSettings(decay=1.0).decay == 1


RUNTIME = LocalRuntime(precision="32", threads=1)
SETTINGS = GanSettings(learning_rate=1e-2, l2=1e-3)
CLASSES, SHAPE = 3, (2, 8, 8)


def networks(classes, *, seed=0):
    return (
        ClassDiscriminators(SHAPE, classes, width=4, dropout=0.0, seed=seed),
        ClassGenerators(SHAPE, classes, width=4, seed=seed + 1),
    )


def of_one_class(together, number):
    """Return networks of one class with the weights of that class."""
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


def test_joint_training_matches_separate_training():
    together = networks(CLASSES)
    singles = [of_one_class(together, number) for number in range(CLASSES)]
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


def test_losses_match_closed_form():
    gans = Gans(*networks(1), SETTINGS, RUNTIME)
    with torch.no_grad():
        for weight in gans.discriminators.output.parameters():
            weight.zero_()
    real, noise = next(batches(1))
    discriminator_loss, generator_loss = gans.step(real[:, :2], noise[:, :1])[:, 0].tolist()
    assert discriminator_loss == pytest.approx(2 * math.log(2))
    assert generator_loss != pytest.approx(math.log(2), abs=1e-6)  # the discriminator was updated before


def test_a_step_lowers_both_losses():
    gans = Gans(*networks(1), GanSettings(learning_rate=1e-4, l2=0.0), RUNTIME)
    real, noise = next(batches(1))
    real, noise = real[:, :2], noise[:, :1]

    def discriminator_loss(discriminator, generator):
        with torch.no_grad():
            on_real, on_fake = (discriminator.logits_of_raw(images) for images in (real, generator(noise)))
            return float((F.softplus(-on_real) + F.softplus(on_fake)).mean())

    before = [weight.clone() for weight in (*gans.discriminators.parameters(), *gans.generators.parameters())]
    first = gans.step(real, noise)[0, 0].item()
    after = [*gans.discriminators.parameters(), *gans.generators.parameters()]
    assert all(not torch.equal(*pair) for pair in zip(before, after, strict=True))
    initial = networks(1)
    assert discriminator_loss(*initial) == pytest.approx(first, rel=1e-4)
    assert discriminator_loss(gans.discriminators, initial[1]) < first
    with torch.no_grad():
        fakes = [generator(noise) for generator in (initial[1], gans.generators)]
        logits = [float(gans.discriminators.logits_of_raw(images).mean()) for images in fakes]
    assert logits[1] > logits[0]


def test_weight_decay_applies_to_kernels_only():
    gans = Gans(*networks(1), SETTINGS, RUNTIME)
    for optimizer in gans.optimizers:
        decays = [
            (weight.ndim, group["weight_decay"]) for group in optimizer.param_groups for weight in group["params"]
        ]
        assert {decay for dimensions, decay in decays if dimensions > 1} == {2 * SETTINGS.l2}
        assert {decay for dimensions, decay in decays if dimensions == 1} == {0}


def test_learning_rate_decays_each_epoch():
    gans = Gans(*networks(1), GanSettings(), RUNTIME)
    gans.end_epoch()
    gans.end_epoch()
    rates = [group["lr"] for optimizer in gans.optimizers for group in optimizer.param_groups]
    assert rates == pytest.approx([1e-5 * 0.97**2] * 4)


def fitted(data, *, seed=0, **settings):
    model = ClassDiscriminators((1, 8, 8), int(data.tensors[1].max()) + 1, width=2)
    return fit_gans(
        model,
        data,
        data.tensors[1],
        width=2,
        settings=GanSettings(**{"epochs": 1, "batch_size": 4, "learning_rate": 1e-3, **settings}),
        sample=SampleSpec(),
        runtime=RUNTIME,
        generator=torch.Generator().manual_seed(seed),
    )


@pytest.fixture
def images():
    return TensorDataset(torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 4)


def test_each_network_sees_only_its_class(images, monkeypatch):
    inputs, labels = images.tensors
    painted = TensorDataset(torch.zeros_like(inputs) + labels[:, None, None, None] / 4, labels)
    seen = []
    step = Gans.step
    monkeypatch.setattr(Gans, "step", lambda self, real, noise: seen.append(real) or step(self, real, noise))
    fitted(painted)
    assert len(seen) == 10 // 4
    for real in seen:
        assert real.shape == (4, 4, 8, 8)
        assert torch.equal(real[:, :, 0, 0], (torch.arange(4) / 4).expand(4, 4))


def test_weights_depend_on_the_generator_and_not_on_the_global_state(images):
    found = torch.get_rng_state()
    one, two, other = (fitted(images, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(torch.get_rng_state(), found)


def test_epoch_contains_each_image_of_the_largest_class_once():
    labels = torch.tensor([0] * 12 + [1] * 5)
    settings = GanSettings(batch_size=4)
    drawn = torch.Generator().manual_seed(0)
    steps, _ = _epoch(positions_by_class(labels, 2), settings, torch.Generator(), drawn, 0)
    assert [len(step) for step in steps] == [8, 8, 8]
    first, second = (torch.cat([step[part] for step in steps]) for part in (slice(4), slice(4, None)))
    assert first.sort().values.tolist() == list(range(12))
    assert set(second.tolist()) == set(range(12, 17))
    assert sorted(second.bincount(minlength=17)[12:].tolist()) == [2, 2, 2, 3, 3]


def test_side_by_side_groups_channels_by_class():
    images = torch.arange(2 * 3 * 2).view(6, 2, 1, 1)
    expected = [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]
    assert side_by_side(images, 2)[:, :, 0, 0].tolist() == expected


@pytest.mark.parametrize(("labels", "received"), [([0, 0, 1], "1 of class 1"), ([1, 1], "0 of class 0")])
def test_refuses_class_of_one_or_none(labels, received):
    with pytest.raises(ValueError, match=rf"`trusted` to be .* but got {received}\.\nAdd samples of it"):
        positions_by_class(torch.tensor(labels), 2)


def test_refuses_loss_that_is_not_finite(images):
    with pytest.raises(FloatingPointError, match=r"`loss` to be finite, but got .* at step \d+, class \d"):
        fitted(images, learning_rate=1e30, epochs=3)


class InterruptedFitError(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("saves", [1, 3, 4, 6])
def test_interrupted_fit_continues_bit_for_bit(tmp_path, monkeypatch, saves):
    monkeypatch.setattr(fit_state.SaveTimer, "is_due", lambda self: True)
    images = torch.rand(14, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(images, torch.arange(14) % 2)

    class Stopping(FileUnits):
        left = saves

        def save(self, name, tensors, meta):
            super().save(name, tensors, meta)
            Stopping.left -= 1
            if not Stopping.left:
                raise InterruptedFitError

    def fit(units=None):
        runtime = LocalRuntime(precision="32", threads=1)
        runtime.units = units or runtime.units
        settings = GanSettings(epochs=3, batch_size=3, learning_rate=1e-2)
        generator = torch.Generator().manual_seed(1)
        model = fit_gans(
            ClassDiscriminators((1, 8, 8), 2),
            data,
            data.tensors[1],
            width=4,
            settings=settings,
            sample=SampleSpec(),
            runtime=runtime,
            generator=generator,
        )
        return {**model.state_dict(), "generator": generator.get_state()}

    torch.manual_seed(0)
    whole = fit()
    torch.manual_seed(0)
    with pytest.raises(InterruptedFitError):
        fit(Stopping(tmp_path, SampleDigests(0)))
    torch.manual_seed(0)
    continued = fit(FileUnits(tmp_path, SampleDigests(0)))
    assert all(torch.equal(whole[name], continued[name]) for name in whole)
