"""What a scan prints: a verdict in the words and numbers that a person reads in ten seconds."""

from collections.abc import Sequence

from lightning_poison.checks import printable
from lightning_poison.sanitization.coverage import POWER_UNKNOWN
from lightning_poison.sanitization.evidence import Evidence
from lightning_poison.sanitization.verdict import Verdict

_PAIRS = 3
"""Largest number of pairs of classes to list."""


def brief_lines(verdict: Verdict, class_names: Sequence[str] = ()) -> list[str]:
    r"""Return a verdict as a few short lines.

    Args:
        verdict: The verdict.
        class_names: Names of the classes, untrusted. Default: their numbers.

    Example:
        >>> import torch
        >>> scores = torch.tensor([0.2, 9.1, 0.4]).double()
        >>> verdict = Verdict(
        ...     scores, 1 / (1 + scores), scores <= 4, torch.arange(3), torch.tensor([0, 2, 2]),
        ...     torch.full((3,), 4.0).double(),
        ...     Evidence(True, 1 / 3, 0.05, 0.8, 0.95, 0.003, power=0.9), calibration="trusted",
        ...     false_positive_rate=0.01, scorer="likelihood", fingerprint="5f0c",
        ... )
        >>> print("\n".join(brief_lines(verdict)))
        Evidence of poison: 1 of 3 samples (33.3 %) is suspicious.
        - wrong labels: about 1 (0 to 2); 1 listed; of 5 % random wrong labels, 90 % would be found
        - not looked for: backdoors, individually perturbed inputs
    """
    lines = [_headline(verdict), *_finding_lines(verdict, class_names)]
    if verdict.conclusion == "uncertain" and bool(verdict.keep.all()):
        lines += _likely_wrong(verdict)
    if verdict.evidence.power is None:
        lines.append(f"- {POWER_UNKNOWN}")
    if missing := verdict.not_looked_for():
        lines.append(f"- not looked for: {missing}")
    if missed := verdict.easily_missed():
        lines.append(f"- easily missed: {missed}")
    return lines + [f"- {printable(note, limit=400)}" for note in verdict.notes]


def _headline(verdict: Verdict) -> str:
    out, count = int((~verdict.keep).sum()), len(verdict)
    verb = "is" if out == 1 else "are"
    suspicious = f"{out:,} of {count:,} samples ({100 * out / count:.1f} %) {verb} suspicious."
    headline = f"{verdict.headline[:1].upper()}{verdict.headline[1:]}"
    if verdict.evidence.present:
        return f"{headline}: {suspicious}"
    return f"{headline}. {suspicious}" if out else f"{headline}."


def _finding_lines(verdict: Verdict, class_names: Sequence[str]) -> list[str]:
    """Return what was found of each kind of poison; of a union, by each scorer."""
    if not verdict.findings:
        return _kind_lines(verdict.evidence, int((~verdict.keep).sum()), len(verdict), class_names)
    kinds = [each.evidence.kind for each in verdict.findings if each.evidence is not None]
    lines = []
    for each in verdict.findings:
        scorer = printable(each.scorer, limit=80)
        if each.evidence is None:
            lines.append(f"- {scorer} could not decide: {printable(each.failure, limit=800)}")
        else:
            by = f" by {scorer}" if kinds.count(each.evidence.kind) > 1 else ""
            lines += _kind_lines(each.evidence, each.removed, len(verdict), class_names, by)
    return lines


def _likely_wrong(verdict: Verdict) -> list[str]:
    """Say how many labels are more likely wrong than not, and what to do about them."""
    count = 0 if verdict.posterior is None else int((verdict.posterior > 0.5).sum())
    lines = ["- the report shows the most suspicious samples first: tick those to remove"]
    if count:
        labels = "1 label is" if count == 1 else f"{count:,} labels are"
        lines.append(
            f"- {labels} more likely wrong than correct; to list them: --scorer fast --remove-without-evidence"
        )
    return lines


def _kind_lines(evidence: Evidence, removed: int, count: int, class_names: Sequence[str], by: str = "") -> list[str]:
    if evidence.kind == "groups":
        found = [group for group in evidence.groups if group.is_poison]
        if not found:
            return ["- backdoors: no evidence"]
        labels = ", ".join(sorted({_name(group.label, class_names) for group in found}))
        groups = "1 group" if len(found) == 1 else f"{len(found)} groups"
        return [f"- backdoors: {removed:,} samples listed, in {groups}, labeled {labels}"]
    low, about, high = (round(share * count) for share in (evidence.low, evidence.contamination, evidence.high))
    what = ("wrong labels" if evidence.kind == "wrong labels" else "samples unlike the trusted data") + by
    power = "" if evidence.power is None else f"; of {evidence.planting}, {100 * evidence.power:.0f} % would be found"
    if evidence.present:
        at_least = "at least " if evidence.kind == "unlike trusted data" else ""
        line = f"- {what}: {at_least}about {about:,} ({low:,} to {high:,}); {removed:,} listed{power}"
    elif evidence.conclusion == "hardly detectable":
        line = f"- {what}: can hardly be found here{power}"
    elif evidence.conclusion == "uncertain":
        listed = f"uncertain; {removed:,} listed" if removed else "too uncertain to list any"
        line = f"- {what}: about {about:,} ({low:,} to {high:,}), {listed}{power}"
    else:
        line = f"- {what}: no evidence; {about:,} ({low:,} to {high:,}) estimated{power}"
    pairs = [
        f"{_name(pair.labeled, class_names)} that look like {_name(pair.predicted, class_names)} ({pair.estimate:.0f})"
        for pair in evidence.pairs[:_PAIRS]
    ]
    return [line, f"  most often: {', '.join(pairs)}"] if pairs else [line]


def _name(index: int, class_names: Sequence[str]) -> str:
    return printable(class_names[index], limit=40) if index < len(class_names) else str(index)
