"""`AdversarialTraining`: robust training of a module without changes to its code."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from lightning_poison._lightning.adversarial_step import AdversarialSettings, AdversarialStep, refuse_strategy
from lightning_poison._lightning.namespaces import CallbackBase
from lightning_poison._lightning.yaml_types import AnyAdversary, AnyLogits, AnyRecipe, AnySampleLoss
from lightning_poison.adversarial.batch import sample_cross_entropy, validation_metrics
from lightning_poison.adversarial.collapse_guard import CollapseGuard
from lightning_poison.adversarial.recipes import Madry
from lightning_poison.checks import describe, expected, instance, not_negative, positive_int, with_method
from lightning_poison.data.pixel_range import PixelRange
from lightning_poison.data.sample_spec import SampleSpec

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class AdversarialTraining(CallbackBase):
    """Perturbs each training batch within a radius, so that the module misclassifies it, before the module's step.

    Wraps `training_step` and nothing else: optimizers, gradient accumulation, precision and strategy stay the module's
    own. While perturbations are computed, the module is in evaluation mode and its parameters are frozen, so neither
    statistics nor gradients change. The batch of the loader is never modified.

    Every `log_every_n_steps` batches, `train/clean_loss`, `train/clean_accuracy`, `train/robust_loss` and
    `train/robust_accuracy` are measured in evaluation mode and averaged over the epoch; without class labels, as in
    regression, only the losses. The first batch is checked before training, so errors are raised before the first step.

    Adversarial training protects from small perturbations of test inputs. It is no defense against poison by itself: a
    trigger of full intensity survives it (see the page on adversarial training).

    Args:
        adversary: How inputs are perturbed: `PGD(8 / 255, 2 / 255, steps=7)`, `FGSM(8 / 255)`, or any `Adversary`.
        recipe: What is trained on: `TRADES()`, `Free()`, or any `Recipe`. Default: `Madry()`.
        pixels: Normalization of the module's inputs. Default: raw images in [0, 1].
        sample: Paths of inputs and labels in a batch. Default: detected.
        logits: Source of logits `(B, C)`, or of an output with an attribute or key `logits`: the name of a submodule or
            method, or a function of module and inputs. Default: the module.
        loss: Maps logits and labels to one loss per sample, which the adversary maximizes. Default: cross-entropy.
        warm_up_epochs: Number of epochs, at least 0, over which the radius grows from 0. Fractions need a loader with a
            length; without one, the radius grows once per epoch.
        guard: Detects the collapse of single-step training; `None` for no guard.
        validation: Adversary for validation and test, where the same metrics are logged as `val/` and `test/`.
            Default: not measured.
        validation_batches: Number of batches measured per loader. Default: all.
        seed: The only source of randomness. Several ranks draw the same as one rank for the same global batch.
        name: Distinguishes several of these callbacks in a Trainer.

    Raises:
        ValueError: If an argument is out of range; when training starts, if the strategy shards the module; in the
            first step, if inputs or labels are not found, inputs are not floats in the pixel range, or the loss has no
            gradient with respect to them.
        TypeError: If an adversary or a recipe has no such method; in the first step, if no logits are returned.
        RuntimeError: In the first step, under `torch.inference_mode` or with tensors created in it.

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
        self.settings = AdversarialSettings(
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
        hint = "Write `validation=PGD(8 / 255)`."
        self.validation = None if validation is None else with_method("validation", validation, "perturb", hint=hint)
        self.validation_batches = (
            None if validation_batches is None else positive_int("validation_batches", validation_batches)
        )
        self.name = name
        self._step: AdversarialStep | None = None
        self._collapsed = False

    @property
    def state_key(self) -> str:
        """The key of the callback's state, by name, so that a Trainer can have several."""
        return f"AdversarialTraining[{self.name}]"

    def setup(self, trainer: "Trainer", pl_module: "LightningModule", stage: str) -> None:
        """Wrap the module's step."""
        self.restore_step()
        if stage == "fit" or (stage != "predict" and self.validation is not None):
            refuse_strategy(type(trainer.strategy))
        if stage == "fit":
            self._step = AdversarialStep(trainer, pl_module, self.settings, collapsed=self._collapsed)

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
        """Restore the module's own step."""
        self.restore_step()

    def on_exception(self, trainer: "Trainer", pl_module: "LightningModule", exception: BaseException) -> None:
        """Restore the module's own step; Lightning does not call `teardown` after an exception."""
        self.restore_step()

    def state_dict(self) -> dict[str, Any]:
        """Return whether training has collapsed, so that a resumed run continues in the same way."""
        return {"collapsed": self._collapsed if self._step is None else self._step.collapsed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self._collapsed = bool(state_dict.get("collapsed", False))
        if self._collapsed and self._step is not None:
            self._step.fall_back()

    def restore_step(self) -> None:
        """Restore the module's own step if it is wrapped; Lightning's hooks call this too."""
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
            attacked = self.settings.attacked_batch(
                pl_module,
                apply_to_collection(batch, Tensor, Tensor.clone),  # copies outside inference mode
                adversary=self.validation,
                generator=torch.Generator(pl_module.device).manual_seed(self.settings.seed + batch_idx),
                part=(trainer.global_rank, trainer.world_size),
            )
            with _inference_mode_explained():
                metrics = validation_metrics(attacked)
        pl_module.log_dict(
            {f"{prefix}/{name}": value for name, value in metrics.items()},
            on_step=False,
            on_epoch=True,
            sync_dist=True,
            batch_size=len(attacked.inputs),
            add_dataloader_idx=True,
        )


def _optional(name: str, value: Any, kind: type, example: str) -> Any:
    """Return a value that is an instance of a class, or `None`."""
    hint = f"Write `{name}={example}`, or `{name}=None`."
    return None if value is None else instance(name, value, kind, hint=hint)


_LOSS = "a function of logits and labels", "Write `loss=partial(F.cross_entropy, reduction='none')`."
_LOGITS = "a name, or a function of module and inputs", "Write `logits='net'`."


def _function(name: str, value: Any, what: str, hint: str) -> Any:
    if not callable(value):
        raise TypeError(expected(name, what, describe(value), hint))
    return value


@contextmanager
def _inference_mode_explained() -> Iterator[None]:
    """Explain the error for tensors without gradients that a module stored during inference mode."""
    try:
        yield
    except RuntimeError as error:
        if "nference tensor" not in str(error):
            raise
        raise RuntimeError(
            "Expected a module whose tensors can have gradients, but it stores one created in inference mode.\n"
            "Write `Trainer(inference_mode=False)`."
        ) from error
