"""Faults of the labels of trusted data: another numbering of the classes, and wrong labels."""

import torch
from torch import Tensor

from lightning_poison.errors import InconclusiveError
from lightning_poison.sanitization.job import CONFIDENCE
from lightning_poison.statistics.contamination import estimate_contamination, has_evidence

_FEWEST = 50
"""Number of held-out trusted samples from which wrong labels among them are estimated."""

_SHOWN = 5


def check_numbering(labels: Tensor, predictions: Tensor) -> None:
    """Check that trusted data number the classes as the training data do.

    They do not if most samples of a class are predicted as one other class, and these classes are a permutation.

    Args:
        labels: Labels of the training data, int64 `(N,)`.
        predictions: Labels that a scorer predicts, which was fitted on the trusted data, int64 `(N,)`; -1 if unknown.

    Raises:
        InconclusiveError: If they do not.

    Example:
        >>> labels = torch.arange(30) % 3
        >>> check_numbering(labels, labels)
        >>> check_numbering(labels, (labels + 1) % 3)
        Traceback (most recent call last):
        lightning_poison.errors.InconclusiveError: Expected `trusted` labels that mean what those of the training data
        mean, but most training samples of 3 of 3 classes look like another class of `trusted`, the next one: the
        classes are numbered differently.
        Number the classes of both in the same way. With the present numbers nothing can be said about the samples.
    """
    places = (predictions >= 0).nonzero().flatten()
    if not len(places):
        return
    classes = torch.unique(labels)
    usual = {}
    for number in classes.tolist():
        counts = torch.bincount(predictions[places][labels[places] == number])
        if len(counts) and int(counts.argmax()) != number and 2 * int(counts.max()) > int(counts.sum()):
            usual[number] = int(counts.argmax())
    if len(usual) < 2 or set(usual) != set(usual.values()):
        return
    steps = {(other - number) % len(classes) for number, other in usual.items()}
    which = {1: ", the next one", len(classes) - 1: ", the one before"}.get(next(iter(steps)), "")
    raise InconclusiveError(
        "Expected `trusted` labels that mean what those of the training data mean, but most training samples of "
        f"{len(usual)} of {len(classes)} classes look like another class of `trusted`"
        f"{which if len(steps) == 1 and len(classes) > 2 else ''}: the classes are numbered differently.\n"
        "Number the classes of both in the same way. With the present numbers nothing can be said about the samples."
    )


def wrong_label_note(
    labels: Tensor, label_scores: Tensor, positions: Tensor, *, natural_error_rate: float
) -> str | None:
    """Return a sentence about wrong labels among held-out trusted samples, or `None` without evidence of any.

    Args:
        labels: Their labels, int64 `(M,)`.
        label_scores: Their scores under each label, float64 `(M, C)`.
        positions: Their positions in the trusted data, int64 `(M,)`.
        natural_error_rate: Share of wrong labels that does not count, in [0, 1].

    Example:
        >>> labels = torch.arange(400) % 4
        >>> label_scores = 9 - 9 * torch.eye(4).double()[labels]
        >>> labels[:30] = (labels[:30] + 1) % 4
        >>> note = wrong_label_note(labels, label_scores, torch.arange(400), natural_error_rate=0.003)
        >>> print(note.partition(". ")[0])
        `trusted` has wrong labels: an estimated 7.5 % (5.3 to 10.5 %) of the held-out samples, such as 0, 4, 8, 12, 16
    """
    if len(labels) < _FEWEST or not bool((label_scores.argmin(1) == labels).any()):
        return None
    found = estimate_contamination(label_scores, labels, confidence=CONFIDENCE)
    if not has_evidence(found, natural_error_rate=natural_error_rate):
        return None
    likely = found.posterior.argsort(descending=True, stable=True)
    likely = likely[found.posterior[likely] > 0.5][:_SHOWN]
    listed = ", ".join(map(str, positions[likely].tolist()))
    return (
        f"`trusted` has wrong labels: an estimated {100 * found.rate:.1f} % ({100 * found.low:.1f} to "
        f"{100 * found.high:.1f} %) of the held-out samples"
        f"{f', such as {listed}' if listed else ''}. Correct or remove them: with wrong labels among the trusted "
        "samples, thresholds are too high and poison is kept."
    )
