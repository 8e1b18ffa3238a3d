"""Training a discriminator for each class against a generator of its own, all classes at once.

Smutny, "Dirty and clean-label attack detection using GAN discriminators", 2025, arXiv 2506.01224, section 3.2 and table
3.2.1.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_poison.checks import expected, fraction, not_negative, positive, positive_int, share
from lightning_poison.contexts import frozen, reproducible_kernels
from lightning_poison.data.blocks import index_blocks, read_blocks
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.models.fitting import in_channels_last
from lightning_poison.randomness import isolated_rng
from lightning_poison.runtime import Runtime
from lightning_poison.scorers.discriminator.gan_models import ClassDiscriminators, ClassGenerators


@dataclass(frozen=True)
class GanSettings:
    """How a generator and a discriminator for each class are trained; the defaults are the paper's table 3.2.1.

    Args:
        epochs: how often every image of a class is seen; those of smaller classes are seen more often.
        batch_size: images of each class a step.
        learning_rate: of Adam, with moments (.9, .999), in the first epoch.
        decay: what the learning rate is multiplied by after each epoch, in (0, 1].
        l2: the weight of the squared norm of all kernels in the loss.
        dropout: the share of a discriminator's activations that is dropped; the paper states none.

    Raises:
        ValueError: where a number is out of range.

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
            fraction("decay", self.decay, hint="1 keeps the learning rate as it is.")
        not_negative("l2", self.l2)
        if share("dropout", self.dropout) == 1:
            raise ValueError(expected("dropout", "below 1", self.dropout))

    def steps_per_epoch(self, counts: list[int]) -> int:
        """Return how many steps the largest of classes with so many images takes."""
        return max(1, max(counts) // self.batch_size)

    def total_steps(self, counts: list[int]) -> int:
        """Return how many steps a fit on classes with so many images takes."""
        return self.epochs * self.steps_per_epoch(counts)


_BETAS = (0.9, 0.999)


class Gans:
    """The discriminators and generators of all classes, and what moves their weights.

    Each loss is a binary cross-entropy with logits. No class's loss depends on another's weights, and Adam moves each
    weight for itself: so the classes are trained as they would be apart, up to rounding.

    Args:
        discriminators: one a class.
        generators: one a class, of the same number of classes.
        settings: learning rate and regularization.
        runtime: where to compute.

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
        self.discriminators = in_channels_last(discriminators.to(runtime.device)).train()
        self.generators = in_channels_last(generators.to(runtime.device)).train()
        self.optimizers = (_adam(discriminators, settings), _adam(generators, settings))
        self.decay = settings.decay
        self.runtime = runtime

    def step(self, real: Tensor, noise: Tensor) -> Tensor:
        """Move the discriminators, then the generators against them.

        Args:
            real: raw images `(B, K C, H, W)`, those of the K classes side by side.
            noise: what images are made of, `(B, K, 1, 1)`.

        Returns:
            The losses of the discriminators and of the generators, `(2, K)`, in nats.
        """
        with self.runtime.autocast():
            made = self.generators(noise)
            on_real, on_made = self.discriminators.judge(torch.cat([real, made.detach()])).chunk(2)
        telling = (F.softplus(-on_real) + F.softplus(on_made)).mean(0)
        _descend(telling, self.optimizers[0])
        with frozen(self.discriminators), self.runtime.autocast():
            fooled = self.discriminators.judge(made)
        fooling = F.softplus(-fooled).mean(0)
        _descend(fooling, self.optimizers[1])
        return torch.stack([telling, fooling]).detach()

    def end_epoch(self) -> None:
        """Lower the learning rates."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] *= self.decay


def _adam(networks: nn.Module, settings: GanSettings) -> torch.optim.Adam:
    """Return an optimizer that adds the gradient of l2 times the squared norm of the kernels; biases are left out."""
    kernels = [weight for name, weight in networks.named_parameters() if not name.endswith("bias")]
    biases = [weight for name, weight in networks.named_parameters() if name.endswith("bias")]
    groups: list[dict[str, Any]] = [{"params": kernels, "weight_decay": 2 * settings.l2}, {"params": biases}]
    return torch.optim.Adam(groups, lr=settings.learning_rate, betas=_BETAS)


def _descend(losses: Tensor, optimizer: torch.optim.Adam) -> None:
    """Move the weights of each class down its own loss."""
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
    """Train the discriminators in place against generators, and return them in evaluation mode.

    It differs from the paper in that a class with fewer images than the largest sees them more often, not for fewer
    steps. The result does not depend on the number of workers.

    Args:
        discriminators: one for each class.
        dataset: a map-style data set.
        labels: int64 `(N,)`, its labels.
        width: of the generators.
        settings: how.
        sample: where input and label stand in a sample.
        runtime: where to compute.
        generator: the only source of randomness.
        max_steps: stop after so many steps, as a rehearsal does.

    Raises:
        FloatingPointError: where a loss is no longer finite.
        UnreadableSampleError: where a sample cannot be read.
        ValueError: where a class has fewer than two samples.

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
    members = members_of(labels, discriminators.num_classes)
    counts = [len(each) for each in members]
    seed = int(torch.randint(2**31, (1,), generator=generator))
    stop = min(settings.total_steps(counts), max_steps or settings.total_steps(counts))
    generators = ClassGenerators(discriminators.shape, discriminators.num_classes, width=width, seed=seed)
    gans, pixels, done = Gans(discriminators, generators, settings, runtime), discriminators.pixels, 0
    with (
        isolated_rng(seed, runtime.device),
        reproducible_kernels(runtime.device, runtime.threads),
        runtime.progress(stop, "fitting the discriminators") as progress,
    ):
        while done < stop:
            blocks = _epoch(members, settings, generator)[: stop - done]
            reading = int(torch.randint(2**31, (1,), generator=generator))
            for block in read_blocks(dataset, blocks, sample=sample, seed=reading, num_workers=runtime.num_workers):
                real = side_by_side(pixels.to_raw(block.inputs), len(members)).to(runtime.device)
                noise = torch.randn(len(real), len(members), 1, 1, generator=generator).to(runtime.device)
                _check_finite(gans.step(real, noise), done)
                done += 1
                progress.advance()
            gans.end_epoch()
    return discriminators.eval()


def members_of(labels: Tensor, num_classes: int) -> list[Tensor]:
    """Return the positions of the samples of each class.

    Raises:
        ValueError: where a class has fewer than two.

    Example:
        >>> members_of(torch.tensor([0, 1, 0, 1, 1]), 2)
        [tensor([0, 2]), tensor([1, 3, 4])]
    """
    members = [(labels == number).nonzero().flatten() for number in range(num_classes)]
    for number, own in enumerate(members):
        if len(own) < 2:
            what, came = "data with at least two samples of each class", f"{len(own)} of class {number}"
            hint = "Add samples of it, number the classes without gaps, or use the mode `mismatch`."
            raise ValueError(expected("trusted", what, came, hint))
    return members


def side_by_side(images: Tensor, num_classes: int) -> Tensor:
    """Put a batch of each class, one after the other, `(K B, C, H, W)`, side by side: `(B, K C, H, W)`.

    Example:
        >>> side_by_side(torch.arange(6.0).view(6, 1, 1, 1), 2)[:, :, 0, 0]
        tensor([[0., 3.],
                [1., 4.],
                [2., 5.]])
    """
    return images.view(num_classes, -1, *images.shape[1:]).transpose(0, 1).flatten(1, 2)


def _epoch(members: list[Tensor], settings: GanSettings, generator: torch.Generator) -> list[Tensor]:
    """Return the samples of each step, those of one class behind those of another."""
    steps = settings.steps_per_epoch([len(own) for own in members])
    needed = steps * settings.batch_size
    drawn = []
    for own in members:
        rounds = [torch.randperm(len(own), generator=generator) for _ in range(-(-needed // len(own)))]
        drawn.append(own[torch.cat(rounds)[:needed]].view(steps, settings.batch_size))
    return index_blocks(torch.stack(drawn, dim=1).flatten(), len(members) * settings.batch_size)


def _check_finite(losses: Tensor, step: int) -> None:
    if not torch.isfinite(losses).all():
        number = int((~torch.isfinite(losses)).any(0).nonzero()[0])
        came = f"{losses[:, number].tolist()} at step {step}, class {number}"
        raise FloatingPointError(expected("loss", "finite", came, "Lower `learning_rate`, or look at the inputs."))
