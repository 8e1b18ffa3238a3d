"""What a decision looked for, what it is known to miss, and what it compares samples with, in words."""

from collections.abc import Collection
from typing import Literal

Calibration = Literal["trusted", "wrong-label null", "group tests", "members"]
"""What the thresholds of a decision are calibrated on."""

DECIDED_BY: dict[Calibration, str] = {
    "trusted": "comparison with trusted samples that were scored in the same way",
    "wrong-label null": "comparison with how the samples score under other labels (no trusted data)",
    "group tests": "whether what a group has in common changes how other samples are classified (no trusted data)",
    "members": "each scorer's own rule",
}
"""How samples are told apart, for people who do not know what a calibration is."""

_KINDS: dict[str, str] = {
    "wrong labels": "wrong labels",
    "groups": "backdoors",
    "perturbations": "individually perturbed inputs",
}
"""Kinds of poison that decisions without trusted data may look for. None looks for the last."""

_LIKE_TRUSTED = "poison of any kind that scores like the trusted samples of its class"
"""What decisions with trusted data do not look for: they compare scores, whatever the kind of poison."""

POWER_UNKNOWN = "how much of the poison would be found was not measured"
"""Said if a verdict has no power. With trusted data, no wrong labels are planted to measure it."""

_MISSED_GROUPS = (
    "backdoors that look natural (reflections, warped photos), are on half of a class, have fewer than about 20 "
    "samples, or have correct labels in data of few classes; collisions in the features of another network"
)
"""What decisions by groups do not find in docs/benchmarks.md, though the attack succeeds."""


def not_looked_for(kinds: Collection[str]) -> str:
    """Return the kinds of poison that no scorer looked for, with commas between them.

    Args:
        kinds: What was looked for, as in `Evidence.kind`.

    Example:
        >>> not_looked_for({"wrong labels"})
        'backdoors, individually perturbed inputs'
        >>> not_looked_for({"unlike trusted data"})
        'poison of any kind that scores like the trusted samples of its class'
    """
    if "unlike trusted data" in kinds:
        return _LIKE_TRUSTED
    return ", ".join(what for kind, what in _KINDS.items() if kind not in kinds)


def easily_missed(kinds: Collection[str]) -> str:
    """Return which poison the scorers that looked for backdoors are known to miss, or an empty text.

    Args:
        kinds: What was looked for, as in `Evidence.kind`.
    """
    return _MISSED_GROUPS if "groups" in kinds else ""
