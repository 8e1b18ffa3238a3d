"""Telling what a gate decided: in files beside the run, and in the Trainer's loggers."""

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_poison.checks import expected, printable
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.errors import ManifestError
from lightning_poison.manifest.manifest import read_manifest, write_manifest
from lightning_poison.sanitization.verdict import Verdict

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


def run_directory(trainer: Any, dirpath: str | Path | None, name: str) -> Path | None:
    """Return where a gate writes; to be asked on every rank, since a Trainer's log directory is agreed among them.

    Args:
        trainer: any Trainer, or `None`.
        dirpath: where the user wants it, or `None`.
        name: the gate's name.

    Returns:
        The user's directory, or one in the Trainer's; `None` where there is no Trainer, or it is a trial run.
    """
    if dirpath is not None:
        return Path(dirpath)
    if trainer is None or trainer.fast_dev_run:
        return None
    return Path(trainer.log_dir or trainer.default_root_dir) / "lightning_poison" / name


def is_tuning(trainer: Any) -> bool:
    """Tell whether a tuner has taken the loggers away for a while: what is recorded now would be lost."""
    if trainer is None or trainer.fast_dev_run:
        return False
    return any(type(logger).__name__ == "DummyLogger" for logger in trainer.loggers)


def write_files(
    directory: Path,
    verdict: Verdict,
    dataset: Any,
    *,
    sample: SampleSpec | None,
    kept_by_hand: Tensor | None,
    flag_only: bool,
    announce: Callable[[str], None],
) -> None:
    """Write verdict and manifest, each atomically.

    A manifest that is there already and was edited by hand, and not handed to this run, is set aside under another
    name, and the user is told: nobody's work is lost.

    Args:
        directory: where to.
        verdict: what was decided.
        dataset: the data set that was judged.
        sample: where the input stands in a sample; found by itself where it is `None`.
        kept_by_hand: int64 `(K,)`, what a person keeps, as `Manifest.from_verdict` takes it.
        flag_only: whether what is not kept is trained on nevertheless.
        announce: tells the user.
    """
    verdict.save(directory / "verdict.safetensors")
    if kept_by_hand is None or not len(kept_by_hand):
        aside = _set_aside(directory / "manifest.csv")
        if aside is not None:
            announce(
                "The manifest of an earlier run was edited by hand and not handed to this one, so the edits have no "
                f"effect. To keep what was kept by hand, pass `manifest={printable(str(aside))!r}`: there it lies now."
            )
    write_manifest(
        directory / "manifest.csv", verdict, dataset, sample=sample, kept_by_hand=kept_by_hand, flag_only=flag_only
    )


def log_figures(
    trainer: Any, name: str, verdicts: Mapping[str, Verdict], path: str, *, flag_only: bool = False
) -> None:
    """Hand the figures of a verdict to every logger of a Trainer, under the name that its files have too.

    Args:
        trainer: any Trainer, or `None`.
        name: the gate's name.
        verdicts: all that it decided, by the paths of the loaders.
        path: the loader that the figures are about.
        flag_only: whether what is suspicious is trained on nevertheless.
    """
    verdict, prefix = verdicts[path], Path(name, folder_name(path, list(verdicts))).as_posix()
    evidence = verdict.evidence
    figures = {
        f"{prefix}/{'flagged' if flag_only else 'removed'}_fraction": 1 - float(verdict.keep.double().mean()),
        f"{prefix}/contamination": evidence.contamination,
        f"{prefix}/contamination_low": evidence.low,
        f"{prefix}/contamination_high": evidence.high,
        f"{prefix}/evidence": float(evidence.present),
    }
    for logger in getattr(trainer, "loggers", []):
        logger.log_metrics(figures, step=trainer.global_step)


def folder_name(path: str, paths: list[str]) -> str:
    """Return the name of a loader's own folder: its number among all and what its path spells; `.` for a bare loader.

    Args:
        path: where the loader stands in its collection, `""` for a bare one.
        paths: those of all loaders.
    """
    words = "".join(char if char.isalnum() else " " for char in path).split()
    return "-".join([str(paths.index(path)), *words]) if path else "."


def _set_aside(path: Path) -> Path | None:
    """Rename a manifest that holds rows kept by hand, or can no longer be read; return its new path."""
    if not path.exists():
        return None
    try:
        edited = any(row.decision == "kept-by-hand" for row in read_manifest(path).rows)
    except ManifestError:
        edited = True
    if not edited:
        return None
    names = (path.with_name(f"manifest.previous-{number}.csv") for number in itertools.count(1))
    return path.replace(next(name for name in names if not name.exists()))
