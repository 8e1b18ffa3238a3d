"""Agreement of predictions and labels, without which scores are not informative."""

import torch
from torch import Tensor

from lightning_poison.errors import InconclusiveError

MIN_AGREEMENT = 0.3
"""Cohen's κ between labels and predictions below which a scorer has not learned the labels."""

BETTER_SCORER_HINT = (
    "If the training set is augmented, score the same samples without augmentation (`score_dataset=` of a "
    "`Sanitizer`). Otherwise, give the scorer a stronger `backbone=` or a longer fit, or pass `trusted=` data."
)


def check_agreement(labels: Tensor, predictions: Tensor, *, hint: str = BETTER_SCORER_HINT) -> None:
    """Raise if predictions and labels barely agree.

    Args:
        labels: Labels, int64 `(N,)`.
        predictions: Predicted labels, int64 `(N,)`.
        hint: What to do about it, for the message.

    Raises:
        InconclusiveError: If Cohen's κ of the two (*A coefficient of agreement for nominal scales*, 1960) is below
            `MIN_AGREEMENT`.

    Example:
        >>> check_agreement(torch.tensor([0, 1, 0, 1]), torch.tensor([0, 1, 0, 1]))
        >>> check_agreement(torch.tensor([0, 1, 0, 1]), torch.tensor([0, 1, 1, 0]))
        Traceback (most recent call last):
        lightning_poison.errors.InconclusiveError: Expected predictions that agree with the labels, ...
    """
    agreement = cohen_kappa(labels, predictions)
    if agreement < MIN_AGREEMENT:
        raise InconclusiveError(
            f"Expected predictions that agree with the labels, Cohen's κ at least {MIN_AGREEMENT:g}, but got "
            f"{agreement:.2f}: the scorer has not learned the labels, so its scores are not informative.\n"
            f"{hint}"
        )


def cohen_kappa(labels: Tensor, predictions: Tensor) -> float:
    """Compute Cohen's κ of two classifications: their agreement beyond that by chance, (p_o − p_e) / (1 − p_e).

    scikit-learn's `cohen_kappa_score` returns the same from a table of all pairs of classes.

    Args:
        labels: int64 `(N,)`, at least 0.
        predictions: int64 `(N,)`, at least 0.

    Returns:
        At most 1; NaN if all labels and predictions are one class.

    Example:
        >>> cohen_kappa(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1, 0]))
        0.5
    """
    classes = 1 + int(torch.maximum(labels.max(), predictions.max()))
    shares = [each.bincount(minlength=classes).double() / len(labels) for each in (labels, predictions)]
    by_chance = float(shares[0] @ shares[1])
    if by_chance == 1:
        return float("nan")
    return (float((labels == predictions).double().mean()) - by_chance) / (1 - by_chance)
