"""Training of one discriminator per class against a generator of the same class, all classes at once.

Smutny, "Dirty and clean-label attack detection using GAN discriminators", 2025, arXiv 2506.01224, section 3.2 and table
3.2.1.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_poison.checks import expected, fraction, not_negative, plain_numbers, positive, positive_int, share
from lightning_poison.contexts import frozen, reproducible_kernels
from lightning_poison.data.blocks import index_blocks
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.data.transfer import read_on_device
from lightning_poison.models.fit_state import FitState
from lightning_poison.models.fitting import to_channels_last
from lightning_poison.randomness import isolated_rng
from lightning_poison.runtime import Runtime
from lightning_poison.scorers.discriminator.gan_models import ClassDiscriminators, ClassGenerators

_BETAS = (0.9, 0.999)


@dataclass(frozen=True)
class GanSettings:
    """Training settings of a generator and a discriminator per class. The defaults are the paper's table 3.2.1.

    Args:
        epochs: Number of passes over the largest class. Images of smaller classes are seen more often. Default: 75.
        batch_size: Images of each class per step. Default: 32.
        learning_rate: Of Adam, with moments (.9, .999), in the first epoch. Default: 1e-5.
        decay: Factor of the learning rate after each epoch, in (0, 1]. Default: .97.
        l2: Weight of the squared norm of all kernels in the loss. Default: 1e-5.
        dropout: Dropout rate of a discriminator, in [0, 1). The paper states none. Default: .3.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> GanSettings(epochs=25).total_steps([1000, 900])
        775
    """

    epochs: int = 75
    batch_size: int = 32
    learning_rate: float = 1e-5
    decay: float = 0.97
    l2: float = 1e-5
    dropout: float = 0.3

    def __post_init__(self) -> None:
        positive_int("epochs", self.epochs)
        positive_int("batch_size", self.batch_size)
        positive("learning_rate", self.learning_rate)
        if self.decay != 1:
            fraction("decay", self.decay, hint="Use 1 for a constant learning rate.")
        not_negative("l2", self.l2)
        plain_numbers(self)
        if share("dropout", self.dropout) == 1:
            raise ValueError(expected("dropout", "below 1", self.dropout))

    def steps_per_epoch(self, counts: list[int]) -> int:
        """Return the number of steps per epoch on classes with these numbers of images; the largest determines it."""
        return max(1, max(counts) // self.batch_size)

    def total_steps(self, counts: list[int]) -> int:
        """Return the number of steps of a fit on classes with these numbers of images."""
        return self.epochs * self.steps_per_epoch(counts)


class Gans:
    """The discriminators and generators of all classes, and their optimizers.

    Each loss is a binary cross-entropy with logits. The loss of a class does not depend on the weights of another, and
    Adam updates each weight separately: so the classes are trained as they would be one by one, up to rounding.

    Args:
        discriminators: One per class.
        generators: One per class, for the same number of classes.
        settings: Learning rate and regularization.
        runtime: Device and precision.

    Example:
        >>> from lightning_poison.runtime import LocalRuntime
        >>> shape = (1, 8, 8)
        >>> gans = Gans(ClassDiscriminators(shape, 2), ClassGenerators(shape, 2), GanSettings(), LocalRuntime())
        >>> gans.step(torch.zeros(4, 2, 8, 8), torch.zeros(4, 2, 1, 1)).shape
        torch.Size([2, 2])
    """

    def __init__(
        self,
        discriminators: ClassDiscriminators,
        generators: ClassGenerators,
        settings: GanSettings,
        runtime: Runtime,
    ) -> None:
        self.discriminators = to_channels_last(discriminators.to(runtime.device)).train()
        self.generators = to_channels_last(generators.to(runtime.device)).train()
        self.optimizers = (_adam(discriminators, settings), _adam(generators, settings))
        self.decay = settings.decay
        self.runtime = runtime

    def step(self, real: Tensor, noise: Tensor) -> Tensor:
        """Update the discriminators, then the generators against them.

        Args:
            real: Raw images `(B, K C, H, W)`, the channels of the K classes side by side.
            noise: Inputs of the generators, `(B, K, 1, 1)`.

        Returns:
            Losses of the discriminators and of the generators, `(2, K)`, in nats.
        """
        with self.runtime.autocast():
            fake = self.generators(noise)
            on_real, on_fake = self.discriminators.logits_of_raw(torch.cat([real, fake.detach()])).chunk(2)
        discriminator_losses = (F.softplus(-on_real) + F.softplus(on_fake)).mean(0)
        _update(discriminator_losses, self.optimizers[0])
        with frozen(self.discriminators), self.runtime.autocast():
            logits = self.discriminators.logits_of_raw(fake)
        generator_losses = F.softplus(-logits).mean(0)
        _update(generator_losses, self.optimizers[1])
        return torch.stack([discriminator_losses, generator_losses]).detach()

    def end_epoch(self) -> None:
        """Decay the learning rates."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] *= self.decay


def _adam(networks: nn.Module, settings: GanSettings) -> torch.optim.Adam:
    """Return an optimizer that adds the gradient of l2 times the squared norm of the kernels, but not of the biases."""
    kernels = [weight for name, weight in networks.named_parameters() if not name.endswith("bias")]
    biases = [weight for name, weight in networks.named_parameters() if name.endswith("bias")]
    groups: list[dict[str, Any]] = [{"params": kernels, "weight_decay": 2 * settings.l2}, {"params": biases}]
    return torch.optim.Adam(groups, lr=settings.learning_rate, betas=_BETAS)


def _update(losses: Tensor, optimizer: torch.optim.Adam) -> None:
    """Update the weights of each class by the gradient of its loss."""
    optimizer.zero_grad(set_to_none=True)
    losses.sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def fit_gans(
    discriminators: ClassDiscriminators,
    dataset: Any,
    labels: Tensor,
    *,
    width: int,
    settings: GanSettings,
    sample: SampleSpec,
    runtime: Runtime,
    generator: torch.Generator,
    max_steps: int | None = None,
) -> ClassDiscriminators:
    """Train discriminators in place against generators, and return them in evaluation mode.

    It differs from the paper in that classes with fewer images than the largest see them more often, rather than for
    fewer steps. The result does not depend on the number of workers.

    Args:
        discriminators: One per class.
        dataset: Map-style data set.
        labels: Labels of the data set, int64 `(N,)`.
        width: Width of the generators.
        settings: Training settings.
        sample: Location of input and label in a sample.
        runtime: Device, precision and workers.
        generator: The only source of randomness.
        max_steps: Step after which training stops early. Default: no limit.

    Raises:
        FloatingPointError: If a loss is not finite.
        UnreadableSampleError: If a sample cannot be read.
        ValueError: If a class has fewer than two samples.

    Example:
        >>> from lightning_poison.runtime import LocalRuntime
        >>> from torch.utils.data import TensorDataset
        >>> data = TensorDataset(torch.rand(8, 1, 8, 8), torch.arange(8) % 2)
        >>> model = fit_gans(
        ...     ClassDiscriminators((1, 8, 8), 2), data, data.tensors[1], width=4, settings=GanSettings(epochs=1),
        ...     sample=SampleSpec(), runtime=LocalRuntime(), generator=torch.Generator().manual_seed(0),
        ... )
        >>> model.training
        False
    """
    positions = positions_by_class(labels, discriminators.num_classes)
    counts = [len(each) for each in positions]
    seed = int(torch.randint(2**31, (1,), generator=generator))
    stop = min(settings.total_steps(counts), max_steps or settings.total_steps(counts))
    generators = ClassGenerators(discriminators.shape, discriminators.num_classes, width=width, seed=seed)
    gans, pixels = Gans(discriminators, generators, settings, runtime), discriminators.pixels
    epoch_start = torch.Generator()
    with (
        isolated_rng(seed, runtime.device),
        reproducible_kernels(runtime.device, runtime.threads),
        runtime.progress(stop, "Fitting the discriminators") as progress,
    ):
        state = FitState(
            {"discriminators": discriminators, "generators": generators},
            gans.optimizers,
            {"draws": generator, "epoch start": epoch_start},
            runtime,
            {**vars(settings), "stop": stop, "counts": counts, "width": width},
        )
        done, passed = state.resume() or (0, 0)
        progress.advance(done)
        while done < stop:
            if not passed:
                epoch_start.set_state(generator.get_state())
            blocks, read_seed = _epoch(positions, settings, epoch_start, generator, passed)
            blocks = blocks[passed : passed + stop - done]
            device, workers = runtime.device, runtime.num_workers
            for block in read_on_device(dataset, blocks, device, sample=sample, seed=read_seed, num_workers=workers):
                real = side_by_side(pixels.to_raw(block.inputs), len(positions))
                noise = torch.randn(len(real), len(positions), 1, 1, generator=generator).to(runtime.device)
                _check_finite(gans.step(real, noise), done)
                done, passed = done + 1, passed + 1
                if passed == settings.steps_per_epoch(counts):
                    gans.end_epoch()
                    passed = 0
                progress.advance()
                state.save((done, passed))
        state.save((done, passed), now=True)
    return discriminators.eval()


def positions_by_class(labels: Tensor, num_classes: int) -> list[Tensor]:
    """Return the positions of the samples of each class.

    Raises:
        ValueError: If a class has fewer than two samples.

    Example:
        >>> positions_by_class(torch.tensor([0, 1, 0, 1, 1]), 2)
        [tensor([0, 2]), tensor([1, 3, 4])]
    """
    positions = [(labels == label).nonzero().flatten() for label in range(num_classes)]
    for label, own in enumerate(positions):
        if len(own) < 2:
            what, came = "data with at least two samples of each class", f"{len(own)} of class {label}"
            hint = "Add samples of it, number the classes without gaps, or use the mode `mismatch`."
            raise ValueError(expected("trusted", what, came, hint))
    return positions


def side_by_side(images: Tensor, num_classes: int) -> Tensor:
    """Rearrange images of each class, one class after another, `(K B, C, H, W)`, to `(B, K C, H, W)`.

    Example:
        >>> side_by_side(torch.arange(6.0).view(6, 1, 1, 1), 2)[:, :, 0, 0]
        tensor([[0., 3.],
                [1., 4.],
                [2., 5.]])
    """
    return images.view(num_classes, -1, *images.shape[1:]).transpose(0, 1).flatten(1, 2)


def _epoch(
    positions: list[Tensor], settings: GanSettings, start: torch.Generator, generator: torch.Generator, passed: int
) -> tuple[list[Tensor], int]:
    """Draw the samples of each step, one class after another, and the seed of reads; again if some have passed."""
    source = generator
    if passed:
        source = torch.Generator()
        source.set_state(start.get_state())
    steps = settings.steps_per_epoch([len(own) for own in positions])
    needed = steps * settings.batch_size
    drawn = []
    for own in positions:
        rounds = [torch.randperm(len(own), generator=source) for _ in range(-(-needed // len(own)))]
        drawn.append(own[torch.cat(rounds)[:needed]].view(steps, settings.batch_size))
    blocks = index_blocks(torch.stack(drawn, dim=1).flatten(), len(positions) * settings.batch_size)
    return blocks, int(torch.randint(2**31, (1,), generator=source))


def _check_finite(losses: Tensor, step: int) -> None:
    if not torch.isfinite(losses).all():
        label = int((~torch.isfinite(losses)).any(0).nonzero()[0])
        came = f"{losses[:, label].tolist()} at step {step}, class {label}"
        raise FloatingPointError(expected("loss", "finite", came, "Lower `learning_rate`, or check the inputs."))
