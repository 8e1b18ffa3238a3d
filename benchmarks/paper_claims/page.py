"""The tables of the papers as Markdown: printed by `papers.py`, and written to `docs/papers.md`."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from harness.runs import Figures

from paper_claims.claims import WORDS, Claim, Found, Paper

COMMAND = "python benchmarks/papers.py"


@dataclass(frozen=True)
class Run:
    """What the page says about the run that it shows."""

    quick: bool
    seeds: int
    cpu_seconds: float
    dates: tuple[str, ...]

    @classmethod
    def of(cls, found: Found, *, quick: bool, seeds: int) -> "Run":
        """Return the description of a run, from its measurements."""
        runs: list[Figures] = [run for each in found.values() for run in each]
        dates = sorted({run["date"] for run in runs})
        return cls(quick, seeds, sum(run["cpu_s"] for run in runs), tuple(dates))

    def __str__(self) -> str:
        days = " to ".join(dict.fromkeys((self.dates[0], self.dates[-1]))) if self.dates else "no date"
        seeds = "one seed" if self.seeds == 1 else f"{self.seeds} seeds, medians with ranges"
        return f"{'quick' if self.quick else 'full'} sizes, {seeds}, {days}, {self.cpu_seconds:.0f} CPU s in all"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return [("| " + " | ".join(line) + " |").replace("|  |", "| |").replace("|  |", "| |") for line in lines]


def claim_lines(claim: Claim, found: Found) -> list[str]:
    """Return the lines of one claim: its title, table, verdict and note."""
    with_recorded = any(row.recorded for row in claim.rows.values())
    recorded = f"[recorded, full size]({claim.recorded_in})" if claim.recorded_in else "recorded, full size"
    columns = ["", "paper", "ours", *([recorded] if with_recorded else [])]
    rows = [
        [row.label, row.paper, row.ours(found), *([row.recorded] if with_recorded else [])]
        for row in claim.rows.values()
    ]
    lines = [f"### {claim.title}", "", f"{claim.source}.", "", *table(columns, rows), ""]
    lines += [f"**{claim.verdict(found)}**" + (f". {claim.note}" if claim.note else ""), ""]
    return lines


def paper_lines(paper: Paper, found: Found) -> list[str]:
    """Return the lines of one paper."""
    lines = [f"## Paper {paper.number}", "", paper.citation, "", paper.setting, ""]
    for claim in paper.claims:
        lines += claim_lines(claim, found)
    return [*lines, paper.further, ""] if paper.further else lines


def summary_lines(papers: Sequence[Paper], found: Found) -> list[str]:
    """Return a table of all verdicts, and how often each occurs."""
    rows, counts = [], Counter[str]()
    for paper in papers:
        for claim in paper.claims:
            verdict = claim.verdict(found)
            counts[verdict.word] += 1
            rows.append([paper.number, claim.title, str(verdict)])
    told = ", ".join(f"{word}: {counts[word]}" for word in WORDS if counts[word])
    return [*table(["paper", "claim", "verdict"], rows), "", f"{told}.", ""]


def page(papers: Sequence[Paper], found: Found, run: Run) -> str:
    """Return the page `docs/papers.md`."""
    command = f"{COMMAND} {'--quick ' if run.quick else ''}--data-root DIR --results FILE --write docs/papers.md"
    lines = [
        "# The papers, claim by claim",
        "",
        "This project builds on five papers. Their central claims are measured here, with our implementations, and "
        "judged by rules (`benchmarks/paper_claims/`) that were written down before this run; recorded figures of "
        "other benchmarks were known then. "
        f"This page is written by `{command}`.",
        "",
        f"This run: {run}.",
        "",
    ]
    if run.quick:
        lines += [
            "**It is a quick run**: small subsets, short training and one seed, to fit into 15 minutes on two cores. "
            "One seed says nothing about ranges, and a verdict close to its threshold may change with another. The "
            'column "recorded, full size" has figures that other benchmarks measured before; no verdict uses them.',
            "",
        ]
    lines += [
        '- **holds if ...** names the condition that was measured. "not decided" means that the measurement cannot '
        "decide, for example since the attack has no effect without a defense.",
        "- Figures are those of our implementations on MNIST and CIFAR-10 (JPEG q75), not of the papers' code.",
        "",
        *summary_lines(papers, found),
    ]
    for paper in papers:
        lines += paper_lines(paper, found)
    return "\n".join(lines).rstrip() + "\n"
