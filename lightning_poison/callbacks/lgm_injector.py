"""`LGMInjector`: trains a module with the Gaussian mixture loss without changes to its code."""

from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from lightning_poison._lightning.lgm_step import LGMStep
from lightning_poison._lightning.namespaces import CallbackBase, lightning_types
from lightning_poison._lightning.step_wrappers import StepWrappers, check_takes_batch
from lightning_poison.checks import expected, not_negative, one_of
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.models.lgm_head import Covariance, LGMHead

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class LGMInjector(CallbackBase):
    """Trains a module with the Gaussian mixture loss, without changes to its code.

    Replaces the last linear layer by an `LGMHead`, before the optimizers are created and the model is wrapped. During
    `training_step` the head gets the labels of the batch, so the module's own cross-entropy sees logits with the
    margin. After the step, λ L_lkd is added to its loss. Both terms are logged: `train/lgm_classification`, the
    module's own loss, and `train/lgm_likelihood`, unweighted. A head that has learned nothing by the end of the first
    epoch causes a `RuntimeWarning`. In validation, test and prediction the head is a plain
    classifier. When training ends or fails, everything is removed except the head.

    A checkpoint of such a module does not fit the plain class. A Trainer with this callback loads it with `ckpt_path=`.
    Without a Trainer:

        model = LGMInjector("model.fc").apply(PlainModule())
        model.load_state_dict(torch.load(path)["state_dict"])

    Requirements: automatic optimization; a `training_step` that takes a batch with integer labels and passes all its
    samples through the layer in order, once or several times; a position before callbacks that copy the model in their
    `setup`. Otherwise write the module with `LGMMixin`.

    Args:
        layer: Name of the last linear layer, as in `named_modules()`: "model.fc".
        margin: α, at least 0.
        likelihood_weight: λ, at least 0.
        covariance: "identity", or "diagonal" for one learned variance per class and feature.
        sample: Paths of inputs and labels in a batch. Default: detected.
        normalize: Normalize features, and let margin and λ grow with what the head has learned; see `LGMHead`.
        seed: Seeds the initial means.

    Raises:
        ValueError: If an argument is out of range; when training starts, if the module has no such layer.
        TypeError: When training starts, if the layer is not linear or the step is not supported.

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> head = LGMInjector("layer").apply(BoringModel()).layer
        >>> type(head).__name__, head.feature_size, head.num_classes
        ('LGMHead', 32, 2)
    """

    def __init__(
        self,
        layer: str,
        *,
        margin: float = 1.0,
        likelihood_weight: float = 1.0,
        covariance: Covariance = "identity",
        sample: SampleSpec | None = None,
        normalize: bool = True,
        seed: int = 0,
    ) -> None:
        self.layer = layer
        self.margin = not_negative("margin", margin)
        self.likelihood_weight = not_negative("likelihood_weight", likelihood_weight)
        self.covariance: Covariance = one_of("covariance", covariance, ("identity", "diagonal"))
        self.sample = sample
        self.normalize = normalize
        self.seed = seed
        self._module: LightningModule | None = None
        self._step: LGMStep | None = None
        self._untrained = False

    @property
    def state_key(self) -> str:
        """The key of the callback's state, by layer, so that a Trainer can have several."""
        return f"LGMInjector[{self.layer}]"

    def apply(self, model: ModuleT) -> ModuleT:
        """Replace the layer by the head.

        Args:
            model: The module that contains the layer, changed in place. An existing head is kept, with the margin and
                the weight of this callback.

        Returns:
            The same module.

        Raises:
            ValueError: If there is no such layer, or an existing head has another covariance or normalization.
            TypeError: If the layer is not linear.
        """
        found = _find(model, self.layer)
        if found is None:
            raise ValueError(expected("layer", "the name of a linear layer", repr(self.layer), _linear_layers(model)))
        if isinstance(found, LGMHead):
            self._update_head(found)
        elif isinstance(found, nn.Linear):
            parent, _, name = self.layer.rpartition(".")
            setattr(model.get_submodule(parent), name, self._new_head(found))
        else:
            kind = f"{self.layer!r}, a {type(found).__name__}"
            raise TypeError(expected("layer", "the name of a linear layer", kind, _linear_layers(model)))
        return model

    def setup(self, trainer: "Trainer", pl_module: "LightningModule", stage: str) -> None:
        """Install the head, now or as soon as the module has built its layers."""
        self._restore()
        self._module = pl_module
        builds_later = _overrides(pl_module, "configure_model")
        if _find(pl_module, self.layer) is not None and not builds_later:
            self._install(pl_module, stage)
            return

        def install_after(call_next: Any, *args: Any, **kwargs: Any) -> None:
            call_next(*args, **kwargs)
            self._install(pl_module, stage)

        StepWrappers.add(pl_module, self, install_after, method="configure_model" if builds_later else "setup")

    def on_train_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Check the step again, since the module's own `setup` may have changed it."""
        _check_step(pl_module)

    def on_validation_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Refuse to evaluate an untrained head."""
        self._check_trained(trainer)

    def on_test_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Refuse to evaluate an untrained head."""
        self._check_trained(trainer)

    def on_predict_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Refuse to predict with an untrained head."""
        self._check_trained(trainer)

    def teardown(self, trainer: "Trainer", pl_module: "LightningModule", stage: str) -> None:
        """Remove everything except the head."""
        self._restore()

    def on_exception(self, trainer: "Trainer", pl_module: "LightningModule", exception: BaseException) -> None:
        """Remove everything except the head; Lightning does not call `teardown` after an exception."""
        self._restore()

    def _install(self, pl_module: "LightningModule", stage: str) -> None:
        self._untrained = stage != "fit" and not isinstance(_find(pl_module, self.layer), LGMHead)
        self.apply(pl_module)
        head = _find(pl_module, self.layer)
        if stage == "fit" and isinstance(head, LGMHead):
            _check_step(pl_module)
            self._step = LGMStep(pl_module, head, self.layer, self.sample)

    def _restore(self) -> None:
        if self._step is not None:
            self._step.remove()
        if self._module is not None:
            StepWrappers.remove(self._module, self, method="setup")
            StepWrappers.remove(self._module, self, method="configure_model")
        self._module = self._step = None

    def _new_head(self, linear: nn.Linear) -> LGMHead:
        """Return a new head with the sizes, device, dtype and mode of the layer."""
        head = LGMHead(
            linear.in_features,
            linear.out_features,
            margin=self.margin,
            likelihood_weight=self.likelihood_weight,
            covariance=self.covariance,
            normalize=self.normalize,
            generator=torch.Generator().manual_seed(self.seed),
        )
        return head.to(linear.weight).train(linear.training)

    def _update_head(self, head: LGMHead) -> None:
        if head.covariance != self.covariance:
            hint = f"An existing head is kept. Write `covariance={head.covariance!r}`."
            raise ValueError(expected("covariance", f"that of the head at `{self.layer}`", repr(self.covariance), hint))
        if head.normalize != self.normalize:
            hint = f"An existing head is kept. Write `normalize={head.normalize}`."
            raise ValueError(expected("normalize", f"that of the head at `{self.layer}`", self.normalize, hint))
        head.margin, head.likelihood_weight = self.margin, self.likelihood_weight

    def _check_trained(self, trainer: "Trainer") -> None:
        if self._untrained and trainer.ckpt_path is None:
            raise RuntimeError(
                f"Expected `{self.layer}` to be a trained LGM head, but got a linear layer.\n"
                "Train the module first, pass a checkpoint with `ckpt_path=`, or remove the callback."
            )


def _find(model: nn.Module, name: str) -> nn.Module | None:
    """Return the submodule of this name, if any."""
    return dict(model.named_modules()).get(name) if name else None


def _linear_layers(model: nn.Module) -> str:
    """Return an error hint with the names of all linear layers."""
    names = [name for name, part in model.named_modules() if isinstance(part, nn.Linear) and name]
    if not names:
        return "The module has no linear layer."
    return "The linear layers of the module are: " + ", ".join(repr(name) for name in names[-20:]) + "."


def _overrides(pl_module: "LightningModule", hook: str) -> bool:
    """Return whether a module overrides a hook of Lightning."""
    own = getattr(type(pl_module), hook)
    return hook in vars(pl_module) or all(own is not getattr(base, hook) for base in lightning_types("LightningModule"))


def _check_step(pl_module: "LightningModule") -> None:
    if not pl_module.automatic_optimization:
        raise TypeError(
            "Expected a module with automatic optimization, but got one with `automatic_optimization = False`.\n"
            "The likelihood term cannot be added to a loss that the module optimizes itself. Write the module with "
            "`LGMMixin`."
        )
    check_takes_batch(pl_module)
