"""Why a sample was removed, and which kinds of poison were not looked for, in words."""

from collections.abc import Sequence

from lightning_poison.checks import expected, printable
from lightning_poison.sanitization.evidence import EvidenceKind
from lightning_poison.sanitization.verdict import Verdict


def reason_of(verdict: Verdict, index: int, class_names: Sequence[str] = ()) -> str:
    """Return why a sample that is removed, flagged or kept by hand is suspicious, in words.

    Args:
        verdict: The verdict.
        index: Position of the sample.
        class_names: Names of the classes. Default: their numbers.

    Returns:
        A phrase such as `"labeled 3, looks like 5"`.

    Raises:
        ValueError: If there is no such sample.

    Example:
        >>> import torch
        >>> from lightning_poison.sanitization.evidence import Evidence
        >>> scores, labels = torch.tensor([0.2, 9.1]).double(), torch.tensor([0, 1])
        >>> evidence = Evidence(True, 0.5, 0.05, 0.8, confidence=0.95, natural_error_rate=0.003)
        >>> verdict = Verdict(
        ...     scores, torch.tensor([0.8, 0.01]).double(), scores < 4, labels, torch.tensor([0, 0]),
        ...     torch.full((2,), 4.0).double(), evidence, "trusted", 0.01, "likelihood", "5f0c",
        ... )
        >>> reason_of(verdict, 1, ["cat", "dog"])
        'labeled dog, looks like cat'
    """
    if not 0 <= index < len(verdict):
        raise ValueError(expected("index", f"from 0 to {len(verdict) - 1}", index))
    label, suggested = int(verdict.labels[index]), int(verdict.suggested_labels[index])
    number = -1 if verdict.groups is None else int(verdict.groups[index])
    if number >= 0:
        group = verdict.evidence.groups[number]
        return f"one of {group.size:,} samples labeled {_name(label, class_names)} with a common feature"
    if suggested not in (-1, label):
        return f"labeled {_name(label, class_names)}, looks like {_name(suggested, class_names)}"
    if kind_of(verdict, index) == "unlike trusted data":
        return f"labeled {_name(label, class_names)}, unlike the trusted samples of this class"
    return f"labeled {_name(label, class_names)}, unusual under this label"


def kind_of(verdict: Verdict, index: int) -> EvidenceKind:
    """Return of which kind a sample is: what the member that removed it, or suspects it most, looks for."""
    number = _finding_of(verdict, index)
    evidence = verdict.findings[number].evidence if number >= 0 else None
    return verdict.evidence.kind if evidence is None else evidence.kind


def finder_of(verdict: Verdict, index: int) -> str:
    """Return the name of the scorer that removed a sample, or suspects it most: a member of a union, or the only."""
    number = _finding_of(verdict, index)
    if number >= 0:
        return verdict.findings[number].scorer
    return verdict.scorer if verdict.findings else verdict.scorers[0]


def _finding_of(verdict: Verdict, index: int) -> int:
    """Return the number of the member that removed a sample, else the one with the smallest p-value; −1 for none."""
    number = -1 if verdict.found_by is None else int(verdict.found_by[index])
    if number >= 0:
        return number
    p_values = {
        float(verdict.votes[each.scorer][index]): place
        for place, each in reversed(list(enumerate(verdict.findings)))
        if each.evidence is not None and each.scorer in verdict.votes
    }
    return p_values[min(p_values)] if p_values else -1


def _name(label: int, names: Sequence[str]) -> str:
    return printable(names[label], limit=40) if 0 <= label < len(names) else str(label)
