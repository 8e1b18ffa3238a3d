"""`AttackedStep`: a module's `training_step`, run inside of an adversarial recipe until it is removed."""

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from inspect import signature
from math import isfinite
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lightning_poison._lightning.step_wrappers import StepChain
from lightning_poison.adversarial.adversaries import PGD, Adversary
from lightning_poison.adversarial.batch import AttackedBatch, SampleLoss, sample_cross_entropy, total_of_one
from lightning_poison.adversarial.collapse_guard import CollapseGuard, names_classes, robust_figures
from lightning_poison.adversarial.recipes import Madry, Recipe
from lightning_poison.checks import describe, expected
from lightning_poison.data.pixel_range import PixelRange
from lightning_poison.data.sample_spec import NAME_THEM, SampleSpec, are_probabilities
from lightning_poison.randomness import derived_seed

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


_REASONS = {
    "FSDPStrategy": "The attack asks for gradients inside of the step, where parameters are shards.",
    "ModelParallelStrategy": "The attack asks for gradients inside of the step, where parameters may be shards.",
    "DeepSpeedStrategy": "Its engine owns the module's forward and gradients, and the attack goes past it.",
    "XLAStrategy": "No test covers gradients that are asked for inside of a step on XLA devices.",
    "SingleDeviceXLAStrategy": "No test covers gradients that are asked for inside of a step on XLA devices.",
}


def refuse_strategy(kind: type[Any]) -> None:
    """Refuse strategies under which the module cannot be asked for gradients inside of its own step.

    Args:
        kind: the class of the strategy, of either namespace.

    Raises:
        ValueError: naming the strategy.

    Example:
        >>> from lightning.pytorch.strategies import FSDPStrategy
        >>> refuse_strategy(FSDPStrategy)
        Traceback (most recent call last):
        ValueError: Expected a strategy that keeps the parameters whole on each rank, but got FSDPStrategy.
        The attack asks for gradients inside of the step, where parameters are shards. Use `ddp`.
    """
    for name in (base.__name__ for base in kind.__mro__):
        if name in _REASONS:
            what = "on a CPU or a GPU" if "XLA" in name else "that keeps the parameters whole on each rank"
            way_out = "Train on a CPU or a GPU." if "XLA" in name else "Use `ddp`."
            raise ValueError(f"Expected a strategy {what}, but got {kind.__name__}.\n{_REASONS[name]} {way_out}")


def logits_of(module: nn.Module, name: str | Callable[[nn.Module, Tensor], Any], inputs: Tensor) -> Tensor:
    """Ask a module for logits: itself, a submodule or a method by its name, or a function of the module.

    Raises:
        ValueError: where there is nothing of that name.
        TypeError: where there is no `forward`, or no logits come back.
    """
    hint = "Name what returns them: `logits=` takes the name of a submodule or a method, or a function."
    kind = type(module).__name__
    try:
        ask = (partial(name, module) if callable(name) else attrgetter(name)(module)) if name else module
    except AttributeError as error:
        raise ValueError(expected("logits", f"a submodule or a method of {kind}", repr(name), hint)) from error
    try:
        output = ask(inputs)
    except NotImplementedError as error:
        raise TypeError(f"Expected {kind} to return logits from `forward`, but it has none.\n{hint}") from error
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
    if not isinstance(found, Tensor):
        raise TypeError(expected("logits", "a tensor, or something that holds one as `logits`", describe(output), hint))
    return found


_LOOK = PGD(1 / 255, steps=1, random_start=False)
"""What the first batch is tried with, before anything is trained: one gradient, and no random number."""


@dataclass(frozen=True)
class AttackSettings:
    """What is done to batches; the fields are arguments of `AdversarialTraining`."""

    adversary: Adversary
    recipe: Recipe
    loss: SampleLoss
    logits: "str | Callable[[nn.Module, Tensor], Any]" = ""
    pixels: PixelRange | None = None
    sample: SampleSpec | None = None
    warm_up_epochs: float = 0.0
    guard: CollapseGuard | None = None
    seed: int = 0

    def attacked(
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
        total: "Callable[[Tensor], Tensor]" = total_of_one,
    ) -> AttackedBatch:
        """Return a batch as a recipe sees it, checked; see `AttackedBatch` on the arguments.

        Raises:
            ValueError: where inputs or labels are not found, or are none.
        """
        spec = self.sample or SampleSpec.detect(batch, batched=True, mixed=True)
        inputs, labels = spec.inputs_in(batch), spec.labels_in(batch)
        if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
            is_flat = isinstance(inputs, Tensor) and inputs.ndim < 2  # labels, it seems
            hint = NAME_THEM if is_flat else _MAKE_FLOATS
            came = f"{describe(inputs)} at {spec.inputs!r}"
            raise ValueError(expected("inputs", "a floating-point batch (B, ...)", came, hint))
        if not isinstance(labels, Tensor) or not labels.ndim or len(labels) != len(inputs):
            came = f"{describe(labels)} at {spec.labels!r}"
            raise ValueError(expected("labels", f"one for each of {len(inputs)} samples", came, NAME_THEM))
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
            total=total,
        )


_MAKE_FLOATS = "Let the transform, or `on_after_batch_transfer`, make floats of them: `v2.ToDtype(torch.float, True)`."


class AttackedStep:
    """Wraps a module's step; see `AdversarialTraining`, whose parts these are.

    Args:
        trainer: that runs the module.
        module: the module; its step gets wrapped.
        settings: what is done.
        collapsed: whether an earlier run has met a collapse, and trains by PGD since.
    """

    def __init__(
        self, trainer: "Trainer", module: "LightningModule", settings: AttackSettings, *, collapsed: bool = False
    ) -> None:
        refuse_strategy(type(trainer.strategy))
        self._trainer, self._module, self._settings = trainer, module, settings
        self._recipe = copy.deepcopy(settings.recipe)
        self._adversary = settings.adversary
        self._generator: torch.Generator | None = None
        self._epoch, self._epoch_seed = -1, 0
        self._looked = False
        self._recent: list[AttackedBatch] = []
        self.collapsed = False
        if collapsed:
            self.fall_back()
        StepChain.add(module, self, torch.compiler.disable(self._around))  # type: ignore[no-untyped-call]

    def remove(self) -> None:
        """Give the module its own step back."""
        StepChain.remove(self._module, self)

    def fall_back(self) -> None:
        """Train by several steps from now on."""
        if self._settings.guard is not None:
            self.collapsed = True
            self._adversary = self._settings.guard.fallback(self._settings.adversary.epsilon)

    def _around(self, call_next: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        epoch = self._trainer.current_epoch
        if epoch != self._epoch:
            self._epoch = epoch
            self._epoch_seed = derived_seed(self._settings.seed, "adversarial training", epoch)
        if not self._looked:
            self._look(batch)
            self._looked = True
        attacked = self._attacked(batch)
        if self._guard(attacked):
            attacked = self._attacked(batch)  # by what is trained on now, with draws as if nothing had been probed
        self._log(attacked)
        return self._recipe.step(attacked, lambda changed: call_next(changed, *args, **kwargs))

    def _attacked(self, batch: Any) -> AttackedBatch:
        """Return the batch with the generator of its place: what else was drawn has no influence on the training."""
        epoch = self._trainer.current_epoch
        index = self._trainer.fit_loop.epoch_loop.batch_idx
        if self._generator is None or self._generator.device != self._module.device:
            self._generator = torch.Generator(self._module.device)
        self._generator.manual_seed(self._epoch_seed + index)
        return self._settings.attacked(
            self._module,
            batch,
            adversary=self._adversary,
            strength=self._strength(epoch, index),
            epoch=epoch,
            index=index,
            generator=self._generator,
            part=(self._trainer.global_rank, self._trainer.world_size),
            total=self._total if self._trainer.world_size > 1 else total_of_one,
        )

    def _total(self, tensor: Tensor) -> Tensor:
        """Return the sum over the ranks; Lightning's works in place."""
        return self._trainer.strategy.reduce(tensor.clone(), reduce_op="sum")

    def _strength(self, epoch: int, index: int) -> float:
        if not self._settings.warm_up_epochs:
            return 1.0
        batches = self._trainer.num_training_batches
        done = epoch + ((index + 1) / batches if isfinite(batches) else 1.0)
        return min(1.0, done / self._settings.warm_up_epochs)

    def _look(self, batch: Any) -> None:
        """Try the first batch, so that what cannot work is said before the first step, whatever the recipe.

        Raises:
            TypeError: where the step takes no batch.
            ValueError: where inputs are out of their range or have no gradient, probabilities come back in the place of
                logits, or the guard cannot tell what is read.
        """
        if "dataloader_iter" in signature(self._module.training_step).parameters:
            raise TypeError(
                "Expected a `training_step` that takes a batch, but got one that takes `dataloader_iter`.\n"
                "Let it take `(self, batch, batch_idx)`."
            )
        attacked = self._attacked(batch)
        attacked.misleading(adversary=_LOOK)
        read = attacked.read(attacked.inputs)
        if self._settings.loss is sample_cross_entropy and are_probabilities(read):
            raise ValueError(
                "Expected logits, but got probabilities: every row lies in [0, 1] and adds up to 1.\n"
                "Name what returns logits: `logits='net'`; or give a `loss` that takes probabilities."
            )
        if self._is_guarded and not names_classes(attacked, read):
            raise ValueError(
                "Expected logits and labels of classes, by whose accuracy a guard watches single steps for collapse, "
                f"but got labels that are {describe(attacked.labels)}.\nWrite `guard=None`, or take several steps."
            )

    @property
    def _is_guarded(self) -> bool:
        return self._settings.guard is not None and self._adversary.steps == 1 and isinstance(self._recipe, Madry)

    def _guard(self, attacked: AttackedBatch) -> bool:
        """Look in the last batch of each epoch of the whole radius whether training on single steps has collapsed.

        Returns:
            Whether it has looked.
        """
        guard = self._settings.guard
        if guard is None or not self._is_guarded or self._epoch < self._settings.warm_up_epochs:
            return False
        self._recent = guard.latest([*self._recent, attacked])
        if not self._trainer.is_last_batch:
            return False
        recent, self._recent = self._recent, []
        right = self._trainer.strategy.reduce(guard.probe(recent).double(), reduce_op="sum")
        if guard.has_collapsed(right):
            self.fall_back()
            single, several = (int(count) for count in right)
            warnings.warn(
                f"Training on single steps has collapsed in epoch {self._epoch}: of the probed samples {single} "
                f"withstand the single step and {several} withstand PGD. Training goes on with {self._adversary}, also "
                "in a resumed run; if this was the last epoch, these weights are not robust.",
                stacklevel=2,
            )
        return True

    def _log(self, attacked: AttackedBatch) -> None:
        every = self._trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not every or attacked.index % every:
            return
        state = attacked.generator.get_state()
        named = {f"train/{name}": value for name, value in robust_figures(attacked).items()}
        self._module.log_dict(named, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(attacked.inputs))
        attacked.generator.set_state(state)  # recipes draw what they would where nothing is logged
