"""Claims of a paper, the measurements they rest on, and the rules that turn numbers into verdicts.

A rule is written before the numbers of a run are known. It sees the median of each figure over seeds, by the names of
its rows.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.runs import Figures, spread, values_of

HOLDS, HOLDS_IF, FAILS, UNDECIDED = "holds", "holds if", "does not hold", "not decided"
WORDS = (HOLDS, HOLDS_IF, FAILS, UNDECIDED)

Medians = Mapping[str, float]
"""The median of each figure of a claim over seeds, by the name of its row."""


@dataclass(frozen=True)
class Verdict:
    """One of `WORDS`, with the condition of "holds if" or the reason of "not decided".

    Example:
        >>> print(Verdict(HOLDS_IF, "ε is .1"))
        holds if ε is .1
        >>> print(Verdict(UNDECIDED, "the attack fails"))
        not decided: the attack fails
    """

    word: str
    reason: str = ""

    def __str__(self) -> str:
        separator = ": " if self.word == UNDECIDED else " "
        return f"{self.word}{separator}{self.reason}" if self.reason else self.word


def judge(
    as_stated: bool, conditions: Mapping[str, bool] | None = None, *, unless: Mapping[str, bool] | None = None
) -> Verdict:
    """Return the verdict on a claim.

    Args:
        as_stated: Whether it holds as the paper states it.
        conditions: Whether it holds under each condition, the mildest condition first.
        unless: Reasons why it cannot be decided, such as an attack that fails without a defense, and whether they
            apply.

    Example:
        >>> print(judge(False, {"ε is .1": False, "ε is .3": True}))
        holds if ε is .3
        >>> print(judge(True, unless={"the attack fails": True}))
        not decided: the attack fails
    """
    for reason, applies in (unless or {}).items():
        if applies:
            return Verdict(UNDECIDED, reason)
    if as_stated:
        return Verdict(HOLDS)
    for condition, met in (conditions or {}).items():
        if met:
            return Verdict(HOLDS_IF, condition)
    return Verdict(FAILS)


@dataclass(frozen=True, eq=False)
class Measurement:
    """Something that is run once for each seed.

    Args:
        name: Its name, unique among all papers.
        run: Returns figures, from the data root, the seed and the sizes as keyword arguments.
        full: The full sizes.
        quick: The sizes of a quick run. If `None`, a quick run leaves it out.
    """

    name: str
    run: Callable[..., Figures]
    full: Mapping[str, Any] = field(default_factory=dict)
    quick: Mapping[str, Any] | None = field(default_factory=dict)

    def sizes(self, *, quick: bool) -> dict[str, Any] | None:
        """Return its sizes, or `None` if a quick run leaves it out."""
        if quick and self.quick is None:
            return None
        return {**self.full, **(self.quick or {} if quick else {})}

    def key(self, *, quick: bool, seed: int) -> Figures:
        """Return the key of a run in the results file; quick and full runs never share one."""
        return {"measurement": self.name, "quick": quick, **(self.sizes(quick=quick) or {}), "seed": seed}


Found = Mapping[str, Sequence[Figures]]
"""The figures of each measurement over seeds, by its name, without those that were not run."""


@dataclass(frozen=True)
class Row:
    """A row of a claim's table: one number of ours, beside the paper's.

    Args:
        label: What is measured.
        measurement: Where the number comes from.
        path: Its keys in the figures of the measurement.
        paper: The paper's figure as printed there, or empty if it states none.
        recorded: The figure that was measured before at full size, or empty.
        form: Format of a number; `"%"` shows a share in percent with one decimal.
    """

    label: str
    measurement: Measurement
    path: tuple[str, ...]
    paper: str = ""
    recorded: str = ""
    form: str = "%"

    def values(self, found: Found) -> list[float]:
        """Return the number of each seed."""
        return values_of(found.get(self.measurement.name, ()), *self.path)

    def ours(self, found: Found) -> str:
        """Return the median and range over seeds as text."""
        values = self.values(found)
        if not values:
            return "not measured"
        return (
            spread([100 * value for value in values], ".1f") + " %" if self.form == "%" else spread(values, self.form)
        )


@dataclass(frozen=True)
class Claim:
    """What a paper says, in our words, and how it is judged.

    Args:
        title: The claim.
        source: The table, figure or section of the paper.
        rows: The numbers, by the names that the rule uses.
        rule: Returns the verdict on the medians over seeds.
        recorded_in: Link from `docs/` to the table of the recorded figures, or empty.
        note: What a reader must know about the numbers, or empty.
    """

    title: str
    source: str
    rows: Mapping[str, Row]
    rule: Callable[[Medians], Verdict]
    recorded_in: str = ""
    note: str = ""

    @property
    def measurements(self) -> list[Measurement]:
        """The measurements of its rows, each once."""
        return list({row.measurement.name: row.measurement for row in self.rows.values()}.values())

    def verdict(self, found: Found) -> Verdict:
        """Return the verdict, which is "not decided" where a number is missing."""
        values = {name: row.values(found) for name, row in self.rows.items()}
        if not all(values.values()):
            return Verdict(UNDECIDED, "not measured in this run")
        return self.rule({name: statistics.median(each) for name, each in values.items()})


@dataclass(frozen=True)
class Paper:
    """A paper and its claims.

    Args:
        number: Its number, as in the file names of its figures.
        citation: Authors, title, year and, if there is one, the arXiv identifier.
        setting: In what our measurements differ from the paper's.
        claims: The central ones first.
        further: Links to more of its measurements, or empty.
    """

    number: str
    citation: str
    setting: str
    claims: tuple[Claim, ...]
    further: str = ""

    @property
    def measurements(self) -> list[Measurement]:
        """The measurements of its claims, each once."""
        return list({each.name: each for claim in self.claims for each in claim.measurements}.values())
