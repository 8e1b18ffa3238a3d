"""Agreement of predictions and labels, without which scores are not informative."""

from sklearn.metrics import cohen_kappa_score
from torch import Tensor

from lightning_poison.errors import InconclusiveError

MIN_AGREEMENT = 0.3
"""Cohen's κ between labels and predictions below which a scorer has not learned the labels."""

BETTER_SCORER_HINT = (
    "If the training set is augmented, score a view that is not (`score_dataset=` of a `Sanitizer`). Give the scorer a "
    "stronger `backbone=` or a longer fit, or pass `trusted=` data."
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
        >>> import torch
        >>> check_agreement(torch.tensor([0, 1, 0, 1]), torch.tensor([0, 1, 0, 1]))
        >>> check_agreement(torch.tensor([0, 1, 0, 1]), torch.tensor([0, 1, 1, 0]))
        Traceback (most recent call last):
        lightning_poison.errors.InconclusiveError: Expected predictions that agree with the labels, ...
    """
    agreement = float(cohen_kappa_score(labels.numpy(), predictions.numpy()))
    if agreement < MIN_AGREEMENT:
        raise InconclusiveError(
            f"Expected predictions that agree with the labels, Cohen's κ at least {MIN_AGREEMENT:g}, but got "
            f"{agreement:.2f}: the scorer has not learned the labels, so its scores are not informative.\n"
            f"{hint}"
        )
