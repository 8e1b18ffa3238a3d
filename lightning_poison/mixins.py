"""`LGMMixin`: a LightningModule with the log-likelihood of its samples."""

from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_poison._lightning.lgm_step import LearningWatch
from lightning_poison._lightning.namespaces import lightning_types
from lightning_poison.checks import expected
from lightning_poison.contexts import evaluating
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.models.lgm import LGMLoss
from lightning_poison.models.lgm_head import Covariance, LGMHead

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule as _Host
else:
    _Host = object


class LGMMixin(_Host):
    """Adds an `LGMHead` to the feature extractor of a LightningModule.

    List it before the `LightningModule` of `lightning.pytorch` or `pytorch_lightning` among the bases, and call
    `add_lgm_head` in `__init__`. The module then has a `forward` that returns logits, a `training_step` that trains on
    the Gaussian mixture loss and logs its terms as `train/lgm_classification` and `train/lgm_likelihood`, and
    `log_likelihood(batch)`. The module's own `forward` and `training_step` take precedence and can use
    `extract_features`, `lgm_head`, `lgm_loss` and `lgm_step`. If the head has learned nothing by the end of the first
    epoch, a `RuntimeWarning` says so.

    Attributes:
        lgm_head: The head.

    Example:
        >>> import lightning.pytorch as pl
        >>> from torch import nn
        >>> class Classifier(LGMMixin, pl.LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.net = nn.Linear(64, 32)
        ...         self.add_lgm_head("net", feature_size=32, num_classes=10)
        ...     def configure_optimizers(self):
        ...         return torch.optim.Adam(self.parameters())
        >>> batch = torch.rand(5, 64), torch.tensor([3, 1, 4, 1, 5])
        >>> model = Classifier()
        >>> model(batch[0]).shape, model.log_likelihood(batch).shape
        (torch.Size([5, 10]), torch.Size([5]))
    """

    lgm_head: LGMHead
    _lgm_extractor = ""
    _lgm_sample: SampleSpec | None = None
    _lgm_watch: LearningWatch

    def add_lgm_head(
        self,
        extractor: str,
        feature_size: int,
        num_classes: int,
        *,
        margin: float = 1.0,
        likelihood_weight: float = 1.0,
        covariance: Covariance = "identity",
        sample: SampleSpec | None = None,
        normalize: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        """Add the head. Call it in `__init__`, after `super().__init__()`.

        Args:
            extractor: Name of the submodule or method that maps inputs to features `(B, feature_size)`; may contain
                dots.
            feature_size: D, the length of a feature vector.
            num_classes: C, at least 2.
            margin: α, at least 0.
            likelihood_weight: λ, at least 0.
            covariance: "identity", or "diagonal" for one learned variance per class and feature.
            sample: Paths of inputs and labels in a batch. Default: detected.
            normalize: Normalize features, and let margin and λ grow with what the head has learned; see `LGMHead`.
            generator: Draws the initial means. Default: a fixed seed.

        Raises:
            TypeError: If the mixin is listed after `LightningModule` among the bases.
            ValueError: If an argument is out of range.
        """
        order = type(self).__mro__
        if any(
            order.index(host) < order.index(LGMMixin) for host in lightning_types("LightningModule") if host in order
        ):
            raise TypeError(
                "Expected `LGMMixin` before `LightningModule` among the bases, but got it after.\n"
                f"Write `class {type(self).__name__}(LGMMixin, LightningModule)`."
            )
        self._lgm_extractor = extractor
        self._lgm_sample = sample
        self._lgm_watch = LearningWatch("lgm_head")
        self.lgm_head = LGMHead(
            feature_size,
            num_classes,
            margin=margin,
            likelihood_weight=likelihood_weight,
            covariance=covariance,
            normalize=normalize,
            generator=generator,
        )

    def extract_features(self, inputs: Any) -> Tensor:
        """Return the features of inputs, `(B, D)`.

        Raises:
            AttributeError: If `add_lgm_head` was not called, or its extractor does not exist.
        """
        if not self._lgm_extractor:
            raise AttributeError(
                "Expected a module with an LGM head, but got one without.\nCall `self.add_lgm_head(...)` in `__init__`."
            )
        try:
            extractor = attrgetter(self._lgm_extractor)(self)
        except AttributeError as error:
            children = ", ".join(repr(name) for name, _ in self.named_children())
            hint = f"The submodules of the module are: {children}."
            message = expected("extractor", "the name of a submodule or method", repr(self._lgm_extractor), hint)
            raise AttributeError(message) from error
        features: Tensor = extractor(inputs)
        return features

    def forward(self, inputs: Any) -> Tensor:
        """Return logits `(B, C)` without a margin."""
        features = self.extract_features(inputs)
        logits: Tensor = self.lgm_head(features)
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:  # noqa: ARG002 (Lightning's signature)
        """Return the loss of a batch; see `lgm_step`."""
        return self.lgm_step(batch)

    def lgm_step(self, batch: Any) -> Tensor:
        """Return the Gaussian mixture loss of a batch, a scalar, and log its two terms. For use in a training step."""
        inputs, labels = self._lgm_parts(batch)
        loss = self.lgm_loss(inputs, labels)
        self.log_dict(
            {
                "train/lgm_classification": loss.classification.detach(),
                "train/lgm_likelihood": loss.likelihood.detach(),
            },
            on_step=False,
            on_epoch=True,
            sync_dist=True,
            batch_size=len(labels),
        )
        return loss.total

    def lgm_loss(self, inputs: Any, labels: Tensor) -> LGMLoss:
        """Return the loss of inputs with labels `(B,)` and its two terms, scalars, without logging."""
        features = self.extract_features(inputs)
        loss = self.lgm_head.loss(features, labels)
        if self.training:
            self._lgm_watch.step(self, self.lgm_head, features, labels)
        return loss

    def log_likelihood(self, batch: Any) -> Tensor:
        """Return log p(f(x) | y) of every sample of a batch under its label, in nats.

        Computed in evaluation mode. Input tensors are moved to the module's device and precision, labels to its device.
        Gradients flow to inputs that require them.

        Args:
            batch: Inputs and labels, as in training.

        Returns:
            `(B,)`, at least float32. Lower values mean that the features fit the label less.
        """
        inputs, labels = self._lgm_parts(batch)
        means = self.lgm_head.means
        if isinstance(inputs, Tensor):
            inputs = inputs.to(means.device, means.dtype if inputs.is_floating_point() else inputs.dtype)
        with evaluating(self):
            return self.lgm_head.log_likelihood(self.extract_features(inputs), labels.to(means.device))

    def _lgm_parts(self, batch: Any) -> tuple[Any, Tensor]:
        """Return the inputs and the labels of a batch."""
        spec = self._lgm_sample or SampleSpec.detect(batch, batched=True)
        return spec.inputs_in(batch), spec.labels_in(batch).long()
