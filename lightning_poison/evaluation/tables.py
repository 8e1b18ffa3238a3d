"""Text tables of cells: one for each attack, one of adaptive attackers, and the matrix of all gaps. Needs no torch."""

import math
from collections.abc import Callable, Sequence
from statistics import median

from lightning_poison.checks import printable
from lightning_poison.evaluation.cells import (
    CONTROLS,
    MIN_SUCCESS_RATE,
    RANDOM_FILTER,
    Cell,
    attack_works,
    gaps_by_seed,
    random_filters_of,
)

PROVES_NOTHING, FAILED = "proves nothing", "failed"
"""Entries of the matrix without a gap."""

ADVICE = (
    f'"{PROVES_NOTHING}": without a defense, the attack succeeds on less than {100 * MIN_SUCCESS_RATE:.0f} %, so '
    "nothing follows about defenses. Try a higher budget (--attack NAME=FRACTION), or longer training (--epochs) if "
    "the clean accuracy is low."
)
"""What such an entry means, and what to do."""

_SHARES = {
    "clean accuracy": "clean_accuracy",
    "attack success": "attack_success_rate",
    "poison caught": "poison_caught",
    "clean lost": "clean_lost",
}


def render_table(cells: Sequence[Cell]) -> str:
    """Format the cells of one attack as a text table, with medians and, in brackets, ranges over the seeds.

    Above each defense is the random filter that removes as many samples, unless it is that of the defense before.

    Example:
        >>> names, success = ("no defense", "random filter", "likelihood", "perfect filter"), (0.9, 0.8, 0.2, 0.0)
        >>> cells = [
        ...     Cell("frog", name, name != "likelihood", 0, 0.97, rate, poison_caught=0.5, clean_lost=0.01, removed=20)
        ...     for name, rate in zip(names, success, strict=True)
        ... ]
        >>> print(render_table(cells))
                                  clean accuracy  attack success  poison caught  clean lost  gap closed
        ------------------------  --------------  --------------  -------------  ----------  ----------
        no defense (control)              97.0 %          90.0 %         50.0 %       1.0 %
        random filter (control)           97.0 %          80.0 %         50.0 %       1.0 %
        likelihood                        97.0 %          20.0 %         50.0 %       1.0 %        75 %
        perfect filter (control)          97.0 %           0.0 %         50.0 %       1.0 %
    """
    costs = {name: form for name, form in _COSTS.items() if any(not math.isnan(_cost(cell, name)) for cell in cells)}
    header = ["", *_SHARES, "gap closed", *costs]
    works = attack_works(cells)
    rows = []
    for name, group in rows_of(cells):
        finished = [cell for cell in group if cell.error is None]
        failed = len(group) - len(finished)
        label = printable(name) + (" (control)" if name in CONTROLS else "") + (f", {failed} failed" if failed else "")
        if not finished:
            rows.append([label, *[""] * (len(header) - 1)])
            continue
        shares = [spread([100 * getattr(cell, each) for cell in finished], ".1f", " %") for each in _SHARES.values()]
        closed = gap_text(cells, name) if works and name not in CONTROLS else ""
        spent = [_median([_cost(cell, each) for cell in finished], form) for each, form in costs.items()]
        rows.append([label, *shares, closed, *spent])
    table = _aligned([header, *rows])
    return table if works else f"{table}\nThe attack fails even without a defense: these rows prove nothing."


def render_matrix(cells: Sequence[Cell]) -> str:
    """Format the share of the gap that each defense closes against each attack, with ranges over the seeds.

    If an entry is "proves nothing", a line below says what that means and what to try.

    Example:
        >>> names, success = ("no defense", "random filter", "likelihood", "perfect filter"), (0.9, 0.8, 0.2, 0.0)
        >>> rest = {"poison_caught": 0.5, "clean_lost": 0.01, "removed": 20}
        >>> cells = [
        ...     Cell(attack, name, name != "likelihood", 0, 0.97, share * rate, **rest)
        ...     for attack, share in (("frog", 1), ("weak", 0.01)) for name, rate in zip(names, success, strict=True)
        ... ]
        >>> print(render_matrix(cells))
        gap closed      likelihood
        ----------  --------------
        frog                  75 %
        weak        proves nothing
        "proves nothing": without a defense, the attack succeeds on less than 5 %, so nothing follows about defenses.
        Try a higher budget (--attack NAME=FRACTION), or longer training (--epochs) if the clean accuracy is low.
    """
    attacks = dict.fromkeys(cell.attack for cell in cells)
    defenses = [name for name in dict.fromkeys(cell.defense for cell in cells) if name not in CONTROLS]
    rows = [["gap closed", *map(printable, defenses)]]
    for attack in attacks:
        of_attack = [cell for cell in cells if cell.attack == attack]
        rows.append([printable(attack), *(matrix_entry(of_attack, defense) for defense in defenses)])
    says_nothing = any(PROVES_NOTHING in row[1:] for row in rows[1:])
    return f"{_aligned(rows)}\n{ADVICE}" if says_nothing else _aligned(rows)


def render_adaptive(cells: Sequence[Cell]) -> str:
    """Format how much poison of adaptive attackers evades the defense that they know, or return an empty text.

    *evades* is the share of the poison that is kept; *evades and harms* is this share times the success of the attack
    after a training on what was kept.

    Example:
        >>> rest = {"clean_lost": 0.0, "removed": 5}
        >>> cells = [
        ...     Cell("adaptive-frog", "no defense", True, 0, 0.97, 0.8, poison_caught=0.0, **rest),
        ...     Cell("adaptive-frog", "likelihood", False, 0, 0.97, 0.5, poison_caught=0.6, is_adaptive=True, **rest),
        ... ]
        >>> print(render_adaptive(cells))
        adaptive attackers                success without a defense  evades  evades and harms
        --------------------------------  -------------------------  ------  ----------------
        adaptive-frog against likelihood                     80.0 %  40.0 %            20.0 %
    """
    rows = [["adaptive attackers", "success without a defense", "evades", "evades and harms"]]
    for attack, defense in dict.fromkeys((cell.attack, cell.defense) for cell in cells if cell.is_adaptive):
        of_attack = [cell for cell in cells if cell.attack == attack and cell.error is None]
        finished = [cell for cell in of_attack if cell.defense == defense]
        before = [cell.attack_success_rate for cell in of_attack if cell.defense == CONTROLS[0]]
        label = printable(attack if attack.endswith(f" against {defense}") else f"{attack} against {defense}")
        if not finished or not before:
            rows.append([label, FAILED, "", ""])
            continue
        harms = [100 * cell.evades_and_harms for cell in finished]
        rows.append(
            [
                label,
                spread([100 * rate for rate in before], ".1f", " %"),
                spread([100 * cell.evades for cell in finished], ".1f", " %"),
                spread(harms, ".1f", " %") if attack_works(of_attack) else PROVES_NOTHING,
            ]
        )
    return _aligned(rows) if len(rows) > 1 else ""


_COSTS = {"removed": ",.0f", "seconds": ",.1f", "peak MiB": ",.0f"}


def _cost(cell: Cell, name: str) -> float:
    if name == "removed":  # beside the costs, which are known if the cell was timed
        return math.nan if math.isnan(cell.seconds) else cell.removed
    return cell.seconds if name == "seconds" else cell.peak_memory_mib


def rows_of(cells: Sequence[Cell]) -> list[tuple[str, list[Cell]]]:
    """Return the rows of the table of an attack: each defense or control and its cells.

    Above each defense is the random filter that removes as many samples, unless it is that of the defense before.
    """
    rows: list[tuple[str, list[Cell]]] = []
    shown: list[Cell] = []
    for name in dict.fromkeys(cell.defense for cell in cells):
        if name == RANDOM_FILTER:
            continue
        if name not in CONTROLS and (filters := random_filters_of(cells, name)) and filters != shown:
            rows.append((RANDOM_FILTER, filters))
            shown = filters
        rows.append((name, [cell for cell in cells if cell.defense == name]))
    if not shown:
        others = [cell for cell in cells if cell.defense == RANDOM_FILTER]
        rows[1:1] = [(RANDOM_FILTER, others)] if others else []
    return rows


def matrix_entry(cells: Sequence[Cell], defense: str) -> str:
    """Return the entry of the matrix for the cells of an attack and a defense; empty if it was not evaluated."""
    group = [cell for cell in cells if cell.defense == defense]
    if not group:
        return ""
    if all(cell.error is not None for cell in group) or all(cell.error for cell in cells if cell.is_control):
        return FAILED
    return gap_text(cells, defense) if attack_works(cells) else PROVES_NOTHING


def gap_text(cells: Sequence[Cell], defense: str) -> str:
    """Return the share of the gap that a defense closes, with the range over the seeds; empty without a gap."""
    gaps = [100 * gap for gap in gaps_by_seed(cells, defense)]
    return spread(gaps, ".0f", " %") if gaps else ""


def spread(values: Sequence[float], form: str, unit: str) -> str:
    """Return the median and, in brackets, the range of several values.

    Example:
        >>> spread([1.0, 4.0, 2.0], ".1f", " s")
        '2.0 s (1.0 to 4.0)'
    """
    text = f"{median(values):{form}}{unit}"
    if len(values) < 2:
        return text
    low, high = f"{min(values):{form}}", f"{max(values):{form}}"
    return f"{text} ({low} to {high})"


def _median(values: Sequence[float], form: str) -> str:
    known = [value for value in values if not math.isnan(value)]
    return f"{median(known):{form}}" if known else ""


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    ruled = [rows[0], ["-" * width for width in widths], *rows[1:]]
    justify: list[Callable[[str, int], str]] = [str.ljust, *[str.rjust] * (len(widths) - 1)]
    lines = [
        "  ".join(place(text, width) for place, text, width in zip(justify, row, widths, strict=True)) for row in ruled
    ]
    return "\n".join(line.rstrip() for line in lines)
