"""`AdversarialTraining`: robust training of a module that its owner does not want to edit."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from lightning_poison._lightning.adversarial_step import AttackedStep, AttackSettings, refuse_strategy
from lightning_poison._lightning.namespaces import CallbackBase
from lightning_poison._lightning.yaml_types import AnyAdversary, AnyLogits, AnyRecipe, AnySampleLoss
from lightning_poison.adversarial.batch import sample_cross_entropy
from lightning_poison.adversarial.collapse_guard import CollapseGuard, evaluation_figures
from lightning_poison.adversarial.recipes import Madry
from lightning_poison.checks import describe, expected, instance, not_negative, positive_int, with_method
from lightning_poison.data.pixel_range import PixelRange
from lightning_poison.data.sample_spec import SampleSpec

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class AdversarialTraining(CallbackBase):
    """Changes each training batch, within a radius, so that the module misreads it, before its step sees it.

    Wraps `training_step` and nothing else: what the step does with the batch, its optimizers, its accumulation, its
    precision and its strategy stay what they are. While inputs are looked for the module is in evaluation mode with its
    parameters frozen, so that neither statistics nor gradients are touched; the batch of the loader is never changed.

    Every `log_every_n_steps` batches `train/clean_loss`, `train/clean_accuracy`, `train/robust_loss` and
    `train/robust_accuracy` are measured on the batch, in evaluation mode, and averaged over the epoch. Where logits and
    labels name no classes, as in regression, there are losses alone. The first batch is tried before anything is
    trained, so that what cannot work is said before the first step.

    What it protects from is small changes of test inputs. Against poison it is no defense by itself: a trigger of full
    intensity survives it (see the page on adversarial training).

    Args:
        adversary: how inputs are changed: `PGD(8 / 255, 2 / 255, steps=7)`, `FGSM(8 / 255)`, or any of that shape.
        recipe: what is trained on: `Madry()` where it is `None`, `TRADES()`, `Free()`, or any of that shape.
        pixels: how the inputs that the module sees are normalized; raw images in [0, 1] where it is `None`.
        sample: where inputs and labels stand in a batch; found by itself where that is plain.
        logits: who returns logits `(B, C)`, or something that holds them as `logits`: the module where it is empty, a
            submodule or a method by its name, or a function of module and inputs.
        loss: maps logits and labels to one loss each, which the adversary raises; cross-entropy where it is `None`.
        warm_up_epochs: over how many epochs, or parts of one, the radius grows from 0; by whole epochs where the loader
            has no length.
        guard: watches training on single steps for collapse; `None` for no guard.
        validation: how inputs are changed in validation and test, where `val/` and `test/` figures are logged as in
            training; nothing is measured where it is `None`.
        validation_batches: how many batches of each loader are measured; all where it is `None`.
        seed: the only source of randomness. Ranks draw what one rank would draw for the same global batch.
        name: tells several of one Trainer apart.

    Raises:
        ValueError: where an argument is out of its range; when training starts, under a strategy that shards the
            module; in the first step, where inputs or labels are not found, inputs are no floats in the pixel range, or
            the loss has no gradient in them.
        TypeError: where an adversary or a recipe is none; in the first step, where no logits come back.
        RuntimeError: in the first step, under `torch.inference_mode` or with what was made in it.

    Example:
        >>> from lightning_poison.adversarial.adversaries import PGD
        >>> AdversarialTraining(PGD(8 / 255, 2 / 255, steps=7)).state_key
        'AdversarialTraining[adversarial]'
    """

    def __init__(
        self,
        adversary: AnyAdversary,
        *,
        recipe: AnyRecipe | None = None,
        pixels: PixelRange | None = None,
        sample: SampleSpec | None = None,
        logits: AnyLogits = "",
        loss: AnySampleLoss | None = None,
        warm_up_epochs: float = 0.0,
        guard: CollapseGuard | None = CollapseGuard(),  # noqa: B008 (frozen)
        validation: AnyAdversary | None = None,
        validation_batches: int | None = None,
        seed: int = 0,
        name: str = "adversarial",
    ) -> None:
        self.settings = AttackSettings(
            adversary=with_method("adversary", adversary, "perturb", hint="Write `AdversarialTraining(PGD(8 / 255))`."),
            recipe=Madry()
            if recipe is None
            else with_method("recipe", recipe, "step", hint="Write `recipe=TRADES()`."),
            loss=sample_cross_entropy if loss is None else _function("loss", loss, *_LOSS),
            logits=logits if isinstance(logits, str) else _function("logits", logits, *_LOGITS),
            pixels=_optional("pixels", pixels, PixelRange, "PixelRange(mean=(0.5,), std=(0.25,))"),
            sample=_optional("sample", sample, SampleSpec, "SampleSpec(inputs='image', labels='label')"),
            warm_up_epochs=not_negative("warm_up_epochs", warm_up_epochs),
            guard=_optional("guard", guard, CollapseGuard, "CollapseGuard(samples=256)"),
            seed=positive_int("seed", seed, minimum=0),
        )
        way_out = "Write `validation=PGD(8 / 255)`."
        self.validation = None if validation is None else with_method("validation", validation, "perturb", hint=way_out)
        self.validation_batches = (
            None if validation_batches is None else positive_int("validation_batches", validation_batches)
        )
        self.name = name
        self._step: AttackedStep | None = None
        self._collapsed = False

    @property
    def state_key(self) -> str:
        """Name the callback, so that two of them can stand in one Trainer."""
        return f"AdversarialTraining[{self.name}]"

    def setup(self, trainer: "Trainer", pl_module: "LightningModule", stage: str) -> None:
        """Wrap the module's step."""
        self.detach()
        if stage == "fit" or (stage != "predict" and self.validation is not None):
            refuse_strategy(type(trainer.strategy))
        if stage == "fit":
            self._step = AttackedStep(trainer, pl_module, self.settings, collapsed=self._collapsed)

    def on_validation_batch_end(
        self,
        trainer: "Trainer",
        pl_module: "LightningModule",
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Measure the module under attack."""
        self._evaluate(trainer, pl_module, batch, batch_idx, "val")

    def on_test_batch_end(
        self,
        trainer: "Trainer",
        pl_module: "LightningModule",
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Measure the module under attack."""
        self._evaluate(trainer, pl_module, batch, batch_idx, "test")

    def teardown(self, trainer: "Trainer", pl_module: "LightningModule", stage: str) -> None:
        """Give the module its own step back."""
        self.detach()

    def on_exception(self, trainer: "Trainer", pl_module: "LightningModule", exception: BaseException) -> None:
        """Give the module its own step back; Lightning calls no `teardown` after an exception."""
        self.detach()

    def state_dict(self) -> dict[str, Any]:
        """Remember a collapse: a resumed run goes on as this one does."""
        return {"collapsed": self._collapsed if self._step is None else self._step.collapsed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self._collapsed = bool(state_dict.get("collapsed", False))
        if self._collapsed and self._step is not None:
            self._step.fall_back()

    def detach(self) -> None:
        """Give the module its own step back, where it was wrapped; Lightning's own hooks do this too."""
        if self._step is not None:
            self._collapsed = self._step.collapsed
            self._step.remove()
        self._step = None

    def _evaluate(
        self, trainer: "Trainer", pl_module: "LightningModule", batch: Any, batch_idx: int, prefix: str
    ) -> None:
        limit = self.validation_batches
        if self.validation is None or (limit is not None and batch_idx >= limit):
            return
        with torch.inference_mode(False), torch.enable_grad(), trainer.precision_plugin.forward_context():
            attacked = self.settings.attacked(
                pl_module,
                apply_to_collection(batch, Tensor, Tensor.clone),  # made outside of inference mode
                adversary=self.validation,
                generator=torch.Generator(pl_module.device).manual_seed(self.settings.seed + batch_idx),
                part=(trainer.global_rank, trainer.world_size),
            )
            with _inference_mode_named():
                figures = evaluation_figures(attacked)
        pl_module.log_dict(
            {f"{prefix}/{name}": value for name, value in figures.items()},
            on_step=False,
            on_epoch=True,
            sync_dist=True,
            batch_size=len(attacked.inputs),
            add_dataloader_idx=True,
        )


def _optional(name: str, value: Any, kind: type, example: str) -> Any:
    """Return a value that is of a class, or `None`."""
    hint = f"Write `{name}={example}`, or `{name}=None`."
    return None if value is None else instance(name, value, kind, hint=hint)


_LOSS = "a function of logits and labels", "Write `loss=partial(F.cross_entropy, reduction='none')`."
_LOGITS = "a name, or a function of module and inputs", "Write `logits='net'`."


def _function(name: str, value: Any, what: str, hint: str) -> Any:
    if not callable(value):
        raise TypeError(expected(name, what, describe(value), hint))
    return value


@contextmanager
def _inference_mode_named() -> Iterator[None]:
    """Say the way out where a module has kept a tensor from a step in inference mode, which has no gradient."""
    try:
        yield
    except RuntimeError as error:
        if "nference tensor" not in str(error):
            raise
        raise RuntimeError(
            "Expected a module whose tensors can have gradients, but it keeps one that it made in inference mode.\n"
            "Write `Trainer(inference_mode=False)`."
        ) from error
