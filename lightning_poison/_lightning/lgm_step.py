"""`LabeledStep`: hands a batch's labels to an LGM head that is called, deep inside a module, with features alone."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lightning_poison._lightning.step_wrappers import StepChain
from lightning_poison.adversarial.step_output import loss_in, with_loss
from lightning_poison.checks import describe
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.models.lgm_head import LGMHead

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule


class LabeledStep:
    """Makes a module's `training_step` one of the Gaussian mixture loss, until it is removed.

    While the step runs, a forward hook gives the head the labels, so that it applies its margin; after it, the
    likelihood term of the features that the head got is added to the loss and logged. Outside of the step the hook is
    idle.

    Args:
        module: the module; its step gets wrapped.
        head: the head in it.
        name: the head's name, for messages.
        sample: where the labels stand in a batch; `None` to find out.
    """

    def __init__(self, module: "LightningModule", head: LGMHead, name: str, sample: SampleSpec | None) -> None:
        self._module, self._head, self._name, self._sample = module, head, name, sample
        self._labels: Tensor | None = None
        self._features: list[Tensor] = []
        self._handle = head.register_forward_pre_hook(self._hand_over, with_kwargs=True)
        StepChain.add(module, self, self._around, innermost=True)

    def remove(self) -> None:
        """Give the module its own step back, and take the hook away."""
        self._handle.remove()
        StepChain.remove(self._module, self)

    def _around(self, call_next: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        spec = self._sample or SampleSpec.detect(batch, batched=True)
        labels = spec.labels_in(batch).long()
        try:
            self._labels, self._features = labels, []
            output = call_next(batch, *args, **kwargs)
            return output if output is None else self._with_likelihood(output, labels)
        finally:
            self._labels, self._features = None, []

    def _hand_over(self, _head: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._labels is None:
            return None
        (features,) = (*args, *kwargs.values())
        if len(features) != len(self._labels):
            raise ValueError(
                f"Expected `{self._name}` to get the features of the batch's {len(self._labels)} samples, but got "
                f"{describe(features)}.\nA step that joins or splits batches needs `LGMMixin` in the module."
            )
        self._features.append(features)
        return (features, self._labels), {}

    def _with_likelihood(self, output: Any, labels: Tensor) -> Any:
        """Return what the step returned, with λ L_lkd added to its loss."""
        if not self._features:
            raise RuntimeError(
                f"Expected `training_step` to call `{self._name}`, but it did not.\n"
                "Name the layer that makes the logits, or write the module with `LGMMixin`."
            )
        loss = loss_in(output)
        terms = [self._head.likelihood_loss(features, labels) for features in self._features]
        likelihood = torch.stack(terms).mean()
        self._log(loss, likelihood, len(labels))
        total = loss + self._head.likelihood_weight * likelihood
        return with_loss(output, total)

    def _log(self, loss: Tensor, likelihood: Tensor, batch_size: int) -> None:
        self._module.log_dict(
            {"train/lgm_classification": loss.detach(), "train/lgm_likelihood": likelihood.detach()},
            on_step=False,
            on_epoch=True,
            sync_dist=True,
            batch_size=batch_size,
        )
