"""The settings of a decision, listed once."""

from dataclasses import dataclass, fields
from typing import Any

from lightning_poison.checks import boolean, fraction, positive_int, positive_share, share
from lightning_poison.data.copies import Groups, check_groups
from lightning_poison.statistics.contamination import NATURAL_ERROR_RATE


@dataclass(frozen=True, kw_only=True)
class DecisionSettings:
    """How scores become a decision. `sanitize`, `Sanitizer` and `SanitizedDataModule` take these as arguments.

    Args:
        false_positive_rate: Accepted share of clean samples removed, in (0, 1).
        folds: Number of folds for cross-fitting without trusted data, at least 2.
        natural_error_rate: Share of wrong labels that does not count as evidence of poison, in [0, 1].
        remove_without_evidence: Whether to remove suspicious samples without trusted data and without evidence.
        max_removed: Largest share of the data set that may be removed, in (0, 1]. The limit for a class is this or
            one half, whichever is larger, and never the whole class.
        seed: The only source of randomness, in [0, 2⁶³).
        groups: Group of each sample of the whole data set, such as its patient or video: integers or texts, or a
            function of the index of a sample. Without trusted data, samples of a group are in one fold; `None` is a
            group of its own. Default: only copies belong together, which are found by their inputs.

    NumPy numbers are stored as Python numbers.

    Raises:
        ValueError: If a value is out of its range.

    Example:
        >>> DecisionSettings(false_positive_rate=0.02).fingerprinted()["false_positive_rate"]
        0.02
    """

    false_positive_rate: float = 0.01
    folds: int = 3
    natural_error_rate: float = NATURAL_ERROR_RATE
    remove_without_evidence: bool = False
    max_removed: float = 0.5
    seed: int = 0
    groups: Groups | None = None

    def __post_init__(self) -> None:
        check_groups(self.groups)
        hint = "For 1 % write `false_positive_rate=0.01`."
        checked = {
            "false_positive_rate": fraction("false_positive_rate", self.false_positive_rate, hint=hint),
            "folds": positive_int("folds", self.folds, minimum=2),
            "natural_error_rate": share("natural_error_rate", self.natural_error_rate),
            "remove_without_evidence": boolean("remove_without_evidence", self.remove_without_evidence),
            "max_removed": positive_share("max_removed", self.max_removed, hint="Use 1 for no limit."),
            "seed": positive_int("seed", self.seed, minimum=0),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def fingerprinted(self) -> dict[str, Any]:
        """Return the settings on which scores and mask depend, as JSON values, without the groups of the samples."""
        left_out = ("max_removed", "groups")
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name not in left_out}
