"""What a group of samples does to others: two questions that tell poison from a natural part of a class."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_poison.checks import expected, fraction


@dataclass(frozen=True)
class SuspectGroup:
    """A group of samples that stands apart from the rest of its class, and what it does to others.

    Args:
        label: the class that its samples carry.
        size: how many samples it has.
        separation: how far it stands apart; see `lightning_poison.statistics.subgroups.ashman_separation`.
        transfer: see `transfer_share`.
        resemblance: see `resemblance`.
        is_poison: whether it is taken for poison.

    Example:
        >>> print(SuspectGroup(0, 950, 24.4, 0.89, 0.02, True).described("0"))
        labeled 0: 950 samples stand apart (Ashman's D 24.4); what they share makes 89 % of any other class a 0
        >>> print(SuspectGroup(3, 120, 7.1, 0.01, 0.2, False).described("cat"))
        labeled cat: 120 samples stand apart (Ashman's D 7.1), without an effect on others
    """

    label: int
    size: int
    separation: float
    transfer: float
    resemblance: float
    is_poison: bool

    def described(self, name: str) -> str:
        """Return a line for a person; `name` is that of the class."""
        found = f"labeled {name}: {self.size:,} samples stand apart (Ashman's D {self.separation:.1f})"
        if not self.is_poison:
            return f"{found}, without an effect on others"
        if self.transfer >= self.resemblance:
            return f"{found}; what they share makes {100 * self.transfer:.0f} % of any other class a {name}"
        return f"{found}; {100 * self.resemblance:.0f} % of them look like other classes"


def transfer_share(before: Tensor, after: Tensor, labels: Tensor, label: int) -> float:
    """Compute the share of samples of each other class that a change of their features makes a network read as one.

    The change is what a group has more of than samples that look like its members without being of it. If that is a
    trigger, samples of every class that are given it are read as the group's class; the slant of some 1s makes nothing
    a 1, and what parts of a class by nature have makes one of some classes only. So the class counts of which the
    fewest samples are read so: it is the attack success rate, for that class, of the trigger in the network's features.

    Args:
        before: int64 `(M,)`, as what samples of other classes are read.
        after: int64 `(M,)`, as what they are read with the change.
        labels: int64 `(M,)`, the labels that they carry.
        label: the class of the group.

    Returns:
        Of the samples of a class that are not read as the group's without the change, the share that is with it: the
        smallest over the classes, in [0, 1]; 0 where there is no such sample.

    Example:
        >>> before, after = torch.tensor([1, 1, 2, 2, 0]), torch.tensor([0, 0, 0, 2, 0])
        >>> transfer_share(before, after, torch.tensor([1, 1, 2, 2, 2]), 0)
        0.5
    """
    asked = (before != label) & (labels != label)
    shares = [
        float((after[asked & (labels == number)] == label).double().mean())
        for number in torch.unique(labels[asked]).tolist()
    ]
    return min(shares, default=0.0)


def look_alike_mean(features: Tensor, labels: Tensor, readings: Tensor) -> Tensor:
    """Return the mean feature vector of samples that look like the members of a group, without being of it.

    Args:
        features: `(N, D)`, of samples of no group; those of a class that members are read as must be among them.
        labels: int64 `(N,)`, the labels that they carry.
        readings: int64 `(M,)`, as what a network that has not seen the group reads its members.

    Returns:
        float64 `(D,)`: the mean of each class, weighted by the share of members that are read as it.

    Example:
        >>> features, labels = torch.tensor([[0.0], [2.0], [10.0]]), torch.tensor([0, 0, 1])
        >>> look_alike_mean(features, labels, torch.tensor([0, 0, 0, 1]))
        tensor([3.2500], dtype=torch.float64)
    """
    classes, counts = torch.unique(readings, return_counts=True)
    means = [features[(labels == number).to(features.device)].double().mean(0) for number in classes.tolist()]
    weights = (counts.double() / len(readings)).to(features.device)
    return torch.einsum("k,kd->d", weights, torch.stack(means))


def resemblance(
    logits: Tensor, label: int, reference_logits: Tensor, reference_labels: Tensor, *, quantile: float = 0.25
) -> float:
    """Compute the share of a group that looks like rightly labeled samples of other classes.

    The network has not seen the group: exclusionary reclassification of Chen et al., "Detecting Backdoor Attacks on
    Deep Neural Networks by Activation Clustering", SafeAI 2019, arXiv 1811.03728, section 4. Their question is what
    most of a group is read as. Here a reading counts only where it is as sure as those of the class that is read: a
    natural part of a class that is left out is misread often, but half-heartedly.

    Args:
        logits: of the group, `(M, C)`, by a network that was trained without it.
        label: the class that the group carries.
        reference_logits: of samples that are no part of any group, `(R, C)`, which the network has not seen either.
        reference_labels: int64 `(R,)`.
        quantile: the share of the rightly read samples of a class that may be less sure than a member that counts, in
            (0, 1).

    Returns:
        The share of the group, in [0, 1]; mislabeled samples are expected to reach 1 − `quantile`.

    Raises:
        ValueError: where the quantile is out of its range, or there is no group.

    Example:
        >>> reference, labels = 9 * torch.eye(3).repeat(4, 1), torch.arange(3).repeat(4)
        >>> resemblance(torch.tensor([[0.0, 9.0, 0.0], [5.0, 6.0, 0.0]]), 0, reference, labels)
        0.5
    """
    fraction("quantile", quantile)
    if not len(logits):
        raise ValueError(expected("logits", "of at least one member of a group", "none"))
    sure, read = _sureness(logits)
    known, known_as = _sureness(reference_logits)
    right = known_as == reference_labels
    least = torch.full((logits.shape[1],), torch.inf, dtype=sure.dtype)
    for number in torch.unique(reference_labels[right]).tolist():
        least[number] = known[right & (reference_labels == number)].quantile(quantile)
    return float(((read != label) & (sure >= least[read])).double().mean())


def _sureness(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the margin of the largest logit over the next, float64 `(N,)`, and whose it is."""
    highest = logits.double().topk(2, dim=1)
    return highest.values[:, 0] - highest.values[:, 1], highest.indices[:, 0]
