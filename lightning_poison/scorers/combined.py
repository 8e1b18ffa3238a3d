"""`CombinedScorer`: several scorers whose p-values are combined into one score."""

from collections.abc import Mapping, Sequence
from itertools import chain, count
from typing import Any, TypeVar

from lightning_poison.checks import describe, expected, instance, one_of
from lightning_poison.scorers.protocol import Scorer, SetScorer
from lightning_poison.statistics.p_values import Combination

MemberT = TypeVar("MemberT")


class CombinedScorer:
    """A combination of scorers for `sanitize`, `Sanitizer` and the DataModule wrappers.

    Scores of different scorers have no common scale. So `sanitize` converts the score of each member to a p-value, per
    class and with a fitted tail (`tail_p_values`), combines the values of −log10 p, and calibrates the result. With k
    members, the threshold of each is about k times as strict. This is the cost of detecting poison that only one member
    detects. `Verdict.votes` and the manifest contain the p-value of each member.

    Args:
        scorers: Two or more scorers, or a mapping of names to them. If one is a control, the combination is one.
        combine: `"max"` of −log10 p, for which one confident member is enough; or `"sum"`, which requires agreement.
            Default: `"max"`.

    Raises:
        ValueError: If there are fewer than two members, or `combine` is not one of these.
        TypeError: If a member is not a scorer, or is a combination.

    Example:
        >>> from lightning_poison.scorers.deep_knn import DeepKNNScorer
        >>> from lightning_poison.scorers.pixel_counting import PixelCountingScorer
        >>> CombinedScorer([DeepKNNScorer(k=20), PixelCountingScorer(), DeepKNNScorer()]).members.keys()
        dict_keys(['deep-knn', 'pixel-counting', 'deep-knn-2'])
    """

    name = "combined"

    def __init__(
        self, scorers: Sequence[Scorer | SetScorer] | Mapping[str, Scorer | SetScorer], *, combine: Combination = "max"
    ) -> None:
        self.combine: Combination = one_of("combine", combine, ("max", "sum"))
        self.members = named_members(scorers, allowed=(Scorer, SetScorer))
        self.is_control = any(member.is_control for member in self.members.values())

    def __repr__(self) -> str:
        return f"CombinedScorer({describe_members(self.members)}, combine={self.combine!r})"

    def settings(self) -> Mapping[str, Any]:
        """Return the constructor's arguments as JSON values, without the members; see `settings_of`."""
        return {"combine": self.combine}


def named_members(
    scorers: Sequence[MemberT] | Mapping[str, MemberT], *, allowed: tuple[type, ...]
) -> dict[str, MemberT]:
    """Return the members of a combination or union by their names, numbered if a name occurs more than once.

    Raises:
        ValueError: If there are fewer than two.
        TypeError: If one is of no allowed type, or a name is not a text.
    """
    if isinstance(scorers, Mapping):
        named_members(list(scorers.values()), allowed=allowed)
        return {instance("scorers", name, str): scorer for name, scorer in scorers.items()}
    if len(scorers) < 2:
        raise ValueError(
            expected("scorers", "two scorers or more", f"{len(scorers)}", "Use a single scorer without a combination.")
        )
    named: dict[str, MemberT] = {}
    for scorer in scorers:
        if not isinstance(scorer, allowed):
            if hasattr(scorer, "members"):
                raise TypeError(expected("scorers", "single scorers", "a combination", "List its members instead."))
            came = f"the class {scorer.__name__}" if isinstance(scorer, type) else describe(scorer)
            raise TypeError(expected("scorers", "scorers such as `LikelihoodScorer()`", came))
        name: str = scorer.name  # type: ignore[attr-defined]
        numbered = (f"{name}-{number}" for number in count(2))
        named[next(each for each in chain([name], numbered) if each not in named)] = scorer
    return named


def describe_members(members: Mapping[str, Any]) -> str:
    """Return the code of the members of a combination or union: a list, or a dict if they have names of their own.

    Example:
        >>> from lightning_poison.scorers.pixel_counting import PixelCountingScorer
        >>> describe_members({"pixel-counting": PixelCountingScorer(), "mine": PixelCountingScorer()})
        "{'pixel-counting': PixelCountingScorer(), 'mine': PixelCountingScorer()}"
    """
    listed = list(members.values())
    usual = named_members(listed, allowed=(object,))
    return repr(listed) if list(usual) == list(members) else repr(dict(members))
