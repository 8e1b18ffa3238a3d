"""Effect of a group of samples on other samples, which separates poison from a natural part of a class."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_poison.statistics.arguments import check_fraction, invalid
from lightning_poison.statistics.intervals import wilson_interval

SHORTCUT_MARGIN = 3.0
"""Margin of a class, in units of the largest of the other classes, from which something simple identifies its samples.

On CIFAR-10 it is at most 1.2 for clean classes, and 4.3 for one of which 80 % carry a sinusoid (SIG).
"""

MIN_OTHER_CLASSES, WIDE_GAP = 8, 6.0
"""Number of other classes from which it is evidence that something moves samples of each of them to a class, and
Ashman's D of a group from which it is evidence with fewer.

Features of a natural part of a class may well do so with few other classes: on two or three of CIFAR-10, .7 to .95, and
on five, once in four times more than .6, of groups with a D of 4 to 4.6.
"""

_LARGEST_RATIO = 1e6


@dataclass(frozen=True)
class SuspectGroup:
    """A group of samples that is separated from the rest of its class, and its effect on other samples.

    Args:
        label: Label of the samples.
        size: Number of samples.
        separation: Ashman's D; see `lightning_poison.statistics.subgroups.ashman_separation`.
        transfer: See `transfer_share`.
        resemblance: See `resemblance`.
        is_poison: Whether the group is considered poison.
        rest_margin: See `rest_margin`. Default: 0.
        pattern: Share of the images of any other class that the common pattern of the group turns into its class, for
            most of a class; see `transfer_share`. Default: 0.

    Example:
        >>> print(SuspectGroup(0, 95, 24.4, 0.89, 0.02, True).describe("0"))
        labeled 0: 95 samples form a separate group (Ashman's D 24.4); their features shift 89 % of any other class to 0
        >>> print(SuspectGroup(3, 120, 7.1, 0.01, 0.2, False).describe("cat"))
        labeled cat: 120 samples form a separate group (Ashman's D 7.1) without an effect on others
        >>> print(SuspectGroup(3, 120, 7.1, 0.01, 0.0, False, 4.3).describe("cat"))
        labeled cat: 120 samples form a separate group (Ashman's D 7.1) without an effect on others, but the other \
samples of this class are recognized by something that these lack, with 4.3 times the margin of any other class: \
compare the two
        >>> print(SuspectGroup(0, 800, 7.7, 0.0, 0.0, True, pattern=0.96).describe("0"))
        labeled 0: 800 samples, most of the class, share a pattern that turns 96 % of the images of any other class \
into 0
    """

    label: int
    size: int
    separation: float
    transfer: float
    resemblance: float
    is_poison: bool
    rest_margin: float = 0.0
    pattern: float = 0.0

    def describe(self, name: str) -> str:
        """Return a one-line description, with `name` as the name of the class."""
        if self.pattern:
            return (
                f"labeled {name}: {self.size:,} samples, most of the class, share a pattern that turns "
                f"{100 * self.pattern:.0f} % of the images of any other class into {name}"
            )
        found = f"labeled {name}: {self.size:,} samples form a separate group (Ashman's D {self.separation:.1f})"
        if not self.is_poison and self.rest_margin >= SHORTCUT_MARGIN:
            return (
                f"{found} without an effect on others, but the other samples of this class are recognized by something "
                f"that these lack, with {self.rest_margin:.1f} times the margin of any other class: compare the two"
            )
        if not self.is_poison:
            return f"{found} without an effect on others"
        if self.transfer >= self.resemblance:
            return f"{found}; their features shift {100 * self.transfer:.0f} % of any other class to {name}"
        return (
            f"{found}; at least {100 * self.resemblance:.0f} % of them look like other classes, beyond what is natural"
        )


def transfer_share(before: Tensor, after: Tensor, labels: Tensor, label: int) -> float:
    """Compute the share of samples of any other class whose prediction a change of features moves to one class.

    The change is the difference between the mean features of a group and those of samples that look like its members
    but are not part of it. If that is a trigger, it moves samples of every class to the group's class. The slant of
    some 1s turns no other digit into a 1, and the features of a natural part of a class move samples of some classes
    only. The result is therefore the minimum over the classes: the attack success rate, for the hardest class, of the
    trigger in the network's features.

    Args:
        before: Predictions for samples of other classes, int64 `(M,)`.
        after: Predictions for the same samples with changed features, int64 `(M,)`.
        labels: Labels of these samples, int64 `(M,)`.
        label: Class of the group.

    Returns:
        Share of the samples of a class that are predicted as `label` with the change, among those that are not without
        it: the minimum over the classes, in [0, 1]. 0 if there is no such sample.

    Example:
        >>> before, after = torch.tensor([1, 1, 2, 2, 0]), torch.tensor([0, 0, 0, 2, 0])
        >>> transfer_share(before, after, torch.tensor([1, 1, 2, 2, 2]), 0)
        0.5
    """
    eligible = (before != label) & (labels != label)
    shares = [
        float((after[eligible & (labels == number)] == label).double().mean())
        for number in torch.unique(labels[eligible]).tolist()
    ]
    return min(shares, default=0.0)


def has_enough_classes(labels: Tensor, minimum: int = MIN_OTHER_CLASSES) -> bool:
    """Return whether an effect on samples of other classes, with labels int64 `(M,)`, says something.

    Example:
        >>> has_enough_classes(torch.arange(7)), has_enough_classes(torch.arange(8))
        (False, True)
    """
    return len(torch.unique(labels)) >= minimum


def look_alike_mean(features: Tensor, labels: Tensor, predictions: Tensor) -> Tensor:
    """Compute the mean features of samples that look like the members of a group but are not part of it.

    Args:
        features: Features of samples that are in no group, `(N, D)`. Must include each class predicted for a member.
        labels: Labels of these samples, int64 `(N,)`.
        predictions: Predictions for the members, by a network that was trained without the group, int64 `(M,)`.

    Returns:
        Mean of the class means, weighted by the share of members predicted as each class, float64 `(D,)`.

    Example:
        >>> features, labels = torch.tensor([[0.0], [2.0], [10.0]]), torch.tensor([0, 0, 1])
        >>> look_alike_mean(features, labels, torch.tensor([0, 0, 0, 1]))
        tensor([3.2500], dtype=torch.float64)
    """
    classes, counts = torch.unique(predictions, return_counts=True)
    means = [features[(labels == number).to(features.device)].double().mean(0) for number in classes.tolist()]
    weights = (counts.double() / len(predictions)).to(features.device)
    return torch.einsum("k,kd->d", weights, torch.stack(means))


def resemblance(
    logits: Tensor, label: int, reference_logits: Tensor, reference_labels: Tensor, *, margin: float = 0.3
) -> float:
    """Compute the share of a group that looks like other classes, beyond that of the rest of its class.

    The network is trained without the group: exclusionary reclassification of Chen et al., "Detecting Backdoor Attacks
    on Deep Neural Networks by Activation Clustering", SafeAI 2019, arXiv 1811.03728, section 4. They ask for the class
    predicted for most of the group. Here, a prediction counts only if its margin is not small for the predicted class:
    a natural part of a class that is left out of training is misclassified often, but mostly with small margins. A
    trigger that the network has not learned reduces the margin, too, but less. In small groups the share is uncertain,
    so the lower end of its interval is used. Where classes are hard to tell apart, samples that are in no group look
    like other classes as well, so their share is subtracted: with p of the group and q of the rest of its class, the
    result is (p - q) / (1 - q), the share that the rest of the class does not explain.

    Args:
        logits: Logits of the group, `(M, C)`, by a network that was trained without it.
        label: Label of the group.
        reference_logits: Logits of samples in no group, on which the network was not trained either, `(R, C)`.
        reference_labels: Labels of these samples, int64 `(R,)`.
        margin: Minimum margin of a member that counts, in units of the median margin of the correctly classified
            samples of the predicted class, in (0, 1). Default: 0.3.

    Returns:
        (p - q) / (1 - q), or 0 if that is negative, with p the lower end of the 95 % Wilson interval of the share, in
        [0, 1).

    Raises:
        ValueError: If `margin` is out of range, or the group is empty.

    Example:
        >>> reference, labels = 9 * torch.eye(3).repeat(4, 1), torch.arange(3).repeat(4)
        >>> alike, own = torch.tensor([[0.0, 5.0, 0.0]]), torch.tensor([[5.0, 0.0, 0.0]])
        >>> [round(resemblance(alike.repeat(count, 1), 0, reference, labels), 2) for count in (5, 50)]
        [0.57, 0.93]
        >>> resemblance(own.repeat(50, 1), 0, reference, labels)
        0.0
    """
    check_fraction("margin", margin)
    if not len(logits):
        raise invalid("logits", "of at least one member of a group", "none")
    margins, predictions = _margins(logits)
    reference_margins, reference_predictions = _margins(reference_logits)
    correct = reference_predictions == reference_labels
    required = torch.full((logits.shape[1],), torch.inf, dtype=margins.dtype)
    for number in torch.unique(reference_labels[correct]).tolist():
        required[number] = margin * reference_margins[correct & (reference_labels == number)].quantile(0.5)
    count = ((predictions != label) & (margins >= required[predictions])).double().sum()
    low, _ = wilson_interval(count, torch.zeros_like(count), len(logits))
    alike = (reference_predictions != label) & (reference_margins >= required[reference_predictions])
    rest = alike[reference_labels == label].double()
    natural = float(rest.mean()) if len(rest) else 0.0
    share = float(low) / len(logits)
    return max(0.0, (share - natural) / (1 - natural)) if natural < 1 else 0.0


def rest_margin(logits: Tensor, labels: Tensor, label: int) -> float:
    """Compare the margin of the samples of a class that are in no group with those of other classes.

    Where most of a class is poisoned, its clean samples are the group, and they look like other classes to a network
    that has learned the trigger in place of the class. What gives it away is that the rest of the class is then
    recognized with a margin beyond that of any other class.

    Args:
        logits: Logits of samples in no group, on which the network was not trained, `(R, C)`.
        labels: Labels of these samples, int64 `(R,)`.
        label: The class.

    Returns:
        Median margin of the correctly classified samples of the class, divided by the largest such median of the other
        classes, at most 1e6; 0 if there are none of the class or of others.

    Example:
        >>> logits, labels = torch.tensor([[9.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 2.0]]), torch.arange(3)
        >>> rest_margin(logits, labels, 0), round(rest_margin(logits, labels, 1), 2)
        (3.0, 0.33)
    """
    margins, predictions = _margins(logits)
    correct = predictions == labels
    medians = {
        number: float(margins[correct & (labels == number)].quantile(0.5))
        for number in torch.unique(labels[correct]).tolist()
    }
    own, largest = medians.pop(label, 0.0), max(medians.values(), default=math.inf)
    return min(own / largest, _LARGEST_RATIO) if largest > 0 else 0.0


def _margins(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the margin of the largest logit over the second largest, float64 `(N,)`, and the prediction, `(N,)`."""
    highest = logits.double().topk(2, dim=1)
    return highest.values[:, 0] - highest.values[:, 1], highest.indices[:, 0]
