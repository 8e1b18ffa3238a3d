"""`LGMInjector`: a Gaussian mixture head in a module that its owner does not want to edit."""

from inspect import signature
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from lightning_poison._lightning.lgm_step import LabeledStep
from lightning_poison._lightning.namespaces import CallbackBase, lightning_types
from lightning_poison._lightning.step_wrappers import StepChain
from lightning_poison.checks import expected, not_negative, one_of
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.models.lgm_head import Covariance, LGMHead

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class LGMInjector(CallbackBase):
    """Trains a module with the Gaussian mixture loss, without a change to its code.

    Puts an `LGMHead` in the place of the last linear layer, before the optimizers are made and the model is wrapped.
    During `training_step` the head is told the labels of the batch, so that the logits which the module's own
    cross-entropy sees have the margin; afterwards λ L_lkd is added to the loss that the step returned. Both terms are
    logged: `train/lgm_classification`, the module's own loss, and `train/lgm_likelihood`, unweighted. In validation,
    test and prediction the head is a plain classifier. When training ends or fails, everything is taken away again but
    the head, which stays.

    A checkpoint of such a module does not fit the plain class. `Trainer.fit`, `test` and the like with `ckpt_path=`
    take it where this callback is among the Trainer's; without a Trainer:

        model = LGMInjector("model.fc").apply(PlainModule())
        model.load_state_dict(torch.load(path)["state_dict"])

    What it needs: automatic optimization; a `training_step` that takes a batch with integer labels and sends its
    samples through the layer in their order, once or several times; a place before callbacks that copy the model in
    their `setup`. Where any of this does not hold, write the module with `LGMMixin`.

    Args:
        layer: the name of the last linear layer, as in `named_modules()`: "model.fc".
        margin: α, at least 0.
        likelihood_weight: λ, at least 0.
        covariance: "identity", or "diagonal" for one learned variance for each class and feature.
        sample: where inputs and labels stand in a batch; found by itself where that is plain.
        seed: draws the initial means.

    Raises:
        ValueError: where an argument is out of its range; when training starts, where the module has no such layer.
        TypeError: when training starts, where the layer is not linear or the step is one that cannot be served.

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> LGMInjector("layer").apply(BoringModel()).layer
        LGMHead(feature_size=32, num_classes=2, margin=1, likelihood_weight=1, covariance='identity')
    """

    def __init__(
        self,
        layer: str,
        *,
        margin: float = 1.0,
        likelihood_weight: float = 1.0,
        covariance: Covariance = "identity",
        sample: SampleSpec | None = None,
        seed: int = 0,
    ) -> None:
        self.layer = layer
        self.margin = not_negative("margin", margin)
        self.likelihood_weight = not_negative("likelihood_weight", likelihood_weight)
        self.covariance: Covariance = one_of("covariance", covariance, ("identity", "diagonal"))
        self.sample = sample
        self.seed = seed
        self._module: LightningModule | None = None
        self._step: LabeledStep | None = None
        self._untrained = False

    @property
    def state_key(self) -> str:
        """Name the callback by its layer, so that two of them can stand in one Trainer."""
        return f"LGMInjector[{self.layer}]"

    def apply(self, model: ModuleT) -> ModuleT:
        """Put the head in place of the layer.

        Args:
            model: the module that holds the layer; it is changed. A head that is there already stays, and takes over
                the margin and the weight of this callback.

        Returns:
            The same module.

        Raises:
            ValueError: where there is no such layer, or a head with another covariance stands there.
            TypeError: where the layer is not linear.
        """
        found = _find(model, self.layer)
        if found is None:
            raise ValueError(expected("layer", "the name of a linear layer", repr(self.layer), _listed(model)))
        if isinstance(found, LGMHead):
            self._adopt(found)
        elif isinstance(found, nn.Linear):
            parent, _, name = self.layer.rpartition(".")
            setattr(model.get_submodule(parent), name, self._head_like(found))
        else:
            came = f"{self.layer!r}, which is a {type(found).__name__}"
            raise TypeError(expected("layer", "the name of a linear layer", came, _listed(model)))
        return model

    def setup(self, trainer: "Trainer", pl_module: "LightningModule", stage: str) -> None:
        """Put the head in place, or have that done as soon as the module has built its layers."""
        self._restore()
        self._module = pl_module
        configures = _overrides(pl_module, "configure_model")
        if _find(pl_module, self.layer) is not None and not configures:
            self._install(pl_module, stage)
            return

        def build(call_next: Any, *args: Any, **kwargs: Any) -> None:
            call_next(*args, **kwargs)
            self._install(pl_module, stage)

        StepChain.add(pl_module, self, build, method="configure_model" if configures else "setup")

    def on_train_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Look again at what the module's own `setup` may have changed."""
        _refuse_unsupported_step(pl_module)

    def on_validation_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Refuse to evaluate a head that was neither trained nor loaded."""
        self._refuse_untrained(trainer)

    def on_test_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Refuse to evaluate a head that was neither trained nor loaded."""
        self._refuse_untrained(trainer)

    def on_predict_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Refuse to predict with a head that was neither trained nor loaded."""
        self._refuse_untrained(trainer)

    def teardown(self, trainer: "Trainer", pl_module: "LightningModule", stage: str) -> None:
        """Take away everything but the head."""
        self._restore()

    def on_exception(self, trainer: "Trainer", pl_module: "LightningModule", exception: BaseException) -> None:
        """Take away everything but the head; Lightning calls no `teardown` after an exception."""
        self._restore()

    def _install(self, pl_module: "LightningModule", stage: str) -> None:
        self._untrained = stage != "fit" and not isinstance(_find(pl_module, self.layer), LGMHead)
        self.apply(pl_module)
        head = _find(pl_module, self.layer)
        if stage == "fit" and isinstance(head, LGMHead):
            _refuse_unsupported_step(pl_module)
            self._step = LabeledStep(pl_module, head, self.layer, self.sample)

    def _restore(self) -> None:
        if self._step is not None:
            self._step.remove()
        if self._module is not None:
            StepChain.remove(self._module, self, method="setup")
            StepChain.remove(self._module, self, method="configure_model")
        self._module = self._step = None

    def _head_like(self, linear: nn.Linear) -> LGMHead:
        """Return a new head of the layer's sizes, on its device and in its dtype and mode."""
        head = LGMHead(
            linear.in_features,
            linear.out_features,
            margin=self.margin,
            likelihood_weight=self.likelihood_weight,
            covariance=self.covariance,
            generator=torch.Generator().manual_seed(self.seed),
        )
        return head.to(linear.weight).train(linear.training)

    def _adopt(self, head: LGMHead) -> None:
        if head.covariance != self.covariance:
            hint = f"That head stays where it is. Write `covariance={head.covariance!r}`."
            raise ValueError(expected("covariance", f"that of the head at `{self.layer}`", repr(self.covariance), hint))
        head.margin, head.likelihood_weight = self.margin, self.likelihood_weight

    def _refuse_untrained(self, trainer: "Trainer") -> None:
        if self._untrained and trainer.ckpt_path is None:
            raise RuntimeError(
                f"Expected a module whose `{self.layer}` is a trained LGM head, but it was a linear layer.\n"
                "Train it first, name a checkpoint by `ckpt_path=`, or leave the callback out."
            )


def _find(model: nn.Module, name: str) -> nn.Module | None:
    """Return the submodule of this name, or `None` where there is none."""
    return dict(model.named_modules()).get(name) if name else None


def _listed(model: nn.Module) -> str:
    """Say which linear layers there are."""
    names = [name for name, part in model.named_modules() if isinstance(part, nn.Linear) and name]
    if not names:
        return "There is no linear layer in this module."
    return "The linear layers of this module are: " + ", ".join(repr(name) for name in names[-20:]) + "."


def _overrides(pl_module: "LightningModule", hook: str) -> bool:
    """Tell whether a module has its own version of a hook of Lightning's."""
    own = getattr(type(pl_module), hook)
    return hook in vars(pl_module) or all(own is not getattr(base, hook) for base in lightning_types("LightningModule"))


def _refuse_unsupported_step(pl_module: "LightningModule") -> None:
    if not pl_module.automatic_optimization:
        raise TypeError(
            "Expected a module with automatic optimization, but got one with `automatic_optimization = False`.\n"
            "The likelihood term cannot be added to a loss that the module itself sends backward: "
            "write it with `LGMMixin`."
        )
    if "dataloader_iter" in signature(pl_module.training_step).parameters:
        raise TypeError(
            "Expected a `training_step` that takes a batch, but got one that takes `dataloader_iter`.\n"
            "Let it take `(self, batch, batch_idx)`, or write the module with `LGMMixin`."
        )
