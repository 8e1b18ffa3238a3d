"""A set of feature vectors and the labels that its samples carry: checked once, at the door."""

import torch
from torch import Tensor

from lightning_poison.checks import describe, expected, index_vector

_ROWS = 8192
"""Samples that are looked at at once, so that a check needs little memory beside the features."""


def check_feature_set(features: Tensor, labels: Tensor, *, per_class: int = 2, why: str = "") -> None:
    """Raise where a set of features cannot be judged.

    Args:
        features: floating-point `(N, D)`.
        labels: int64 `(N,)`, at least 0; classes may be absent.
        per_class: the fewest samples that each class that occurs must have.
        why: a sentence on why fewer are not enough, for the error.

    Raises:
        ValueError: where shapes or dtypes are others, there is no sample, a feature is NaN or infinite, all samples
            have the same features, a label is negative, or a class has too few samples.

    Example:
        >>> check_feature_set(torch.eye(4), torch.tensor([0, 0, 2, 2]))
        >>> check_feature_set(torch.eye(3), torch.tensor([0, 0, 1]))
        Traceback (most recent call last):
        ValueError: Expected `labels` to be of at least 2 samples a class, but got 1 of class 1.
        Leave the class out, or add samples of it.
    """
    check_features(features)
    index_vector("labels", labels)
    if len(labels) != len(features):
        raise ValueError(expected("labels", f"one for each of the {len(features)} feature vectors", f"{len(labels)}"))
    if (lowest := int(labels.min())) < 0:
        came = f"{lowest} in row {int(labels.argmin())}"
        raise ValueError(expected("labels", "at least 0", came, "Leave samples without a label out."))
    if all(bool((rows == features[0]).all()) for rows in torch.split(features, _ROWS)):
        raise ValueError(
            expected("features", "different from sample to sample", f"{len(features)} times the same vector")
            + "\nThe network has collapsed, or says nothing at this layer: train it longer, or name another layer."
        )
    check_class_sizes(labels, per_class, why)


def check_features(features: Tensor) -> None:
    """Raise where features are no finite floating-point matrix of at least one row.

    Args:
        features: floating-point `(N, D)`.

    Raises:
        ValueError: where the shape or dtype is another, there is no sample, or a feature is NaN or infinite.

    Example:
        >>> check_features(torch.tensor([[0.0], [float("nan")]]))
        Traceback (most recent call last):
        ValueError: Expected `features` to be finite, but got NaN or infinite values in row 1.
        Look at the network: its weights may have diverged, or its layer may overflow.
    """
    if not isinstance(features, Tensor) or not features.is_floating_point() or features.ndim != 2 or not len(features):
        what = "a floating-point tensor (N, D) of at least one sample"
        raise ValueError(expected("features", what, describe(features)))
    for start, rows in zip(range(0, len(features), _ROWS), torch.split(features, _ROWS), strict=True):
        odd = ~torch.isfinite(rows)
        if bool(odd.any()):
            place = start + int(odd.any(1).nonzero()[0])
            raise ValueError(
                expected("features", "finite", f"NaN or infinite values in row {place}")
                + "\nLook at the network: its weights may have diverged, or its layer may overflow."
            )


def check_class_sizes(labels: Tensor, per_class: int, why: str = "") -> None:
    """Raise where a class that occurs has too few samples.

    Args:
        labels: int64 `(N,)`.
        per_class: the fewest that each must have.
        why: a sentence on why fewer are not enough, for the error.

    Raises:
        ValueError: naming the class.

    Example:
        >>> check_class_sizes(torch.tensor([0, 0, 1]), 2, "One alone has no spread.")
        Traceback (most recent call last):
        ValueError: Expected `labels` to be of at least 2 samples a class, but got 1 of class 1.
        One alone has no spread. Leave the class out, or add samples of it.
    """
    classes, counts = torch.unique(labels, return_counts=True)
    if bool((counts >= per_class).all()):
        return
    place = int((counts < per_class).nonzero()[0])
    number, count = int(classes[place]), int(counts[place])
    hint = " ".join(filter(None, [why, "Leave the class out, or add samples of it."]))
    raise ValueError(expected("labels", f"of at least {per_class} samples a class", f"{count} of class {number}", hint))
