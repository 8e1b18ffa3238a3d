"""`UnionScorer`: several scorers, each of which decides by its own rule."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_poison.checks import positive_int
from lightning_poison.scorers.combined import CombinedScorer, describe_members, named_members
from lightning_poison.scorers.protocol import Scorer, SetScorer

Member = Scorer | SetScorer | CombinedScorer
"""What decides once."""


class UnionScorer:
    """Several scorers for `sanitize`, `Sanitizer` and the DataModule wrappers; a sample that one removes is removed.

    Each member decides by its own rule: by the wrong-label null, by groups, or by trusted data. They decide one after
    the other, and what one removes is not shown to the next, so that wrong labels do not hide a backdoor. Each may
    spend three quarters of what the earlier ones have left of the false-positive rate; with trusted data, they have
    equal shares. If a later member removes samples, the earlier ones decide again, up to `rounds` times, so that a
    backdoor does not hide wrong labels either. A member that cannot decide is skipped, with a note in the verdict; if
    none can, the decision is inconclusive.

    Put scorers of groups first: how well their network learned each label helps a later one whose features never saw
    the labels, such as `LinearProbeScorer`.

    `CombinedScorer` differs: it combines p-values into one score, which is decided on once.

    Args:
        scorers: Two or more scorers or combinations, in the order of their decisions, or a mapping of names to them. If
            one is a control, the union is one.
        rounds: Maximum number of decisions of a member, at least 1. Default: 2.

    Raises:
        ValueError: If there are fewer than two members, or `rounds` is out of range.
        TypeError: If a member is not a scorer, or is a union.

    Example:
        >>> from lightning_poison.scorers.confidence import ConfidenceScorer
        >>> from lightning_poison.scorers.robust_features import RobustFeatureScorer
        >>> list(UnionScorer([ConfidenceScorer(), RobustFeatureScorer()]).members)
        ['confidence', 'robust-features']
    """

    name = "union"

    def __init__(self, scorers: Sequence[Member] | Mapping[str, Member], *, rounds: int = 2) -> None:
        self.members = named_members(scorers, allowed=(Scorer, SetScorer, CombinedScorer))
        self.rounds = positive_int("rounds", rounds)
        self.is_control = any(member.is_control for member in self.members.values())

    def __repr__(self) -> str:
        return f"UnionScorer({describe_members(self.members)}, rounds={self.rounds})"

    def settings(self) -> Mapping[str, Any]:
        """Return the constructor's arguments as JSON values, without the members; see `settings_of`."""
        return {"rounds": self.rounds, "order": list(self.members)}  # mappings are compared without their order
