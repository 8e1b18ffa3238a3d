"""`Cell`: what was measured of one attack, one defense or control, and one seed. Needs no torch."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from statistics import median
from typing import Any, Self

from lightning_poison.checks import describe, expected, printable
from lightning_poison.evaluation.feature_map import FeatureMap
from lightning_poison.evaluation.score_summary import ScoreSummary

NO_DEFENSE, RANDOM_FILTER, PERFECT_FILTER = "no defense", "random filter", "perfect filter"

CONTROLS = (NO_DEFENSE, RANDOM_FILTER, PERFECT_FILTER)
"""Rows that ignore the data or know the ground truth."""

MIN_SUCCESS_RATE = 0.05
"""Success rate without a defense below which an attack counts as failed, so that it proves nothing about defenses."""


@dataclass(frozen=True)
class Cell:
    """Measurements of a model trained on one poisoned data set with one defense or control.

    Args:
        attack: Name of the attack.
        defense: Name of the defense or control.
        is_control: Whether this is a control, which ignores the data or knows the ground truth.
        seed: Seed of the training.
        clean_accuracy: Accuracy on the clean test set, in [0, 1]. NaN if the cell failed, like the other figures.
        attack_success_rate: Share of the attack's evaluation set on which the attacker succeeds, excluding items on
            which a model trained without poison fails in the same way, in [0, 1].
        poison_caught: Share of the poison that was removed, the true-positive rate, in [0, 1].
        clean_lost: Share of the clean samples that was removed, the false-positive rate, in [0, 1]. Cover samples count
            in neither.
        removed: Number of removed samples.
        removed_by_class: Number of removed samples by label, without the labels of which none was removed.
        seconds: Time of the filter, the training and its evaluation, in seconds. Default: unknown, NaN.
        peak_memory_mib: Largest memory of the process meanwhile, in MiB. Default: unknown, NaN.
        gap_closed: Share of the gap in attack success between the random filter of the same size and the perfect filter
            that this defense closes with this seed. `None` for controls, or if there is no gap.
        is_adaptive: Whether the attack was made to evade this defense.
        error: Why there are no figures. Default: there are.
        scores: How the scores of the defense rank the poison. Default: unknown, as for controls.
        predictions: Number of predicted labels by true label of the attack's evaluation set, such as
            `{"0": {"0": 8, "3": 2}}`. Default: unknown.
        pictures: Pairs of a base and the poison made from it, as PNG in base64, in the cell without a defense. Default:
            none.
        features: Where poison, clean samples and the evaluation set are in the model's feature space, in the cell
            without a defense of the first seed. Default: unknown.

    Example:
        >>> cell = Cell("frog", "likelihood", False, 0, 0.97, 0.2, poison_caught=0.9, clean_lost=0.01, removed=20)
        >>> cell.attack_success_rate, cell.poison_caught
        (0.2, 0.9)
        >>> Cell.from_json(cell.to_json()) == Cell.from_json(cell.to_json() | {"seconds": None})
        True
    """

    attack: str
    defense: str
    is_control: bool
    seed: int
    clean_accuracy: float
    attack_success_rate: float
    poison_caught: float
    clean_lost: float
    removed: int
    removed_by_class: Mapping[str, int] = field(default_factory=dict)
    seconds: float = math.nan
    peak_memory_mib: float = math.nan
    gap_closed: float | None = None
    is_adaptive: bool = False
    error: str | None = None
    scores: ScoreSummary | None = None
    predictions: Mapping[str, Mapping[str, int]] | None = None
    pictures: Sequence[Sequence[str]] = ()
    features: FeatureMap | None = None

    @classmethod
    def failed(cls, attack: str, defense: str, seed: int, error: str, *, is_adaptive: bool = False) -> Self:
        """Return a cell without figures.

        Example:
            >>> Cell.failed("frog", "likelihood", 0, "RuntimeError: out of memory").to_json()["clean_accuracy"] is None
            True
        """
        return cls(
            attack=attack,
            defense=defense,
            is_control=defense in CONTROLS,
            seed=seed,
            clean_accuracy=math.nan,
            attack_success_rate=math.nan,
            poison_caught=math.nan,
            clean_lost=math.nan,
            removed=0,
            is_adaptive=is_adaptive,
            error=error,
        )

    @property
    def evades(self) -> float:
        """Share of the poison that is kept, in [0, 1]."""
        return 1 - self.poison_caught

    @property
    def evades_and_harms(self) -> float:
        """Share of the poison that is kept, times the success of the attack after a training on it, in [0, 1]."""
        return self.evades * self.attack_success_rate

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; `None` in place of NaN."""
        values = asdict(self) | {"removed_by_class": dict(self.removed_by_class)}
        values["pictures"] = [list(pair) for pair in self.pictures]
        values["scores"] = None if self.scores is None else self.scores.to_json()
        values["features"] = None if self.features is None else self.features.to_json()
        return {name: None if _is_nan(value) else value for name, value in values.items()}

    @classmethod
    def from_json(cls, values: Any) -> Self:
        """Build a cell from its JSON values. Values of later versions that this one does not know are ignored.

        Raises:
            ValueError: If a value is missing or of another type.
        """
        if not isinstance(values, Mapping):
            raise ValueError(expected("a cell", "a JSON object", printable(describe(values))))
        parts: dict[str, Any] = {}
        for each in fields(cls):
            value = values.get(each.name)
            parts[each.name] = math.nan if value is None and each.name in _NUMBERS else value
            if each.name == "pictures" and value is None:
                parts["pictures"] = []
            kind, what = _KINDS[each.name]
            if not isinstance(parts[each.name], kind):
                raise ValueError(expected(f"`{each.name}` of a cell", what, printable(describe(value))))
        if not _are_counts(parts["removed_by_class"]):
            raise ValueError(
                expected("`removed_by_class` of a cell", "numbers by label", printable(parts["removed_by_class"]))
            )
        predictions = parts["predictions"]
        if predictions is not None and not all(_are_counts(counts) for counts in predictions.values()):
            raise ValueError(expected("`predictions` of a cell", "numbers by label", printable(predictions)))
        if not all(_are_pictures(pair) for pair in parts["pictures"]):
            raise ValueError(expected("`pictures` of a cell", "pairs of PNG in base64", "other values"))
        parts["pictures"] = tuple(tuple(pair) for pair in parts["pictures"])
        scores = None if parts["scores"] is None else ScoreSummary.from_json(parts["scores"])
        features = None if parts["features"] is None else FeatureMap.from_json(parts["features"])
        return cls(**parts | {"scores": scores, "features": features})


_PNG = re.compile(r"iVBORw0KGgo[A-Za-z0-9+/]*={0,2}")
"""A PNG in base64."""

_MAX_PICTURE = 40_000

_FIGURES = ("clean_accuracy", "attack_success_rate", "poison_caught", "clean_lost")

_NUMBERS = (*_FIGURES, "seconds", "peak_memory_mib")

_KINDS: Mapping[str, tuple[Any, str]] = {
    **dict.fromkeys(("attack", "defense"), (str, "a text")),
    **dict.fromkeys(("is_control", "is_adaptive"), (bool, "true or false")),
    **dict.fromkeys(("seed", "removed"), (int, "an integer")),
    **dict.fromkeys(_NUMBERS, (int | float, "a number")),
    "removed_by_class": (Mapping, "a JSON object"),
    "gap_closed": (int | float | None, "a number or null"),
    "error": (str | None, "a text or null"),
    "pictures": (list, "a list"),
    **dict.fromkeys(("scores", "predictions", "features"), (Mapping | None, "a JSON object or null")),
}


def random_filters_of(cells: Sequence[Cell], defense: str) -> list[Cell]:
    """Return for each finished cell of a defense the random filter of the same seed that removes as many samples.

    Example:
        >>> rest = {"clean_accuracy": 0.9, "attack_success_rate": 0.5, "poison_caught": 0.1, "clean_lost": 0.1}
        >>> cells = [
        ...     *(Cell("frog", "random filter", True, 0, removed=removed, **rest) for removed in (10, 20)),
        ...     Cell("frog", "likelihood", False, 0, removed=20, **rest),
        ... ]
        >>> [cell.removed for cell in random_filters_of(cells, "likelihood")]
        [20]
    """
    sizes = {(cell.seed, cell.removed) for cell in finished_of(cells, defense)}
    return [cell for cell in finished_of(cells, RANDOM_FILTER) if (cell.seed, cell.removed) in sizes]


def gap_closed(cells: Sequence[Cell], defense: str) -> float | None:
    """Return the share of the gap in attack success between the random and the perfect filter that a defense closes.

    1 equals the perfect filter, 0 the random filter of the same size. With several seeds, this is the median of those
    with a gap. If no seed has a gap, or figures are missing, the result is `None`.

    Example:
        >>> names, success = ("no defense", "random filter", "likelihood", "perfect filter"), (0.9, 0.8, 0.2, 0.0)
        >>> cells = [
        ...     Cell("frog", name, name != "likelihood", 0, 0.97, rate, poison_caught=0.0, clean_lost=0.01, removed=20)
        ...     for name, rate in zip(names, success, strict=True)
        ... ]
        >>> round(gap_closed(cells, "likelihood"), 3)
        0.75
    """
    gaps = gaps_by_seed(cells, defense)
    return median(gaps) if gaps else None


def gaps_by_seed(cells: Sequence[Cell], defense: str) -> list[float]:
    """Return the share of the gap that a defense closes in each seed that has a gap; see `gap_closed`."""
    gaps = []
    for seed in sorted({cell.seed for cell in cells}):
        of_seed = [cell for cell in cells if cell.seed == seed]
        compared = (
            random_filters_of(of_seed, defense),
            finished_of(of_seed, PERFECT_FILTER),
            finished_of(of_seed, defense),
        )
        if all(compared):
            random, perfect, defended = (median([each.attack_success_rate for each in group]) for group in compared)
            if random - perfect >= MIN_SUCCESS_RATE / 2:
                gaps.append((random - defended) / (random - perfect))
    return gaps


def attack_works(cells: Sequence[Cell]) -> bool:
    """Check whether the attack succeeds without a defense; otherwise it proves nothing about defenses.

    Example:
        >>> rest = {"clean_accuracy": 0.97, "poison_caught": 0.0, "clean_lost": 0.0, "removed": 0}
        >>> attack_works([Cell("frog", "no defense", True, 0, attack_success_rate=0.02, **rest)])
        False
    """
    rates = [cell.attack_success_rate for cell in finished_of(cells, NO_DEFENSE)]
    return bool(rates) and median(rates) >= MIN_SUCCESS_RATE


def check_names(names: Iterable[str]) -> None:
    """Check that no defense has the name of a control.

    Raises:
        ValueError: If one has.
    """
    if reserved := set(names) & set(CONTROLS):
        raise ValueError(f"Expected defense names other than those of the controls, but got {sorted(reserved)}.")


def finished_of(cells: Sequence[Cell], defense: str) -> list[Cell]:
    """Return the cells of a defense or control that have figures."""
    return [cell for cell in cells if cell.defense == defense and cell.error is None]


def _are_counts(values: Any) -> bool:
    return isinstance(values, Mapping) and all(
        isinstance(count, int) and not isinstance(count, bool) and count >= 0 for count in values.values()
    )


def _are_pictures(pair: Any) -> bool:
    return (
        isinstance(pair, list)
        and len(pair) == 2
        and all(isinstance(each, str) and len(each) < _MAX_PICTURE and _PNG.fullmatch(each) for each in pair)
    )


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
