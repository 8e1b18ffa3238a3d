"""`CollapseGuard`: detects catastrophic overfitting in adversarial training with single-step attacks.

Wong, Rice, Kolter 2020, arXiv 2001.03994, section 5.4: within an epoch, a network trained with FGSM may learn to resist
only that single step, and lose all robustness against PGD.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_poison.adversarial.adversaries import PGD, Adversary
from lightning_poison.adversarial.batch import AttackedBatch, is_correct
from lightning_poison.checks import fraction, plain_numbers, positive_int


@dataclass(frozen=True)
class CollapseGuard:
    """Compares the accuracy under PGD and under the training attack at the end of each epoch with the full radius.

    Training has collapsed if the accuracy under PGD is less than `share` of that under the single step, by more than
    three standard deviations of a count. Both attacks use the same samples and the same radius. Epochs in which the
    radius still grows are not checked: a network is not yet robust to a new radius, and may become so.

    Args:
        samples: Number of samples from the last batches of an epoch to check on each rank. They are kept in memory
            until then. Default: 128.
        steps: Number of PGD steps in the check, each of length 2.5 ε / steps. Default: 10.
        share: Minimum ratio of the two accuracies, in (0, 1). Default: 0.5.
        fallback_steps: Number of PGD steps for training after a collapse. Default: 3.

    Raises:
        ValueError: If an argument is out of range.

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
        plain_numbers(self)

    def latest(self, batches: Sequence[AttackedBatch]) -> list[AttackedBatch]:
        """Return the last batches that contain `samples` samples in total, or all if there are fewer."""
        kept, count = list[AttackedBatch](), 0
        for batch in reversed(batches):
            if count < self.samples:
                kept.insert(0, batch)
                count += len(batch.inputs)
        return kept

    def probe(self, batches: Sequence[AttackedBatch]) -> Tensor:
        """Count the samples that are classified correctly under the batches' own adversary and under PGD.

        Args:
            batches: One or more batches. The first samples of the last batches are used, up to `samples`.

        Returns:
            Counts, int64 `(2,)`.
        """
        counts, remaining = torch.zeros(2, dtype=torch.int64, device=batches[-1].inputs.device), self.samples
        for attacked in reversed(batches):
            if remaining > 0:
                counts += self._count(attacked, remaining)
                remaining -= len(attacked.inputs)
        return counts

    def has_collapsed(self, counts: Tensor) -> bool:
        """Return whether the counts of `probe`, summed over ranks, show a collapse."""
        single, several = (int(count) for count in counts)
        return bool(several < self.share * single and single - several > 3 * single**0.5)

    def fallback(self, epsilon: float) -> PGD:
        """Return the adversary for training after a collapse."""
        return PGD(epsilon, steps=self.fallback_steps)

    def _count(self, attacked: AttackedBatch, samples: int) -> Tensor:
        inputs, labels = attacked.inputs[:samples], attacked.labels[:samples]
        adversaries: tuple[Adversary, ...] = (attacked.adversary, PGD(attacked.adversary.epsilon, steps=self.steps))
        counts = []
        for adversary in adversaries:
            perturbed = attacked.perturb(
                inputs, lambda candidates: attacked.loss(attacked.logits(candidates), labels), adversary=adversary
            )
            counts.append(is_correct(attacked.evaluate(perturbed), labels).sum())
        return torch.stack(counts)
