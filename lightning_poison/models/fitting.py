"""The training loop shared by scorers, surrogates and benchmarks."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_poison.checks import expected, positive, positive_int
from lightning_poison.contexts import reproducible_kernels
from lightning_poison.data.blocks import index_blocks, read_blocks
from lightning_poison.data.labels import spec_of
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.models.fit_state import FitState
from lightning_poison.runtime import LocalRuntime, Runtime

ModuleT = TypeVar("ModuleT", bound=nn.Module)

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""Maps a module, inputs `(B, ...)` and labels `(B,)` to a scalar loss."""


@dataclass(frozen=True)
class FitSettings:
    """Settings of a training run: Adam with a one-cycle schedule, gradient clipping and random shifts of images.

    Args:
        epochs: Minimum number of epochs. Default: 8.
        batch_size: Samples per step. A smaller last batch of an epoch is dropped. Default: 128.
        learning_rate: Peak of the schedule. Default: 5e-3.
        min_steps: Minimum number of steps. Small data sets are trained on for more epochs. Default: 300.
        clip_norm: Maximum norm of the gradient. Default: 5.
        shift: Maximum random shift of an image in each direction, in pixels, with the edges repeated. Vectors are not
            shifted. Default: a fifteenth of the shorter side.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> FitSettings(epochs=2, batch_size=50, min_steps=0).total_steps(1000)
        40
        >>> FitSettings(epochs=2, batch_size=50, min_steps=300).total_steps(1000)
        300
    """

    epochs: int = 8
    batch_size: int = 128
    learning_rate: float = 5e-3
    min_steps: int = 300
    clip_norm: float = 5.0
    shift: int | None = None

    def __post_init__(self) -> None:
        positive_int("epochs", self.epochs)
        positive_int("batch_size", self.batch_size, minimum=2)
        positive("learning_rate", self.learning_rate)
        positive_int("min_steps", self.min_steps, minimum=0)
        positive("clip_norm", self.clip_norm)
        if self.shift is not None:
            positive_int("shift", self.shift, minimum=0)

    def steps_per_epoch(self, length: int) -> int:
        """Return the number of batches in an epoch of a data set with `length` samples."""
        return max(1, length // self.batch_size)

    def total_steps(self, length: int) -> int:
        """Return the number of steps of a run on a data set with `length` samples."""
        epoch = self.steps_per_epoch(length)
        return epoch * max(self.epochs, math.ceil(self.min_steps / epoch))


def fit_module(
    module: nn.Module,
    dataset: Any,
    loss: Loss,
    *,
    settings: FitSettings,
    sample: SampleSpec | None = None,
    runtime: Runtime | None = None,
    generator: torch.Generator | None = None,
    description: str = "Fitting",
    max_steps: int | None = None,
) -> nn.Module:
    """Train a module in place and return it in evaluation mode.

    The result depends only on the data, the settings and the generator, not on the number of workers or ranks.

    Args:
        module: Module to train, on any device.
        dataset: Map-style data set.
        loss: Loss to minimize. Computed under the runtime's autocast.
        settings: Training settings.
        sample: Location of input and label in a sample. Default: detected.
        runtime: Device, precision and workers. Default: `LocalRuntime()`, the CPU.
        generator: The only source of randomness. Default: a fixed seed.
        description: Label of the progress bar. Default: `"Fitting"`.
        max_steps: Step after which training stops early. Default: no limit.

    Raises:
        FloatingPointError: If the loss is not finite.
        UnreadableSampleError: If a sample cannot be read.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> labels = torch.arange(60) % 2
        >>> dataset = TensorDataset(F.one_hot(labels).float(), labels)
        >>> quick = FitSettings(epochs=10, batch_size=20, learning_rate=0.1, min_steps=0)
        >>> def loss(module, inputs, labels):
        ...     return F.cross_entropy(module(inputs), labels)
        >>> model = fit_module(nn.Linear(2, 2), dataset, loss, settings=quick)
        >>> model(torch.eye(2)).argmax(1), model.training
        (tensor([0, 1]), False)
    """
    runtime = runtime or LocalRuntime()
    generator = generator or torch.Generator().manual_seed(0)
    steps = settings.total_steps(len(dataset))
    to_channels_last(module.to(runtime.device)).train()
    optimizer = torch.optim.Adam(module.parameters(), lr=settings.learning_rate)
    total = max(steps, 3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=total, pct_start=max(0.2, 2 / total)
    )
    stop = min(steps, max_steps or steps)
    spec = sample or spec_of(dataset)
    epoch_start = torch.Generator()
    state = FitState(
        {"module": module},
        [optimizer],
        {"draws": generator, "epoch start": epoch_start},
        runtime,
        {**vars(settings), "stop": stop, "samples": len(dataset), "description": description},
        {"loss": loss} if hasattr(loss, "state_dict") else {},
    )
    done, passed = state.resume() or (0, 0)
    schedule.last_epoch += done
    with reproducible_kernels(runtime.device, runtime.threads), runtime.progress(stop, description) as progress:
        progress.advance(done)
        while done < stop:
            if not passed:
                epoch_start.set_state(generator.get_state())
            blocks, seed = _epoch(len(dataset), settings, epoch_start, generator, passed)
            blocks = blocks[passed : passed + stop - done]
            for block in read_blocks(dataset, blocks, sample=spec, seed=seed, num_workers=runtime.num_workers):
                inputs = _shifted(block.inputs, settings.shift, generator).to(runtime.device)
                with runtime.autocast():
                    value = loss(module, _channels_last(inputs), block.labels.to(runtime.device))
                _step(value, module, optimizer, settings.clip_norm, done)
                schedule.step()
                done, passed = done + 1, passed + 1
                progress.advance()
                state.save((done, passed))
            passed = 0
    state.save((done, passed), now=True)
    return module.eval()


def to_channels_last(module: ModuleT) -> ModuleT:
    """Convert the weights of a module to the channels-last memory format, in place, and return the module.

    A module with five-dimensional weights or buffers, such as `Conv3d`, does not change: torch has no such format for
    them.

    Example:
        >>> network = to_channels_last(nn.Conv2d(3, 8, 3))
        >>> network.weight.is_contiguous(memory_format=torch.channels_last)
        True
    """
    if any(tensor.ndim > 4 for tensor in (*module.parameters(), *module.buffers())):
        return module
    return module.to(memory_format=torch.channels_last)


def _epoch(
    length: int, settings: FitSettings, start: torch.Generator, generator: torch.Generator, passed: int
) -> tuple[list[Tensor], int]:
    """Draw the blocks of an epoch and the seed of its reads; again, from its start, if some of them have passed."""
    source = generator
    if passed:
        source = torch.Generator()
        source.set_state(start.get_state())
    order = torch.randperm(length, generator=source)
    seed = int(torch.randint(2**31, (1,), generator=source))
    return index_blocks(order, settings.batch_size)[: settings.steps_per_epoch(length)], seed


def _step(loss: Tensor, module: nn.Module, optimizer: torch.optim.Optimizer, clip_norm: float, step: int) -> None:
    if not torch.isfinite(loss):
        raise FloatingPointError(
            expected("loss", "finite", f"{loss.item()} at step {step}")
            + "\nLower `learning_rate`, or check the inputs."
        )
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(module.parameters(), clip_norm)
    optimizer.step()


def _channels_last(inputs: Tensor) -> Tensor:
    return inputs.contiguous(memory_format=torch.channels_last) if inputs.ndim == 4 else inputs


def _shifted(inputs: Tensor, shift: int | None, generator: torch.Generator) -> Tensor:
    """Shift each image by a random offset."""
    if inputs.ndim != 4:
        return inputs
    count, _, height, width = inputs.shape
    limit = round(min(height, width) / 15) if shift is None else shift
    if not limit:
        return inputs
    padded = F.pad(inputs, (limit,) * 4, mode="replicate")
    rows, columns = (torch.randint(2 * limit + 1, (count, 1), generator=generator) for _ in range(2))
    rows, columns = rows + torch.arange(height), columns + torch.arange(width)
    shifted = padded[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return shifted.permute(0, 3, 1, 2)
