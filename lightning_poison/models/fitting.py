"""The training loop shared by scorers, surrogates and benchmarks."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_poison.checks import boolean, describe, expected, not_negative, plain_numbers, positive, positive_int
from lightning_poison.contexts import reproducible_kernels
from lightning_poison.data.blocks import BLOCK_SIZE, index_blocks, read_blocks
from lightning_poison.data.labels import spec_of
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.data.transfer import Wait, fetch, read_on_device
from lightning_poison.models.backbones import Standardization
from lightning_poison.models.fit_state import FitState
from lightning_poison.runtime import LocalRuntime, Runtime

ModuleT = TypeVar("ModuleT", bound=nn.Module)

_BATCH_SIZE, _SMALLEST_BATCH, _BATCHES = 128, 16, 8
"""Samples per step, at most; of small data sets fewer, so that an epoch has eight batches."""

_MIN_STEPS, _MOST_EPOCHS = 300, 40
"""A fit has that many steps at least, unless these are more epochs: longer fits make hard samples look mislabeled."""

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""Maps a module, inputs `(B, ...)` and labels `(B,)` to a scalar loss."""


@dataclass(frozen=True)
class FitSettings:
    """Settings of a training run: Adam with a one-cycle schedule, clipped gradients, random changes of the inputs.

    Args:
        epochs: Minimum number of epochs. Default: 8.
        batch_size: Samples per step. A smaller last batch of an epoch is dropped. Default: 128, but at most an eighth
            of the data set, or 16 if that is more.
        learning_rate: Peak of the schedule. Default: 5e-3.
        min_steps: Minimum number of steps. Small data sets are trained on for more epochs. Default: 300, but at most 40
            epochs.
        clip_norm: Maximum norm of the gradient. Default: 5.
        shift: Maximum random shift of an image in each direction, in pixels, with the edges repeated. Vectors are not
            shifted. Default: a fifteenth of the shorter side.
        mirror: Whether half of the images, drawn at random, are mirrored left to right. Default: if they have three
            channels, since digits and drawings have a direction that most photos do not have.
        noise: Standard deviation of Gaussian noise on the elements of vectors, at least 0, in units of their standard
            deviations. It applies to networks that standardize vectors, as the default one does. Default: 0.5.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> FitSettings(epochs=2, batch_size=50, min_steps=0).total_steps(1000)
        40
        >>> FitSettings(epochs=2, batch_size=50, min_steps=300).total_steps(1000)
        300
        >>> FitSettings().batch_size_for(200), FitSettings().total_steps(200)
        (25, 304)
    """

    epochs: int = 8
    batch_size: int | None = None
    learning_rate: float = 5e-3
    min_steps: int | None = None
    clip_norm: float = 5.0
    shift: int | None = None
    mirror: bool | None = None
    noise: float = 0.5

    def __post_init__(self) -> None:
        positive_int("epochs", self.epochs)
        if self.batch_size is not None:
            positive_int("batch_size", self.batch_size, minimum=2)
        positive("learning_rate", self.learning_rate)
        if self.min_steps is not None:
            positive_int("min_steps", self.min_steps, minimum=0)
        positive("clip_norm", self.clip_norm)
        if self.shift is not None:
            positive_int("shift", self.shift, minimum=0)
        if self.mirror is not None:
            boolean("mirror", self.mirror)
        not_negative("noise", self.noise)
        plain_numbers(self)

    @classmethod
    def checked(cls, value: Any, *, owner: str) -> Self:
        """Return the value of an argument `fit_settings` if it is of this class.

        Args:
            value: Value of the argument.
            owner: Class that has the argument, for the message.

        Raises:
            TypeError: If it is of another class.

        Example:
            >>> FitSettings.checked({"epochs": 3}, owner="LikelihoodScorer")
            Traceback (most recent call last):
            TypeError: Expected `fit_settings` of LikelihoodScorer to be `FitSettings`, but got dict.
            Write `fit_settings=FitSettings(epochs=8)`.
        """
        if not isinstance(value, cls):
            came = f"the class {value.__name__}" if isinstance(value, type) else describe(value)
            raise TypeError(
                f"Expected `fit_settings` of {owner} to be `FitSettings`, but got {came}.\n"
                "Write `fit_settings=FitSettings(epochs=8)`."
            )
        return value

    def batch_size_for(self, length: int) -> int:
        """Return the number of samples per step on a data set with `length` samples."""
        return self.batch_size or min(_BATCH_SIZE, max(_SMALLEST_BATCH, length // _BATCHES))

    def steps_per_epoch(self, length: int) -> int:
        """Return the number of batches in an epoch of a data set with `length` samples."""
        return max(1, length // self.batch_size_for(length))

    def total_steps(self, length: int) -> int:
        """Return the number of steps of a run on a data set with `length` samples."""
        epoch = self.steps_per_epoch(length)
        needed = min(_MIN_STEPS, _MOST_EPOCHS * epoch) if self.min_steps is None else self.min_steps
        return epoch * max(self.epochs, math.ceil(needed / epoch))


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
    before_step: Callable[[Tensor], None] | None = None,
) -> nn.Module:
    """Train a module in place and return it in evaluation mode.

    The result depends only on the data, the settings and the generator, not on the number of workers or ranks. A
    `Standardization` in the module, as the default network for vectors has, first measures the data.

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
        before_step: Called before each step with the positions of its samples, int64 `(B,)`. Optional.

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
    spread = _standardize(module, dataset, spec, runtime) * settings.noise
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
    check = _FiniteLosses(runtime.device)
    with reproducible_kernels(runtime.device, runtime.threads), runtime.progress(stop, description) as progress:
        progress.advance(done)
        while done < stop:
            if not passed:
                epoch_start.set_state(generator.get_state())
            blocks, seed = _epoch(len(dataset), settings, epoch_start, generator, passed)
            blocks = blocks[passed : passed + stop - done]
            device, workers = runtime.device, runtime.num_workers
            for block in read_on_device(dataset, blocks, device, sample=spec, seed=seed, num_workers=workers):
                inputs = _augmented(block.inputs, settings, spread, generator)
                if before_step is not None:
                    before_step(block.indices)
                with runtime.autocast():
                    value = loss(module, _channels_last(inputs), block.labels)
                check.add(value, done)
                _step(value, module, optimizer, settings.clip_norm)
                schedule.step()
                done, passed = done + 1, passed + 1
                progress.advance()
                if state.is_due:
                    check.finish()  # a state with NaN must not be stored
                    state.save((done, passed))
            passed = 0
        check.finish()
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


def _standardize(module: nn.Module, dataset: Any, sample: SampleSpec, runtime: Runtime) -> Tensor:
    """Let a module that begins by standardizing vectors measure them, and return their spread; 0 for other modules."""
    for part in module.modules():
        if isinstance(part, Standardization):
            if not part.is_measured:
                blocks = index_blocks(torch.arange(len(dataset)), BLOCK_SIZE)
                read = read_blocks(dataset, blocks, sample=sample, seed=0, num_workers=runtime.num_workers)
                part.measure(block.inputs for block in read)
            return part.spread.cpu()
    return torch.zeros(())


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
    return index_blocks(order, settings.batch_size_for(length))[: settings.steps_per_epoch(length)], seed


class _FiniteLosses:
    """Checks that losses are finite: on the CPU at once, on another device while it works on the next step.

    Waiting for each loss would leave the device idle until the next step is queued.

    Args:
        device: Device of the losses.

    Example:
        >>> _FiniteLosses(torch.device("cpu")).add(torch.tensor(torch.nan), 7)
        Traceback (most recent call last):
        FloatingPointError: Expected `loss` to be finite, but got nan at step 7.
        Lower `learning_rate`, or check the inputs.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_late = device.type != "cpu"
        self._waiting: tuple[Wait[Tensor], int] | None = None

    def add(self, loss: Tensor, step: int) -> None:
        """Check the loss of the step before, and on the CPU that of this one.

        Args:
            loss: A scalar.
            step: Number of the step, for the message.

        Raises:
            FloatingPointError: If it is not finite.
        """
        self.finish()
        self._waiting = fetch(loss), step
        if not self._is_late:
            self.finish()

    def finish(self) -> None:
        """Check the last loss.

        Raises:
            FloatingPointError: If it is not finite.
        """
        if self._waiting is None:
            return
        wait, step = self._waiting
        self._waiting = None
        if not torch.isfinite(found := wait()):
            came, hint = f"{found.item()} at step {step}", "Lower `learning_rate`, or check the inputs."
            raise FloatingPointError(expected("loss", "finite", came, hint))


def _step(loss: Tensor, module: nn.Module, optimizer: torch.optim.Optimizer, clip_norm: float) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(module.parameters(), clip_norm)
    optimizer.step()


def _channels_last(inputs: Tensor) -> Tensor:
    return inputs.contiguous(memory_format=torch.channels_last) if inputs.ndim == 4 else inputs


def _augmented(inputs: Tensor, settings: FitSettings, noise: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image and mirror half of them, or add noise of these standard deviations to each vector.

    Random numbers are drawn on the CPU and applied on the device of the inputs, so that they are the same everywhere.
    """
    if inputs.ndim == 2 and noise.any():
        return inputs + _sent(noise * torch.randn(inputs.shape, generator=generator), inputs.device)
    return _mirrored(_shifted(inputs, settings.shift, generator), settings.mirror, generator)


def _mirrored(inputs: Tensor, mirror: bool | None, generator: torch.Generator) -> Tensor:
    """Mirror half of the images, drawn at random; without a setting, images with three channels."""
    if inputs.ndim != 4 or not (inputs.shape[1] == 3 if mirror is None else mirror):
        return inputs
    chosen = _sent(torch.rand(len(inputs), generator=generator) < 0.5, inputs.device)
    return torch.where(chosen[:, None, None, None], inputs.flip(3), inputs)


def _shifted(inputs: Tensor, shift: int | None, generator: torch.Generator) -> Tensor:
    """Shift each image by a random offset."""
    if inputs.ndim != 4:
        return inputs
    count, _, height, width = inputs.shape
    limit = round(min(height, width) / 15) if shift is None else shift
    if not limit:
        return inputs
    padded = F.pad(inputs, (limit,) * 4, mode="replicate")
    drawn = torch.stack([torch.randint(2 * limit + 1, (count, 1), generator=generator) for _ in range(2)])
    first_rows, first_columns = _sent(drawn, inputs.device)
    rows = first_rows + torch.arange(height, device=inputs.device)
    columns = first_columns + torch.arange(width, device=inputs.device)
    places = torch.arange(count, device=inputs.device)[:, None, None]
    return padded[places, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _sent(drawn: Tensor, device: torch.device) -> Tensor:
    """Return random numbers on a device, without waiting for it."""
    return drawn.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else drawn.to(device)
