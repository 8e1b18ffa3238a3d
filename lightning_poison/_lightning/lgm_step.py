"""`LGMStep`: passes the labels of a batch to an LGM head that the module calls with features alone.

`LearningWatch`, for the injector and the mixin: warns if a head learns nothing.
"""

import warnings
from math import log
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_poison._lightning.step_wrappers import StepWrappers
from lightning_poison.adversarial.step_output import loss_in, with_loss
from lightning_poison.checks import describe
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.models.lgm_head import LGMHead

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule

_MIN_STEPS, _MIN_PER_CLASS = 20, 20
"""Steps, and samples per class on average, after which a head must have learned something."""

_RECENT = 0.1
"""Weight of a batch in the recent accuracy and cross-entropy."""

_UNINFORMED = 0.98
"""Share of the labels' entropy above which the cross-entropy of a head says that it knows nothing."""


class LearningWatch:
    """Warns, once, at the end of an epoch in which an LGM head still classifies no better than chance.

    A head learns nothing if, over the last batches, its accuracy is not significantly above the share of the most
    frequent label, and its cross-entropy is not below the entropy of the labels. It is judged at the end of the first
    epoch, or later if there were fewer than 20 steps or 20 samples per class before. Once it has learned something, it
    is not watched any more. Each rank watches its own batches, without communication; rank 0 warns.

    Args:
        name: Name of the head, for the warning.

    Example:
        >>> watch = LearningWatch("fc")
        >>> head = LGMHead(2, num_classes=2)
        >>> for _ in range(20):
        ...     watch.update(head, torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]))
        >>> watch.learned_nothing()
        True
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._active = True
        self._steps = self._samples = 0
        self._recent: Tensor | None = None
        self._counts: Tensor | None = None

    def step(self, module: "LightningModule", head: LGMHead, features: Tensor, labels: Tensor) -> None:
        """Watch one training batch of a module, and warn if it is the last of an epoch and nothing was learned."""
        if not self._active or module._trainer is None or not module.trainer.training:
            return
        self.update(head, features, labels)
        if not module.trainer.is_last_batch or not self._judgeable(head):
            return
        learned_nothing = self.learned_nothing()
        self._active = False
        if learned_nothing and module.trainer.is_global_zero:
            warnings.warn(self._message(head), RuntimeWarning, stacklevel=2)

    @torch.no_grad()
    def update(self, head: LGMHead, features: Tensor, labels: Tensor) -> None:
        """Add a batch of features `(B, D)` with labels `(B,)`, without a synchronization."""
        if not len(labels):
            return
        logits = head.log_likelihoods(features.detach()) + head.log_prior
        figures = torch.stack([(logits.argmax(dim=1) == labels).float().mean(), F.cross_entropy(logits, labels)])
        ones = torch.ones(len(labels), dtype=torch.float32, device=labels.device)
        counts = ones.new_zeros(head.num_classes).index_add(0, labels, ones)
        if self._recent is None or self._counts is None:
            self._recent, self._counts = figures, counts
        else:
            self._recent = self._recent + max(_RECENT, 1 / (self._steps + 1)) * (figures - self._recent)
            self._counts = self._counts + counts
        self._steps += 1
        self._samples += len(labels)

    def learned_nothing(self) -> bool:
        """Return whether the head classified the last batches no better than chance."""
        if self._recent is None or self._counts is None:
            return False
        accuracy, cross_entropy = self._recent.tolist()
        shares = self._counts / self._counts.sum()
        chance, entropy = float(shares.max()), float(torch.special.entr(shares).sum())
        recent_samples = self._samples / self._steps * min(self._steps, 2 / _RECENT)
        by_chance = chance + 3 * (chance * (1 - chance) / recent_samples) ** 0.5
        return not (accuracy > by_chance or cross_entropy < _UNINFORMED * entropy)

    def _judgeable(self, head: LGMHead) -> bool:
        return self._steps >= _MIN_STEPS and self._samples >= _MIN_PER_CLASS * head.num_classes

    def _message(self, head: LGMHead) -> str:
        accuracy, cross_entropy = self._recent.tolist() if self._recent is not None else (float("nan"),) * 2
        advice = "Lower the learning rate, or set smaller `margin` and `likelihood_weight`, for example 0.1."
        if not head.normalize:
            advice = "Build the head with `normalize=True`. " + advice
        return (
            f"Expected the LGM head `{self._name}` to have learned something after {self._steps} steps, but its "
            f"training accuracy is {accuracy:.3f}, no better than chance, and its cross-entropy {cross_entropy:.2f} "
            f"nats (uniform guessing: {log(head.num_classes):.2f}).\n{advice} If the module does not learn with a "
            "linear layer in its place either, check labels and inputs."
        )


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
        self._watch = LearningWatch(name)
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
        for features in self._features:
            self._watch.step(self._module, self._head, features, labels)
        return with_loss(output, loss + self._head.current_likelihood_weight * likelihood)
