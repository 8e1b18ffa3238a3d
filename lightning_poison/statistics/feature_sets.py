"""Checks of a set of feature vectors and their labels."""

import torch
from torch import Tensor

from lightning_poison.statistics.arguments import check_label_vector, describe, invalid

_CHUNK = 8192
"""Rows per chunk, which bounds the memory of a check."""


def check_feature_set(features: Tensor, labels: Tensor, *, per_class: int = 2, why: str = "") -> None:
    """Raise an error unless a set of features can be scored.

    Args:
        features: Features, floating-point `(N, D)`.
        labels: Labels, int64 `(N,)`, at least 0. Classes may be absent.
        per_class: Minimum number of samples in each class that occurs. Default: 2.
        why: Sentence for the error message on why fewer samples are not enough.

    Raises:
        ValueError: If shapes or dtypes are wrong, the set is empty, a feature is NaN or infinite, all samples have the
            same features, a label is negative, or a class has too few samples.

    Example:
        >>> check_feature_set(torch.eye(4), torch.tensor([0, 0, 2, 2]))
        >>> check_feature_set(torch.eye(3), torch.tensor([0, 0, 1]))
        Traceback (most recent call last):
        ValueError: Expected `labels` to have at least 2 samples per class, but got 1 of class 1.
        Remove the class, or add samples of it.
    """
    check_features(features)
    check_label_vector("labels", labels)
    if len(labels) != len(features):
        raise invalid("labels", f"one for each of the {len(features)} feature vectors", len(labels))
    if (lowest := int(labels.min())) < 0:
        hint = "Remove samples without a label."
        raise invalid("labels", "at least 0", f"{lowest} in row {int(labels.argmin())}", hint)
    if all(bool((rows == features[0]).all()) for rows in torch.split(features, _CHUNK)):
        hint = "The network has collapsed, or this layer is uninformative: train longer, or name another layer."
        raise invalid("features", "different from sample to sample", f"{len(features)} times the same vector", hint)
    check_class_sizes(labels, per_class, why)


def check_features(features: Tensor) -> None:
    """Raise an error unless features are a finite floating-point matrix with at least one row.

    Args:
        features: Features, floating-point `(N, D)`.

    Raises:
        ValueError: If the shape or the dtype is wrong, the matrix is empty, or a feature is NaN or infinite.

    Example:
        >>> check_features(torch.tensor([[0.0], [float("nan")]]))
        Traceback (most recent call last):
        ValueError: Expected `features` to be finite, but got NaN or infinite values in row 1.
        Check the network: its weights may have diverged, or the layer may overflow.
    """
    if not isinstance(features, Tensor) or not features.is_floating_point() or features.ndim != 2 or not len(features):
        raise invalid("features", "a floating-point tensor (N, D) of at least one sample", describe(features))
    for start, rows in zip(range(0, len(features), _CHUNK), torch.split(features, _CHUNK), strict=True):
        infinite = ~torch.isfinite(rows)
        if bool(infinite.any()):
            row = start + int(infinite.any(1).nonzero()[0])
            hint = "Check the network: its weights may have diverged, or the layer may overflow."
            raise invalid("features", "finite", f"NaN or infinite values in row {row}", hint)


def check_class_sizes(labels: Tensor, per_class: int, why: str = "") -> None:
    """Raise an error if a class that occurs has too few samples.

    Args:
        labels: Labels, int64 `(N,)`.
        per_class: Minimum number of samples in each class.
        why: Sentence for the error message on why fewer samples are not enough.

    Raises:
        ValueError: If a class has fewer samples. The message names the class.

    Example:
        >>> check_class_sizes(torch.tensor([0, 0, 1]), 2, "A single sample has no spread.")
        Traceback (most recent call last):
        ValueError: Expected `labels` to have at least 2 samples per class, but got 1 of class 1.
        A single sample has no spread. Remove the class, or add samples of it.
    """
    classes, counts = torch.unique(labels, return_counts=True)
    if bool((counts >= per_class).all()):
        return
    first = int((counts < per_class).nonzero()[0])
    hint = " ".join(filter(None, [why, "Remove the class, or add samples of it."]))
    raise ValueError(
        f"Expected `labels` to have at least {per_class} samples per class, but got {int(counts[first])} of class "
        f"{int(classes[first])}.\n{hint}"
    )
