"""`FeatureMap`: places of poison, clean samples and attacked items in feature space. Needs no torch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from lightning_poison.checks import describe, expected, printable

KINDS = ("clean", "poison", "attacked")
"""Clean training samples, poison, and items of the attack's evaluation set."""

MAX_POINTS = 1000

_MAX_LABEL = 40
"""Characters of a label."""


@dataclass(frozen=True)
class FeatureMap:
    """Features of N samples in a model that was trained on the poison, reduced to two dimensions.

    Args:
        xs: First coordinates, in [0, 1], `(N,)`.
        ys: Second coordinates, in [0, 1], `(N,)`.
        labels: Labels of the training samples, and true labels of the attacked items.
        kinds: What each point is, one of `KINDS`.

    Example:
        >>> points = FeatureMap((0.0, 1.0), (0.5, 0.0), ("3", "0"), ("clean", "poison"))
        >>> FeatureMap.from_json(points.to_json()) == points
        True
    """

    xs: tuple[float, ...]
    ys: tuple[float, ...]
    labels: tuple[str, ...]
    kinds: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.xs)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values, with coordinates of three digits."""
        return {
            "xs": [round(x, 3) for x in self.xs],
            "ys": [round(y, 3) for y in self.ys],
            "labels": list(self.labels),
            "kinds": list(self.kinds),
        }

    @classmethod
    def from_json(cls, values: Any) -> Self:
        """Build a map from its JSON values.

        Raises:
            ValueError: If a value is missing or not valid.
        """
        name = "`features` of a cell"
        if not isinstance(values, Mapping):
            raise ValueError(expected(name, "a JSON object", printable(describe(values))))
        parts: dict[str, Any] = {key: values.get(key) for key in ("xs", "ys", "labels", "kinds")}
        if not all(isinstance(part, list) for part in parts.values()):
            raise ValueError(expected(name, "lists `xs`, `ys`, `labels` and `kinds`", printable(describe(values))))
        lengths = {len(part) for part in parts.values()}
        if len(lengths) != 1 or max(lengths) > MAX_POINTS:
            came = f"lists of {', '.join(map(str, sorted(lengths)))}"
            raise ValueError(expected(name, f"lists of one length up to {MAX_POINTS:,}", came))
        if not all(map(_is_coordinate, (*parts["xs"], *parts["ys"]))):
            raise ValueError(expected(f"`xs` and `ys` in {name}", "numbers in [0, 1]", "other values"))
        if not set(map(str, parts["kinds"])) <= set(KINDS):
            raise ValueError(expected(f"`kinds` in {name}", f"some of {', '.join(KINDS)}", printable(parts["kinds"])))
        if not all(isinstance(label, str) and len(label) <= _MAX_LABEL for label in parts["labels"]):
            raise ValueError(expected(f"`labels` in {name}", f"texts of up to {_MAX_LABEL} characters", "other values"))
        return cls(**{key: tuple(part) for key, part in parts.items()})


def scaled(values: Sequence[float]) -> tuple[float, ...]:
    """Return coordinates shifted and scaled to [0, 1]; all .5 if they are equal.

    Example:
        >>> scaled([-2.0, 2.0, 0.0])
        (0.0, 1.0, 0.5)
    """
    low, high = min(values), max(values)
    return tuple((value - low) / (high - low) if high > low else 0.5 for value in values)


def _is_coordinate(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and not math.isnan(value) and 0 <= value <= 1
