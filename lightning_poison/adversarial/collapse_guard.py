"""`CollapseGuard`: whether training on single steps has fallen into the trap that several steps see through.

Wong, Rice, Kolter 2020, arXiv 2001.03994, section 5.4, on catastrophic overfitting: within an epoch a network that is
trained by FGSM may learn to resist that one step alone, and lose all robustness against PGD.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_poison.adversarial.adversaries import PGD, Adversary
from lightning_poison.adversarial.batch import AttackedBatch, sample_cross_entropy
from lightning_poison.checks import fraction, positive_int


@dataclass(frozen=True)
class CollapseGuard:
    """Probes some training samples by PGD at the end of each epoch of the whole radius, beside the step of training.

    Training counts as collapsed where PGD leaves less than a share of the accuracy that the single step leaves, by more
    than chance could: three standard deviations of a count. Both attacks are on the same samples, of the same radius.
    While the radius grows nothing is probed: a network that has just met it withstands PGD badly, and may yet learn to.

    Args:
        samples: how many of the last batches of an epoch are probed on each rank; each epoch's last `samples` are
            kept until then.
        steps: of the probe, each 2.5 ε / steps long.
        share: of the accuracy under the single step, in (0, 1).
        fallback_steps: of the PGD that is trained on after a collapse.

    Raises:
        ValueError: where an argument is out of its range.

    Example:
        >>> CollapseGuard().has_collapsed(torch.tensor([60, 12]))
        True
    """

    samples: int = 128
    steps: int = 10
    share: float = 0.5
    fallback_steps: int = 3

    def __post_init__(self) -> None:
        for name in ("samples", "steps", "fallback_steps"):
            positive_int(name, getattr(self, name))
        fraction("share", self.share)

    def latest(self, batches: Sequence[AttackedBatch]) -> list[AttackedBatch]:
        """Return the last batches that hold `samples` together, or all where they are fewer."""
        kept, count = list[AttackedBatch](), 0
        for batch in reversed(batches):
            if count < self.samples:
                kept.insert(0, batch)
                count += len(batch.inputs)
        return kept

    def probe(self, batches: Sequence[AttackedBatch]) -> Tensor:
        """Count how many of the samples are read rightly under the batches' own adversary, and under PGD.

        Args:
            batches: one or more; of the last ones `samples` are probed.

        Returns:
            int64 `(2,)`.
        """
        right, left = torch.zeros(2, dtype=torch.int64, device=batches[-1].inputs.device), self.samples
        for attacked in reversed(batches):
            if left > 0:
                right += self._count(attacked, left)
                left -= len(attacked.inputs)
        return right

    def _count(self, attacked: AttackedBatch, samples: int) -> Tensor:
        inputs, labels = attacked.inputs[:samples], attacked.labels[:samples]
        probes: tuple[Adversary, ...] = (attacked.adversary, PGD(attacked.adversary.epsilon, steps=self.steps))
        right = []
        for adversary in probes:
            found = attacked.perturbed(
                inputs, lambda changed: attacked.loss(attacked.logits(changed), labels), adversary=adversary
            )
            right.append(is_read(attacked.read(found), labels).sum())
        return torch.stack(right)

    def has_collapsed(self, right: Tensor) -> bool:
        """Tell whether what `probe` counted, summed over ranks, is a collapse."""
        single, several = (int(count) for count in right)
        return bool(several < self.share * single and single - several > 3 * single**0.5)

    def fallback(self, epsilon: float) -> PGD:
        """Return what is trained on after a collapse."""
        return PGD(epsilon, steps=self.fallback_steps)


def is_read(logits: Tensor, labels: Tensor) -> Tensor:
    """Tell which samples are read as their labels, bool `(B,)`; of mixed labels the largest counts, and NaN is none.

    Example:
        >>> is_read(torch.tensor([[1.0, 0.0], [0.0, 1.0], [torch.nan, 0.0]]), torch.tensor([0, 0, 0]))
        tensor([ True, False, False])
    """
    read = logits.argmax(1) == (labels.argmax(1) if labels.is_floating_point() else labels)
    return read & ~logits.isnan().any(1)


def robust_figures(attacked: AttackedBatch) -> dict[str, Tensor]:
    """Return loss and accuracy of clean and of changed inputs, in evaluation mode.

    Losses of another kind may have no classes that could be read; then there is no accuracy.

    Raises:
        FloatingPointError: where a gradient is NaN or infinite.
    """
    return {**_measured(attacked, "clean", attacked.inputs), **_measured(attacked, "robust", attacked.misleading())}


def evaluation_figures(attacked: AttackedBatch) -> dict[str, Tensor]:
    """Return `robust_figures`; NaN for those of changed inputs where none can be found.

    A module that has diverged is no reason to stop a validation.
    """
    try:
        return robust_figures(attacked)
    except FloatingPointError:
        clean = _measured(attacked, "clean", attacked.inputs)
        unknown = {name.replace("clean", "robust"): torch.full_like(value, torch.nan) for name, value in clean.items()}
        return {**clean, **unknown}


def names_classes(attacked: AttackedBatch, logits: Tensor) -> bool:
    """Tell whether logits and labels name one class each, so that they can be compared.

    It depends on shapes and types alone, so that it is the same for all batches, on all ranks.
    """
    labels = attacked.labels
    if logits.ndim < 2 or logits.shape[1] < 2:
        return False
    if labels.is_floating_point():
        return attacked.loss is sample_cross_entropy and labels.shape == logits.shape
    return labels.shape == logits.shape[:1] + logits.shape[2:]


def _measured(attacked: AttackedBatch, name: str, inputs: Tensor) -> dict[str, Tensor]:
    logits = attacked.read(inputs)
    with torch.no_grad():
        figures = {f"{name}_loss": attacked.loss(logits, attacked.labels).mean()}
        if names_classes(attacked, logits):
            figures[f"{name}_accuracy"] = is_read(logits, attacked.labels).float().mean()
    return figures
