"""`LGMStep`: passes the labels of a batch to an LGM head that the module calls with features alone."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lightning_poison._lightning.step_wrappers import StepWrappers
from lightning_poison.adversarial.step_output import loss_in, with_loss
from lightning_poison.checks import describe
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.models.lgm_head import LGMHead

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule


class LGMStep:
    """Makes a module's `training_step` train on the Gaussian mixture loss, until removed.

    During the step, a forward hook passes the labels to the head, which applies its margin. After the step, the
    likelihood term of the head's features is added to the loss and logged. Outside the step the hook does nothing.

    Args:
        module: The module whose step is wrapped.
        head: Its LGM head.
        name: Name of the head, for error messages.
        sample: Paths of inputs and labels in a batch. Default: detected.
    """

    def __init__(self, module: "LightningModule", head: LGMHead, name: str, sample: SampleSpec | None) -> None:
        self._module, self._head, self._name, self._sample = module, head, name, sample
        self._labels: Tensor | None = None
        self._features: list[Tensor] = []
        self._handle = head.register_forward_pre_hook(self._add_labels, with_kwargs=True)
        StepWrappers.add(module, self, self._wrap, innermost=True)

    def remove(self) -> None:
        """Restore the module's own step and remove the hook."""
        self._handle.remove()
        StepWrappers.remove(self._module, self)

    def _wrap(self, call_next: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        spec = self._sample or SampleSpec.detect(batch, batched=True)
        labels = spec.labels_in(batch).long()
        try:
            self._labels, self._features = labels, []
            output = call_next(batch, *args, **kwargs)
            return output if output is None else self._with_likelihood(output, labels)
        finally:
            self._labels, self._features = None, []

    def _add_labels(self, _head: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._labels is None:
            return None
        (features,) = (*args, *kwargs.values())
        if len(features) != len(self._labels):
            raise ValueError(
                f"Expected `{self._name}` to get the features of all {len(self._labels)} samples of the batch, but got "
                f"{describe(features)}.\nIf the step joins or splits batches, write the module with `LGMMixin`."
            )
        self._features.append(features)
        return (features, self._labels), {}

    def _with_likelihood(self, output: Any, labels: Tensor) -> Any:
        """Return the step's output with λ L_lkd added to its loss."""
        if not self._features:
            raise RuntimeError(
                f"Expected `training_step` to call `{self._name}`, but it did not.\n"
                "Name the layer that computes the logits, or write the module with `LGMMixin`."
            )
        loss = loss_in(output)
        terms = [self._head.likelihood_loss(features, labels) for features in self._features]
        likelihood = torch.stack(terms).mean()
        self._module.log_dict(
            {"train/lgm_classification": loss.detach(), "train/lgm_likelihood": likelihood.detach()},
            on_step=False,
            on_epoch=True,
            sync_dist=True,
            batch_size=len(labels),
        )
        return with_loss(output, loss + self._head.likelihood_weight * likelihood)
