"""What the report of an evaluation contains: setups, the matrix, tables and failures. Needs no torch."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any, NamedTuple

from lightning_poison.checks import printable
from lightning_poison.evaluation.cells import (
    CONTROLS,
    NO_DEFENSE,
    PERFECT_FILTER,
    Cell,
    attack_works,
    finished_of,
    gap_closed,
)
from lightning_poison.evaluation.tables import ADVICE, PROVES_NOTHING, gap_text, matrix_entry, rows_of, spread
from lightning_poison.report.evaluation_figures import (
    MAX_NAME,
    Histogram,
    Map,
    Roc,
    Stacks,
    histograms_of,
    map_of,
    roc_of,
    stacks_of,
)

Record = tuple[Mapping[str, Any], Cell]
"""The key of a cell and the cell, as `read_cells` returns them."""

_HEAT = 10
"""Number of steps of the colors on either side of the middle."""

_MAX_CLASSES = 12
"""Largest number of classes in a table cell."""


class Value(NamedTuple):
    """A table cell: its text, and the number by which it is sorted; empty if there is none."""

    text: str = ""
    number: float | str = ""


class Heat(NamedTuple):
    """An entry of the matrix: its text, the class of its color, and whether it failed."""

    text: str
    color: str
    failed: bool


class Row(NamedTuple):
    """A row of the table of an attack: a defense or control, its values, and how many of its cells failed."""

    name: str
    kind: str
    values: list[Value]
    removals: str
    failed: int


class AttackPart(NamedTuple):
    """What is shown of one attack."""

    name: str
    works: bool
    success: str
    seeds: int
    rows: list[Row]
    roc: Roc | None
    histograms: list[Histogram]
    stacks: list[Stacks]
    pictures: Sequence[Sequence[str]]
    map: Map | None


class AdaptiveRow(NamedTuple):
    """An adaptive attack and the defense that it was made to evade."""

    attack: str
    defense: str
    values: list[Value]
    note: str


class Failed(NamedTuple):
    """A cell without figures."""

    attack: str
    defense: str
    seed: int
    reason: str


class Setup(NamedTuple):
    """All cells of the same data, model and version.

    Args:
        heading: What they have in common.
        sentence: What was compared.
        findings: Sentences about the result.
        defenses: Columns of the matrix.
        matrix: For each attack its name and its entries.
        attacks: Tables and figures of each attack.
        adaptive: Adaptive attackers.
        failed: Cells without figures.
        settings: Names and values of settings.
    """

    heading: str
    sentence: str
    findings: list[str]
    defenses: list[str]
    matrix: list[tuple[str, list[Heat]]]
    attacks: list[AttackPart]
    adaptive: list[AdaptiveRow]
    failed: list[Failed]
    settings: list[tuple[str, str]]

    @property
    def advice(self) -> str:
        """What an entry that proves nothing means and what to try; empty if the matrix has none."""
        entries = [heat.text for _, row in self.matrix for heat in row]
        return ADVICE if PROVES_NOTHING in entries else ""


def setups_of(records: Sequence[Record]) -> list[Setup]:
    """Return what is shown of the records of a file, by what they have in common beside attack, defense and seed."""
    groups: dict[str, list[Record]] = {}
    for key, cell in records:
        shared = {name: value for name, value in key.items() if name not in ("attack", "defense", "seed")}
        groups.setdefault(json.dumps(shared, sort_keys=True), []).append((key, cell))
    return [_setup(json.loads(shared), group) for shared, group in groups.items()]


def _setup(shared: Mapping[str, Any], records: Sequence[Record]) -> Setup:
    cells, settings = _named_apart(records)
    attacks = list(dict.fromkeys(cell.attack for cell in cells))
    defenses = [name for name in dict.fromkeys(cell.defense for cell in cells) if name not in CONTROLS]
    by_attack = {attack: [cell for cell in cells if cell.attack == attack] for attack in attacks}
    seeds = sorted({cell.seed for cell in cells})
    data, model = _data_text(shared.get("data")), _model_text(shared.get("model"))
    sentence = (
        f"{_number(len(attacks), 'attack')} ({_names(attacks)}) against {_number(len(defenses), 'defense')}"
        f"{f' ({_names(defenses)})' if defenses else ''} with {_number(len(seeds), 'seed')} "
        f"({', '.join(map(str, seeds[:20]))}{', …' if len(seeds) > 20 else ''}), on {data}, with {model}."
    )
    common = [(name, _json_text(value)) for name, value in shared.items()]
    return Setup(
        f"{data[:1].upper()}{data[1:]}, {model}",
        sentence,
        _findings(by_attack, defenses),
        [_name(each) for each in defenses],
        [(_name(attack), [_heat(of, defense) for defense in defenses]) for attack, of in by_attack.items()],
        [_attack_part(attack, of) for attack, of in by_attack.items()],
        _adaptive_rows(by_attack),
        [
            Failed(_name(cell.attack), _name(cell.defense), cell.seed, printable(cell.error, limit=1000))
            for cell in cells
            if cell.error is not None
        ],
        [*((_name(name), value) for name, value in common), *settings],
    )


def _named_apart(records: Sequence[Record]) -> tuple[list[Cell], list[tuple[str, str]]]:
    """Return cells and settings; attacks or defenses of the same name with other settings get a number."""
    names: dict[tuple[str, str], dict[str, str]] = {}
    used: dict[str, str] = {}

    def label(kind: str, name: str, settings: Any) -> str:
        known = names.setdefault((kind, name), {})
        text = _json_text(settings)
        if text not in known:
            known[text] = name if not known else f"{name} #{len(known) + 1}"
            used[f"{kind} {known[text]}"] = text
        return known[text]

    cells = []
    for key, cell in records:
        attack = label("attack", cell.attack, key.get("attack"))
        is_control = cell.is_control or cell.defense in CONTROLS
        defense = cell.defense if is_control else label("defense", cell.defense, key.get("defense"))
        cells.append(replace(cell, attack=attack, defense=defense))
    cells.sort(key=lambda cell: (cell.defense == PERFECT_FILTER) - (cell.defense == NO_DEFENSE))
    return cells, [(printable(name, limit=MAX_NAME), text) for name, text in used.items()]


def _findings(by_attack: Mapping[str, Sequence[Cell]], defenses: Sequence[str]) -> list[str]:
    findings = []
    works = {attack: cells for attack, cells in by_attack.items() if attack_works(cells)}
    for defense in defenses:
        gaps = {attack: gap for attack, cells in works.items() if (gap := gap_closed(cells, defense)) is not None}
        if gaps:
            worst = min(gaps, key=lambda attack: gaps[attack])
            least = f", and least for {_name(worst)}: {100 * gaps[worst]:.0f} %" if len(gaps) > 1 else ""
            of = f"in the median of {len(gaps)} attacks" if len(gaps) > 1 else f"for {_name(worst)}"
            middle = f"{100 * median(gaps.values()):.0f} %"
            text = f"closes {middle} of the gap between the random and the perfect filter {of}{least}."
            findings.append(f"{_name(defense)} {text}")
    judged = [attack for attack, cells in by_attack.items() if any(finished_of(cells, NO_DEFENSE))]
    if idle := [attack for attack in judged if attack not in works]:
        findings.append(f"Attacks that fail without a defense, and so prove nothing: {_names(idle)}.")
    if count := sum(cell.error is not None for cells in by_attack.values() for cell in cells):
        findings.append(f"{_number(count, 'cell')} failed; the reasons are below.")
    return findings


def _heat(cells: Sequence[Cell], defense: str) -> Heat:
    text, group = matrix_entry(cells, defense), [cell for cell in cells if cell.defense == defense]
    failed = sum(cell.error is not None for cell in group)
    gap = gap_closed(cells, defense) if attack_works(cells) else None
    if gap is None:
        return Heat(text or ("not evaluated" if not group else "no gap"), "none", bool(failed))
    if 0 < failed < len(group):
        text += f", {failed} failed"
    place = round((2 * min(1.0, max(0.0, gap)) - 1) * _HEAT)
    return Heat(text, f"good-{place}" if place >= 0 else f"bad-{-place}", bool(failed))


_SHARES = ("clean_accuracy", "attack_success_rate", "poison_caught", "clean_lost")


def _attack_part(attack: str, cells: Sequence[Cell]) -> AttackPart:
    works = attack_works(cells)
    rows = []
    for name, group in rows_of(cells):
        finished = [cell for cell in group if cell.error is None]
        failed = len(group) - len(finished)
        kind = "control" if name in CONTROLS else "adaptive" if any(cell.is_adaptive for cell in group) else "defense"
        values = [_value(finished, lambda cell, each=each: 100 * getattr(cell, each), ".1f", " %") for each in _SHARES]
        values.append(_gap_value(cells, name, works=works) if finished and kind != "control" else Value())
        values += [
            _value(finished, lambda cell: cell.removed, ",.0f"),
            _value(finished, lambda cell: cell.seconds, ",.1f"),
            _value(finished, lambda cell: cell.peak_memory_mib, ",.0f"),
        ]
        rows.append(Row(_name(name), kind, values, _removals(finished), failed))
    undefended = [100 * cell.attack_success_rate for cell in finished_of(cells, NO_DEFENSE)]
    return AttackPart(
        _name(attack),
        works,
        spread(undefended, ".1f", " %") if undefended else "",
        len({cell.seed for cell in cells}),
        rows,
        roc_of(cells),
        histograms_of(cells),
        stacks_of(cells),
        next((cell.pictures for cell in cells if cell.pictures), ()),
        map_of(cells),
    )


def _adaptive_rows(by_attack: Mapping[str, Sequence[Cell]]) -> list[AdaptiveRow]:
    rows = []
    for attack, cells in by_attack.items():
        for defense in dict.fromkeys(cell.defense for cell in cells if cell.is_adaptive):
            group, before = finished_of(cells, defense), finished_of(cells, NO_DEFENSE)
            works = attack_works(cells)
            if not group or not before:
                rows.append(AdaptiveRow(_name(attack), _name(defense), [Value()] * 3, "failed"))
                continue
            harms = _value(group, lambda cell: 100 * cell.evades_and_harms, ".1f", " %")
            values = [
                _value(before, lambda cell: 100 * cell.attack_success_rate, ".1f", " %"),
                _value(group, lambda cell: 100 * cell.evades, ".1f", " %"),
                harms if works else Value(PROVES_NOTHING),
            ]
            rows.append(AdaptiveRow(_name(attack), _name(defense), values, ""))
    return rows


def _value(cells: Sequence[Cell], of: Callable[..., float], form: str, unit: str = "") -> Value:
    known = [float(value) for value in map(of, cells) if not math.isnan(value)]
    return Value(spread(known, form, unit), median(known)) if known else Value()


def _gap_value(cells: Sequence[Cell], defense: str, *, works: bool) -> Value:
    gap = gap_closed(cells, defense) if works else None
    if gap is None:
        return Value(PROVES_NOTHING if not works else "no gap")
    return Value(gap_text(cells, defense), gap)


def _removals(cells: Sequence[Cell]) -> str:
    """Return the median number of removed samples of each label, most of all first."""
    labels = dict.fromkeys(label for cell in cells for label in cell.removed_by_class)
    medians = {label: median(cell.removed_by_class.get(label, 0) for cell in cells) for label in labels}
    ordered = sorted(medians, key=lambda label: -medians[label])
    texts = [f"{printable(label, limit=24)}: {medians[label]:,g}" for label in ordered[:_MAX_CLASSES]]
    more = len(ordered) - _MAX_CLASSES
    return ", ".join(texts) + (f", and {more} more classes" if more > 0 else "")


def _data_text(data: Any) -> str:
    if not isinstance(data, Mapping):
        return "unnamed data"
    fingerprint = printable(data.get("fingerprint"), limit=40)
    text = fingerprint if fingerprint == "digits" else f"data with the fingerprint {fingerprint}"
    count = data.get("max_samples")
    return f"{text} ({count:,} samples)" if isinstance(count, int) else text


def _model_text(model: Any) -> str:
    if not isinstance(model, Mapping):
        return "an unnamed model"
    class_path, epochs = model.get("class_path"), model.get("epochs")
    text = "the built-in network" if class_path is None else printable(class_path, limit=MAX_NAME)
    return f"{text}, {epochs} epochs" if isinstance(epochs, int) else text


def _json_text(value: Any) -> str:
    """Return settings as JSON, without those that are not set."""
    if isinstance(value, Mapping):
        value = {name: each for name, each in value.items() if each not in (None, {}, "{}")}
    return printable(json.dumps(value, sort_keys=True), limit=2000)


def _name(name: object) -> str:
    return printable(name, limit=MAX_NAME)


def _names(names: Sequence[str]) -> str:
    return ", ".join(map(_name, names[:20])) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
