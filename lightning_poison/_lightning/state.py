"""Decisions in a checkpoint: tensors, strings and numbers, which any later release can tell from its own form."""

from collections.abc import Mapping
from typing import Any

from lightning_poison.checks import expected, printable
from lightning_poison.verdict import Verdict

_STATE_VERSION = 1
"""Names the form; every state that is not empty holds it."""


def as_state(verdicts: Mapping[str, Verdict]) -> dict[str, Any]:
    """Return decisions, by the paths of the loaders, as tensors, strings and numbers, fit for a checkpoint."""
    packed = {path: {"meta": each.meta(), "tensors": each.tensors()} for path, each in verdicts.items()}
    return {"version": _STATE_VERSION, "verdicts": packed}


def from_state(state: Mapping[str, Any]) -> dict[str, Verdict]:
    """Return the decisions that `as_state` packed; none from an empty state.

    Raises:
        ValueError: where the state has a form that this release does not know.
    """
    if not state:
        return {}
    if state.get("version") != _STATE_VERSION:
        came = printable(repr(state.get("version")))
        way = "Resume with the release that wrote the checkpoint, or with a new sanitizer, which judges anew."
        raise ValueError(expected("version", f"{_STATE_VERSION}, the form of stored decisions", came, way))
    try:
        found = state["verdicts"].items()
        return {path: Verdict.from_saved(packed["meta"], packed["tensors"]) for path, packed in found}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"Expected a complete decision in the checkpoint, but parts of it do not fit: {printable(repr(error))}.\n"
            "Resume from another checkpoint, or with a new sanitizer, which judges anew."
        ) from error
