"""The records of a sanitizer: verdicts in checkpoints, files beside the run, and values in the Trainer's loggers."""

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

REPORTS_FOLDER = "sanitizer_reports"

_STATE_VERSION = 1
"""Format of `verdicts_to_state`, stored in every state that is not empty."""


def verdicts_to_state(verdicts: Mapping[str, Verdict]) -> dict[str, Any]:
    """Return verdicts, by loader path, as tensors, strings and numbers for a checkpoint."""
    packed = {path: {"meta": each.meta(), "tensors": each.tensors()} for path, each in verdicts.items()}
    return {"version": _STATE_VERSION, "verdicts": packed}


def verdicts_from_state(state: Mapping[str, Any]) -> dict[str, Verdict]:
    """Return the verdicts of a state that `verdicts_to_state` returned; none from an empty state.

    Raises:
        ValueError: If the format of the state is unknown, or the state is damaged.
    """
    if not state:
        return {}
    if state.get("version") != _STATE_VERSION:
        found = printable(repr(state.get("version")))
        hint = "Resume with the release that wrote the checkpoint, or score again with a new sanitizer."
        raise ValueError(expected("version", f"{_STATE_VERSION}, the format of stored decisions", found, hint))
    try:
        items = state["verdicts"].items()
        return {path: Verdict.from_saved(packed["meta"], packed["tensors"]) for path, packed in items}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"Expected a complete decision in the checkpoint, but got a damaged one: {printable(repr(error))}.\n"
            "Resume from another checkpoint, or score again with a new sanitizer."
        ) from error


def report_directory(trainer: Any, dirpath: str | Path | None, name: str) -> Path | None:
    """Return the directory of a sanitizer's files. Call it on every rank: a Trainer's log directory is a collective.

    Args:
        trainer: Any Trainer, or `None`.
        dirpath: The user's directory. Default: `sanitizer_reports/<name>` in the log directory of the Trainer, or in
            its root directory if it has no logger.
        name: Name of the sanitizer.

    Returns:
        The directory, or `None` without a Trainer and during `fast_dev_run`.
    """
    if dirpath is not None:
        return Path(dirpath)
    if trainer is None or trainer.fast_dev_run:
        return None
    return Path(trainer.log_dir or trainer.default_root_dir) / REPORTS_FOLDER / name


def is_tuning(trainer: Any) -> bool:
    """Return whether a tuner has temporarily replaced the loggers, so that records would be lost."""
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

    If the directory contains a manifest that was edited by hand and not passed to this run, it is renamed and the user
    is notified, so no edits are lost.

    Args:
        directory: Target directory.
        verdict: The verdict.
        dataset: The scored data set.
        sample: Paths of input and label in a sample. Default: detected.
        kept_by_hand: int64 `(K,)`, samples kept by the user, as in `Manifest.from_verdict`.
        flag_only: Whether removed samples are trained on nevertheless.
        announce: Logs a message.
    """
    verdict.save(directory / "verdict.safetensors")
    if kept_by_hand is None or not len(kept_by_hand):
        renamed = _rename_edited(directory / "manifest.csv")
        if renamed is not None:
            announce(
                "The manifest of an earlier run was edited by hand but not passed to this run, so the edits have no "
                f"effect. It was renamed. To apply the edits, pass `manifest={printable(str(renamed))!r}`."
            )
    write_manifest(
        directory / "manifest.csv", verdict, dataset, sample=sample, kept_by_hand=kept_by_hand, flag_only=flag_only
    )


def log_values(trainer: Any, name: str, verdicts: Mapping[str, Verdict], path: str, *, flag_only: bool = False) -> None:
    """Log the values of a verdict with every logger of a Trainer, under the name of its folder.

    Args:
        trainer: Any Trainer, or `None`.
        name: Name of the sanitizer.
        verdicts: All verdicts of the sanitizer by loader path.
        path: Path of the loader whose verdict is logged.
        flag_only: Whether removed samples are trained on nevertheless.
    """
    verdict, prefix = verdicts[path], Path(name, folder_name(path, list(verdicts))).as_posix()
    evidence = verdict.evidence
    values = {
        f"{prefix}/{'flagged' if flag_only else 'removed'}_fraction": 1 - float(verdict.keep.double().mean()),
        f"{prefix}/contamination": evidence.contamination,
        f"{prefix}/contamination_low": evidence.low,
        f"{prefix}/contamination_high": evidence.high,
        f"{prefix}/evidence": float(evidence.present),
    }
    for logger in getattr(trainer, "loggers", []):
        logger.log_metrics(values, step=trainer.global_step)


def folder_name(path: str, paths: list[str]) -> str:
    """Return the folder of a loader: its position among all loaders and the words of its path; `.` for a single one.

    Args:
        path: Path of the loader in its collection, `""` for a single one.
        paths: Paths of all loaders.
    """
    words = "".join(char if char.isalnum() else " " for char in path).split()
    return "-".join([str(paths.index(path)), *words]) if path else "."


def _rename_edited(path: Path) -> Path | None:
    """Rename a manifest that has samples kept by hand, or cannot be read; return its new path."""
    if not path.exists():
        return None
    try:
        is_edited = any(row.decision == "kept-by-hand" for row in read_manifest(path).rows)
    except ManifestError:
        is_edited = True
    if not is_edited:
        return None
    names = (path.with_name(f"manifest.previous-{number}.csv") for number in itertools.count(1))
    return path.replace(next(name for name in names if not name.exists()))
