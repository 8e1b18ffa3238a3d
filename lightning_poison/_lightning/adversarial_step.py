"""`AdversarialStep`: runs a module's `training_step` inside an adversarial recipe."""

import copy
import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import isfinite
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lightning_poison._lightning.step_wrappers import StepWrappers, check_takes_batch
from lightning_poison.adversarial.adversaries import PGD, Adversary
from lightning_poison.adversarial.batch import (
    AttackedBatch,
    SampleLoss,
    check_probabilities,
    has_classes,
    robustness_metrics,
    sample_cross_entropy,
    sum_of_one_rank,
)
from lightning_poison.adversarial.collapse_guard import CollapseGuard
from lightning_poison.adversarial.recipes import Madry, Recipe
from lightning_poison.checks import describe, expected
from lightning_poison.data.pixel_range import PixelRange
from lightning_poison.data.sample_spec import NAME_THEM, SampleSpec, are_probabilities
from lightning_poison.randomness import derived_seed

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

_UNSUPPORTED = {
    "FSDPStrategy": "The attack computes gradients inside the step, where parameters are sharded.",
    "ModelParallelStrategy": "The attack computes gradients inside the step, where parameters may be sharded.",
    "DeepSpeedStrategy": "Its engine owns the module's forward and gradients, and the attack bypasses it.",
    "XLAStrategy": "Gradients inside the step are not tested on XLA devices.",
    "SingleDeviceXLAStrategy": "Gradients inside the step are not tested on XLA devices.",
}
"""Strategies that are refused, by class name, and why."""

_USE_FLOATS = "Convert them in the transform or in `on_after_batch_transfer`: `v2.ToDtype(torch.float, True)`."

_TRIAL_ADVERSARY = PGD(1 / 255, steps=1, random_start=False)
"""Checks the first batch before training: one gradient, and no random numbers."""


@dataclass(frozen=True)
class AdversarialSettings:
    """How training batches are perturbed; the fields are arguments of `AdversarialTraining`."""

    adversary: Adversary
    recipe: Recipe
    loss: SampleLoss
    logits: "str | Callable[[nn.Module, Tensor], Any]" = ""
    pixels: PixelRange | None = None
    sample: SampleSpec | None = None
    warm_up_epochs: float = 0.0
    guard: CollapseGuard | None = None
    seed: int = 0

    def attacked_batch(
        self,
        module: nn.Module,
        batch: Any,
        *,
        adversary: Adversary,
        generator: torch.Generator,
        part: tuple[int, int],
        strength: float = 1.0,
        epoch: int = 0,
        index: int = 0,
        sum_over_ranks: "Callable[[Tensor], Tensor]" = sum_of_one_rank,
    ) -> AttackedBatch:
        """Return a validated batch for a recipe; for the arguments see `AttackedBatch`.

        Raises:
            ValueError: If inputs or labels are not found or invalid.
        """
        spec = self.sample or _detected(batch)
        inputs, labels = spec.inputs_in(batch), spec.labels_in(batch)
        if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
            may_be_labels = isinstance(inputs, Tensor) and inputs.ndim < 2
            hint = NAME_THEM if may_be_labels else _USE_FLOATS
            found = f"{describe(inputs)} at {spec.inputs!r}"
            raise ValueError(expected("inputs", "a floating-point batch (B, ...)", found, hint))
        if not isinstance(labels, Tensor) or not labels.ndim or len(labels) != len(inputs):
            found = f"{describe(labels)} at {spec.labels!r}"
            raise ValueError(expected("labels", f"one for each of {len(inputs)} samples", found, NAME_THEM))
        if self.loss is sample_cross_entropy:
            check_probabilities(labels)
        return AttackedBatch(
            batch=batch,
            sample=spec,
            module=module,
            logits=partial(logits_of, module, self.logits),
            loss=self.loss,
            adversary=adversary,
            pixels=self.pixels,
            strength=strength,
            epoch=epoch,
            index=index,
            generator=generator,
            part=part,
            sum_over_ranks=sum_over_ranks,
        )


def _detected(batch: Any) -> SampleSpec:
    """Detect inputs and labels. A pair of tensors of one length is taken as such, whatever the form of the labels."""
    try:
        return SampleSpec.detect(batch, batched=True, mixed=True)
    except ValueError:
        is_pair = isinstance(batch, list | tuple) and len(batch) == 2
        if is_pair and all(isinstance(part, Tensor) and part.ndim for part in batch) and len(batch[0]) == len(batch[1]):
            return SampleSpec("0", "1")
        raise


class AdversarialStep:
    """Wraps a module's step for `AdversarialTraining`.

    Args:
        trainer: The Trainer that runs the module.
        module: The module whose step is wrapped.
        settings: The settings of `AdversarialTraining`.
        collapsed: Whether an earlier run collapsed and trains with PGD since.

    Raises:
        ValueError: If the strategy is not supported.
    """

    def __init__(
        self, trainer: "Trainer", module: "LightningModule", settings: AdversarialSettings, *, collapsed: bool = False
    ) -> None:
        refuse_strategy(type(trainer.strategy))
        self._trainer, self._module, self._settings = trainer, module, settings
        self._recipe = copy.deepcopy(settings.recipe)
        self._adversary = settings.adversary
        self._generator: torch.Generator | None = None
        self._epoch, self._epoch_seed = -1, 0
        self._is_checked = False
        self._recent: list[AttackedBatch] = []
        self.collapsed = False
        if collapsed:
            self.fall_back()
        StepWrappers.add(module, self, torch.compiler.disable(self._wrap))  # type: ignore[no-untyped-call]

    def remove(self) -> None:
        """Restore the module's own step."""
        StepWrappers.remove(self._module, self)

    def fall_back(self) -> None:
        """Train with several steps from now on."""
        if self._settings.guard is not None:
            self.collapsed = True
            self._adversary = self._settings.guard.fallback(self._settings.adversary.epsilon)

    def _wrap(self, call_next: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        epoch = self._trainer.current_epoch
        if epoch != self._epoch:
            self._epoch = epoch
            self._epoch_seed = derived_seed(self._settings.seed, "adversarial training", epoch)
        if not self._is_checked:
            self._check_first(batch)
            self._is_checked = True
        attacked = self._attacked_batch(batch)
        if self._guard(attacked):
            attacked = self._attacked_batch(batch)  # with the current adversary and the draws of a run without a guard
        self._log(attacked)
        return self._recipe.step(attacked, lambda changed: call_next(changed, *args, **kwargs))

    def _attacked_batch(self, batch: Any) -> AttackedBatch:
        """Return the batch with a generator seeded by its position, so that no other draws affect training."""
        epoch = self._trainer.current_epoch
        index = self._trainer.fit_loop.epoch_loop.batch_idx
        if self._generator is None or self._generator.device != self._module.device:
            self._generator = torch.Generator(self._module.device)
        self._generator.manual_seed(self._epoch_seed + index)
        return self._settings.attacked_batch(
            self._module,
            batch,
            adversary=self._adversary,
            strength=self._strength(epoch, index),
            epoch=epoch,
            index=index,
            generator=self._generator,
            part=(self._trainer.global_rank, self._trainer.world_size),
            sum_over_ranks=self._sum_over_ranks if self._trainer.world_size > 1 else sum_of_one_rank,
        )

    def _sum_over_ranks(self, tensor: Tensor) -> Tensor:
        return self._trainer.strategy.reduce(tensor.clone(), reduce_op="sum")  # works in place

    def _strength(self, epoch: int, index: int) -> float:
        if not self._settings.warm_up_epochs:
            return 1.0
        batches = self._trainer.num_training_batches
        done = epoch + ((index + 1) / batches if isfinite(batches) else 1.0)
        return min(1.0, done / self._settings.warm_up_epochs)

    def _check_first(self, batch: Any) -> None:
        """Attack the first batch once, so that errors are raised before the first step, whatever the recipe.

        Raises:
            TypeError: If the step does not take a batch.
            ValueError: If inputs are out of range or have no gradient, logits are probabilities, or the guard cannot
                compute an accuracy.
        """
        check_takes_batch(self._module)
        attacked = self._attacked_batch(batch)
        attacked.adversarial_inputs(adversary=_TRIAL_ADVERSARY)
        logits = attacked.evaluate(attacked.inputs)
        if self._settings.loss is sample_cross_entropy and are_probabilities(logits):
            raise ValueError(
                "Expected logits, but got probabilities: all rows are in [0, 1] and sum to 1.\n"
                "Name the layer that returns logits, `logits='net'`, or pass a `loss` of probabilities."
            )
        if self._is_guarded and not has_classes(attacked, logits):
            raise ValueError(
                "Expected logits and class labels, whose accuracy the guard monitors for collapse, but got labels that "
                f"are {describe(attacked.labels)}.\nWrite `guard=None`, or use an adversary with several steps."
            )

    @property
    def _is_guarded(self) -> bool:
        return self._settings.guard is not None and self._adversary.steps == 1 and isinstance(self._recipe, Madry)

    def _guard(self, attacked: AttackedBatch) -> bool:
        """Check for collapse of single-step training in the last batch of each epoch at full radius.

        Returns:
            Whether it has probed.
        """
        guard = self._settings.guard
        if guard is None or not self._is_guarded or self._epoch < self._settings.warm_up_epochs:
            return False
        self._recent = guard.latest([*self._recent, attacked])
        if not self._trainer.is_last_batch:
            return False
        recent, self._recent = self._recent, []
        correct = self._trainer.strategy.reduce(guard.probe(recent).double(), reduce_op="sum")
        if guard.has_collapsed(correct):
            self.fall_back()
            single, several = (int(count) for count in correct)
            warnings.warn(
                f"Single-step training collapsed in epoch {self._epoch}: the module classifies {single} of the probed "
                f"samples correctly under the single step and {several} under PGD. Training continues with "
                f"{self._adversary}, also in resumed runs. If this was the last epoch, these weights are not robust.",
                stacklevel=2,
            )
        return True

    def _log(self, attacked: AttackedBatch) -> None:
        every = self._trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not every or attacked.index % every:
            return
        state = attacked.generator.get_state()
        metrics = {f"train/{name}": value for name, value in robustness_metrics(attacked).items()}
        self._module.log_dict(metrics, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(attacked.inputs))
        attacked.generator.set_state(state)  # recipes draw the same numbers without logging


def logits_of(module: nn.Module, source: str | Callable[[nn.Module, Tensor], Any], inputs: Tensor) -> Tensor:
    """Return the logits of inputs.

    Args:
        module: The module.
        source: Name of a submodule or method that returns logits, or a function of module and inputs. If empty, the
            module itself.
        inputs: `(B, ...)`.

    Raises:
        ValueError: If the module has no such submodule or method.
        TypeError: If the module has no `forward`, or the output has no logits.
    """
    hint = "Name the source: `logits=` takes the name of a submodule or a method, or a function."
    kind = type(module).__name__
    try:
        forward = (partial(source, module) if callable(source) else attrgetter(source)(module)) if source else module
    except AttributeError as error:
        raise ValueError(expected("logits", f"a submodule or a method of {kind}", repr(source), hint)) from error
    try:
        output = forward(inputs)
    except TypeError:
        _check_takes_inputs(forward, kind, hint)
        raise
    except NotImplementedError as error:
        raise TypeError(f"Expected {kind} to return logits from `forward`, but it has none.\n{hint}") from error
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
    if not isinstance(found, Tensor):
        raise TypeError(expected("logits", "a tensor, or an output with a tensor `logits`", describe(output), hint))
    return found


def _check_takes_inputs(forward: Any, kind: str, hint: str) -> None:
    """Check that a module or a function can be called with inputs alone.

    Raises:
        TypeError: If it cannot.
    """
    try:
        signature = inspect.signature(forward.forward if isinstance(forward, nn.Module) else forward)
    except (TypeError, ValueError):  # a builtin
        return
    try:
        signature.bind(None)
    except TypeError as error:
        found = f"a call with more arguments, `forward{signature}`"
        raise TypeError(expected("logits", f"what {kind} returns for inputs alone", found, hint)) from error


def refuse_strategy(kind: type[Any]) -> None:
    """Refuse strategies under which gradients of the module cannot be computed inside its own step.

    Args:
        kind: Class of the strategy, of either namespace.

    Raises:
        ValueError: If the strategy is not supported.

    Example:
        >>> from lightning.pytorch.strategies import FSDPStrategy
        >>> refuse_strategy(FSDPStrategy)
        Traceback (most recent call last):
        ValueError: Expected a strategy that keeps all parameters on each rank, but got FSDPStrategy.
        The attack computes gradients inside the step, where parameters are sharded. Use `ddp`.
    """
    for name in (base.__name__ for base in kind.__mro__):
        if name in _UNSUPPORTED:
            what = "on a CPU or a GPU" if "XLA" in name else "that keeps all parameters on each rank"
            hint = "Train on a CPU or a GPU." if "XLA" in name else "Use `ddp`."
            raise ValueError(f"Expected a strategy {what}, but got {kind.__name__}.\n{_UNSUPPORTED[name]} {hint}")
