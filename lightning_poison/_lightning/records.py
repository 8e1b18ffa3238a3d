"""The records of a sanitizer: verdicts in checkpoints, files beside the run, and values in the Trainer's loggers."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_poison.checks import describe_error, expected, printable
from lightning_poison.data.reading import ReadSettings, run_in_worker
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.data.source import Readable
from lightning_poison.errors import UnreadableSampleError
from lightning_poison.manifest.manifest import Manifest, read_manifest, set_aside
from lightning_poison.sanitization.stored_decision import StoredDecision
from lightning_poison.sanitization.verdict import Verdict
from lightning_poison.serialization import check_writable

REPORTS_FOLDER = "sanitizer_reports"

CACHE_FOLDER = "sanitizer_cache"

VERDICT_FILE = "verdict.safetensors"

MANIFEST_FILE = "manifest.csv"

_STATE_VERSION = 2
"""Format of `decisions_to_state`, stored in every state that is not empty."""


class Edits(NamedTuple):
    """What a user decided in a manifest.

    Args:
        kept_by_hand: Positions of the samples to keep, int64 `(K,)`.
        removed_by_hand: Positions of the samples to remove, int64 `(R,)`.
    """

    kept_by_hand: Tensor = torch.zeros(0, dtype=torch.int64)
    removed_by_hand: Tensor = torch.zeros(0, dtype=torch.int64)

    def applied_to(self, verdict: Verdict) -> Verdict:
        """Return a copy of a verdict with these decisions."""
        return verdict.with_kept(self.kept_by_hand).with_removed(self.removed_by_hand)


def decisions_to_state(decisions: Mapping[str, StoredDecision]) -> dict[str, Any]:
    """Return decisions, by loader path, as tensors, strings and numbers for a checkpoint."""
    return {"version": _STATE_VERSION, "decisions": {path: each.state() for path, each in decisions.items()}}


def decisions_from_state(state: Mapping[str, Any]) -> dict[str, StoredDecision]:
    """Return the decisions of a state that `decisions_to_state` returned; none from an empty state.

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
        return {path: StoredDecision.from_state(packed) for path, packed in state["decisions"].items()}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"Expected a complete decision in the checkpoint, but got a damaged one: {printable(repr(error))}.\n"
            "Resume from another checkpoint, or score again with a new sanitizer."
        ) from error


def verdict_of(stored: StoredDecision) -> Verdict | None:
    """Return the verdict of a stored decision from the file that it names; `None` if it is not there any more."""
    if stored.file is None:
        return None
    try:
        verdict = Verdict.load(stored.file)
    except (OSError, ValueError):
        return None
    same = verdict.fingerprint == stored.fingerprint and torch.equal(verdict.keep, stored.keep)
    return verdict if same else None


def cache_directory(trainer: Any, dirpath: str | Path | None) -> Path | None:
    """Return the folder for finished and half-finished work, which all runs in a root directory share.

    Args:
        trainer: Any Trainer, or `None`.
        dirpath: The user's directory for files.

    Returns:
        `cache` in the user's directory, or `sanitizer_cache` in the root directory of the Trainer. `None` without
        either, during `fast_dev_run`, and if the root directory is not in a local file system.
    """
    if dirpath is not None:
        return Path(dirpath) / "cache"
    if trainer is None or trainer.fast_dev_run or "://" in str(trainer.default_root_dir):
        return None
    return Path(trainer.default_root_dir) / CACHE_FOLDER


def report_directory(trainer: Any, dirpath: str | Path | None, name: str) -> Path | None:
    """Return the directory of a sanitizer's files. Call it on every rank: a Trainer's log directory is a collective.

    Args:
        trainer: Any Trainer, or `None`.
        dirpath: The user's directory. Default: `sanitizer_reports/<name>` in the log directory of the Trainer, or in
            its root directory if it has no logger.
        name: Name of the sanitizer.

    Returns:
        The directory, or `None` without a Trainer, during `fast_dev_run`, and if the Trainer's directory is not in a
        local file system.
    """
    if dirpath is not None:
        return Path(dirpath)
    if trainer is None or trainer.fast_dev_run:
        return None
    root = str(trainer.log_dir or trainer.default_root_dir)
    return None if "://" in root else Path(root) / REPORTS_FOLDER / name


def check_directory(directory: Path, dirpath: str | Path | None, name: str) -> bool:
    """Return whether files can be written to a directory, which is created. If they cannot, warn.

    Args:
        directory: Directory of a sanitizer's files.
        dirpath: The user's directory, or `None` for the default.
        name: Name of the sanitizer.

    Raises:
        OSError: If files cannot be written to the user's directory.
    """
    try:
        check_writable(directory, (VERDICT_FILE, MANIFEST_FILE))
    except OSError as error:
        if dirpath is not None:
            reason = f"{printable(directory)} cannot be written: {_reason(error)}"
            hint = "Nothing has been scored yet. Correct the path, or choose another folder: `dirpath=...`."
            raise OSError(expected("dirpath", "a folder for verdict and manifest", reason, hint)) from error
        _warn_unwritten(directory, error, name, "will not be")
        return False
    return True


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
    edits: Edits,
    flag_only: bool,
    class_names: Sequence[str] | None = None,
    announce: Callable[[str], None],
    reading: ReadSettings = ReadSettings(),  # noqa: B008 (frozen)
    name: str = "sanitizer",
    warned: bool = False,
) -> bool:
    """Write verdict and manifest, each atomically, and return whether both were written. If one was not, warn.

    Neither a disk nor a sample that cannot be read again ends the training.

    If the directory contains a manifest that was edited by hand and not passed to this run, it is renamed and the user
    is notified, so no edits are lost.

    Args:
        directory: Target directory.
        verdict: The verdict.
        dataset: The scored data set.
        sample: Paths of input and label in a sample. Default: detected.
        edits: Samples that the user keeps or removes.
        flag_only: Whether removed samples are trained on nevertheless.
        class_names: Names of the classes. Default: those that the data set lists.
        announce: Logs a message.
        reading: How the data set is read: in a worker, if it has workers.
        name: Name of the sanitizer, for the warning.
        warned: Whether the user knows already that nothing can be written to the directory.
    """
    errors: list[Exception] = []
    try:
        verdict.save(directory / VERDICT_FILE)
    except OSError as error:
        errors.append(error)
    options = {"sample": sample, "flag_only": flag_only, "class_names": class_names, **edits._asdict()}
    build = partial(_manifest_of, verdict=verdict, reading=reading, **options)
    try:
        manifest = run_in_worker(build, dataset, reading)
        _write_manifest(directory, manifest, edits, announce)
    except (OSError, UnreadableSampleError, TypeError, ValueError) as error:
        errors.append(error)
    if errors and not warned:
        _warn_unwritten(directory, errors[0], name, "were not completely")
    return not errors


def _write_manifest(directory: Path, manifest: Manifest, edits: Edits, announce: Callable[[str], None]) -> None:
    if not any(map(len, edits)):
        renamed = set_aside(directory / MANIFEST_FILE, manifest)
        if renamed is not None:
            announce(
                "The manifest of an earlier run was edited by hand but not passed to this run, so the edits have no "
                f"effect. It was renamed. To apply the edits, pass `manifest={printable(str(renamed))!r}`."
            )
    manifest.write(directory / MANIFEST_FILE)


def _warn_unwritten(directory: Path, error: Exception, name: str, verb: str) -> None:
    warnings.warn(
        f"Verdict and manifest of `{name}` {verb} written to {printable(directory)}: {_reason(error)}. Training "
        "continues, and the verdict is in memory.\nSave it after training: `sanitizer.verdict.save(path)`. For the "
        "next run, choose another folder: `dirpath=...`.",
        stacklevel=3,
    )


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or describe_error(error)


def _manifest_of(dataset: Any, *, verdict: Verdict, reading: ReadSettings, **options: Any) -> Manifest:
    return Manifest.from_verdict(verdict, Readable(dataset, settings=reading), **options)


def find_edits(path: str | Path, data: Readable, sample: SampleSpec | None) -> Edits:
    """Return the samples that a manifest file keeps or removes by hand; see `Manifest.kept_by_hand`.

    Args:
        path: Path of the file.
        data: The data set, the positions of its samples that count, and how they are read: in a worker, if it has any.
        sample: Paths of input and label in a sample. `None`: detected.
    """
    manifest, settings = read_manifest(path), data.settings
    find = partial(_find_edits, manifest=manifest, positions=data.positions, settings=settings, sample=sample)
    return run_in_worker(find, data.dataset, settings)


def _find_edits(
    dataset: Any, *, manifest: Manifest, positions: Tensor | None, settings: ReadSettings, sample: SampleSpec | None
) -> Edits:
    data = Readable(dataset, positions, settings)
    found = (find(data, sample=sample, search=True) for find in (manifest.kept_by_hand, manifest.removed_by_hand))
    return Edits(*found)


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
