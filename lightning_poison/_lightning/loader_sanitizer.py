"""`Gate`: judges the data sets behind a Trainer's training loaders once, and rebuilds the loaders around what is kept.

The callback and the DataModule wrapper are two ways to put one gate between the data and the training.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_poison._lightning.loaders import filterable, level, map_loaders, rebuild_loader, speaks_view
from lightning_poison._lightning.records import (
    as_state,
    folder_name,
    from_state,
    is_tuning,
    log_figures,
    run_directory,
    write_files,
)
from lightning_poison._lightning.runtime import opened_runtime
from lightning_poison.checks import expected, one_of, printable
from lightning_poison.data.labels import labels_of
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.data.views import SanitizedDataset
from lightning_poison.manifest.manifest import read_manifest
from lightning_poison.runtime import Runtime, agreed
from lightning_poison.sanitization.pipeline import check_arguments, sanitize
from lightning_poison.sanitization.verdict import Verdict
from lightning_poison.scorers.inspection import AnyScorer
from lightning_poison.statistics.contamination import NATURAL_ERROR_RATE

Action = Literal["remove", "flag"]


@dataclass
class GateSettings:
    """What a gate is told; the fields are the arguments of `Sanitizer`, and so is what is raised."""

    scorer: AnyScorer
    trusted: Any = None
    false_positive_rate: float = 0.01
    action: Action = "remove"
    sample: SampleSpec | None = None
    score_dataset: Any = None
    folds: int = 3
    natural_error_rate: float = NATURAL_ERROR_RATE
    remove_without_evidence: bool = False
    max_removed: float = 0.5
    manifest: str | Path | None = None
    dirpath: str | Path | None = None
    seed: int = 0
    name: str = "sanitizer"

    def __post_init__(self) -> None:
        check_arguments(
            self.scorer, self.false_positive_rate, self.natural_error_rate, self.max_removed, self.seed, self.folds
        )
        one_of("action", self.action, ("remove", "flag"))
        if not self.name.replace("-", "").replace("_", "").isalnum():
            raise ValueError(expected("name", "letters, digits, - and _", self.name))


@dataclass
class Gate:
    """Judges once for each training loader, and filters each time the loaders are asked for.

    Args:
        settings: what it is told.
        verdicts: by the path of a loader in the collection, `""` for a bare one.
    """

    settings: GateSettings
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    _restored: dict[str, Verdict] = field(default_factory=dict)
    _views: dict[str, SanitizedDataset] = field(default_factory=dict)
    _seen: dict[str, Any] = field(default_factory=dict)
    _kept_by_hand: dict[str, Tensor] = field(default_factory=dict)
    _untold: set[str] = field(default_factory=set)

    def start(self) -> None:
        """Begin a run: decisions of an earlier one are checked against the data before they are used again."""
        self._restored |= self.verdicts
        self._forget()

    def filter(self, loaders: Any, trainer: Any = None) -> Any:
        """Return the loaders, rebuilt around what is kept; the user's own are left as they are.

        Args:
            loaders: a loader or a collection, as a Trainer takes it.
            trainer: where to compute and to show progress; this machine where it is `None`.

        Raises:
            UnsupportedDataError: where a loader cannot be filtered by index.
            DataChangedError: where a restored decision belongs to other data.
            ValueError: where `score_dataset` does not belong to the data, or there are several loaders for it or for
                a manifest.
            ManifestError: where the manifest cannot be read or does not belong to the data.
        """
        found: list[DataLoader[Any]] = []
        map_loaders(loaders, lambda path, loader: found.append(filterable(loader, path)))
        self._check_single(len(found))
        changed = map_loaders(loaders, lambda path, loader: self._filtered(path, loader, trainer))
        self.tell(trainer)
        return changed

    def check(self, loaders: Any) -> None:
        """Raise where a training loader does not read what is kept, by positions of what is kept.

        Raises:
            RuntimeError: naming the loader.
        """
        if self.settings.action == "remove":
            map_loaders(loaders, self._check_one)

    def tell(self, trainer: Any = None) -> None:
        """Write what was decided beside the run and log its figures, once; later where a tuner hides the loggers."""
        if not self._untold or is_tuning(trainer):
            return
        directory = run_directory(trainer, self.settings.dirpath, self.settings.name)
        for path in sorted(self._untold):
            if directory is not None:
                with opened_runtime(trainer) as runtime:
                    agreed(runtime, partial(self._write, path, directory, runtime))
            log_figures(trainer, self.settings.name, self.verdicts, path, flag_only=self.settings.action == "flag")
        self._untold.clear()

    @property
    def decided(self) -> dict[str, Verdict]:
        """All verdicts; those of an earlier run before they are confirmed."""
        return dict(self.verdicts or self._restored)

    def only_verdict(self) -> Verdict:
        """Return the verdict about the one training loader.

        Raises:
            RuntimeError: before there is one, or where there are several loaders.
        """
        if len(self.decided) != 1:
            raise RuntimeError(
                f"Expected one judged training loader, but there are {len(self.decided)}.\n"
                "Ask after the training has started; with several loaders use `verdicts`. Where ranks were spawned, "
                "the process that spawned them knows nothing: use `Verdict.load` on what they wrote."
            )
        return next(iter(self.decided.values()))

    def state(self) -> dict[str, Any]:
        """Return the decisions as tensors, strings and numbers, fit for a checkpoint."""
        return as_state(self.decided)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over decisions, as `from_state` reads them; an empty state changes nothing, since tuners restore one."""
        self._restored |= from_state(state)
        if any(not made.agrees_with(self._restored.get(path, made)) for path, made in self.verdicts.items()):
            self._forget()

    def _forget(self) -> None:
        for held in (self.verdicts, self._views, self._seen, self._kept_by_hand, self._untold):
            held.clear()

    def _filtered(self, path: str, loader: DataLoader[Any], trainer: Any) -> Any:
        with opened_runtime(trainer, num_workers=loader.num_workers) as runtime:
            if self._seen.get(path) is not loader.dataset:
                self._decide(path, loader.dataset, runtime)
            if self.settings.action == "flag":
                return loader
            return level(agreed(runtime, lambda: rebuild_loader(loader, self._views[path])), runtime)

    def _decide(self, path: str, dataset: Any, runtime: Runtime) -> None:
        if path not in self.verdicts:
            self._untold.add(path)
        verdict = self._judged(path, dataset, runtime)
        if path in self._untold:
            shown = verdict.summary(flag_only=self.settings.action == "flag")
            runtime.announce(f"{self.settings.name}{printable(path)}: {shown}")
        self.verdicts[path] = verdict
        self._views[path] = SanitizedDataset(dataset, verdict.keep)
        self._seen[path] = dataset

    def _judged(self, path: str, dataset: Any, runtime: Runtime) -> Verdict:
        given = self.settings
        agreed(runtime, lambda: self._check_score_dataset(dataset))
        judged = given.score_dataset if given.score_dataset is not None else dataset
        self._kept_by_hand[path] = agreed(runtime, lambda: self._chosen_by_hand(judged))
        verdict = sanitize(
            judged,
            given.scorer,
            trusted=given.trusted,
            false_positive_rate=given.false_positive_rate,
            sample=given.sample,
            folds=given.folds,
            natural_error_rate=given.natural_error_rate,
            remove_without_evidence=given.remove_without_evidence,
            max_removed=given.max_removed,
            seed=given.seed,
            runtime=runtime,
            known=self.verdicts.get(path, self._restored.get(path)),
        )
        return runtime.broadcast(verdict.with_kept(self._kept_by_hand[path]))

    def _chosen_by_hand(self, dataset: Any) -> Tensor:
        if self.settings.manifest is None:
            return torch.zeros(0, dtype=torch.int64)
        return read_manifest(self.settings.manifest).kept_by_hand(dataset, sample=self.settings.sample, search=True)

    def _write(self, path: str, directory: Path, runtime: Runtime) -> None:
        if runtime.rank == 0:
            target = directory / folder_name(path, list(self.verdicts))
            runtime.announce(f"{self.settings.name}{printable(path)}: writing verdict and manifest to {target}")
            view = self.settings.score_dataset
            write_files(
                target,
                self.verdicts[path],
                self._seen[path] if view is None else view,
                sample=self.settings.sample,
                kept_by_hand=self._kept_by_hand[path],
                flag_only=self.settings.action == "flag",
                announce=runtime.announce,
            )

    def _check_single(self, count: int) -> None:
        for name in ("score_dataset", "manifest"):
            if getattr(self.settings, name) is not None and count != 1:
                raise ValueError(
                    expected(name, "used with one training loader", f"{count} of them")
                    + "\nIt speaks of the samples of one data set: judge the others with `sanitize`."
                )

    def _check_score_dataset(self, dataset: Any) -> None:
        view, sample = self.settings.score_dataset, self.settings.sample
        if view is None:
            return
        if len(view) != len(dataset) or not torch.equal(labels_of(view, sample), labels_of(dataset, sample)):
            raise ValueError(
                f"Expected `score_dataset` to hold the {len(dataset):,} samples of the training set in the same order, "
                f"but it has {len(view):,} or other labels.\n"
                "Build it like the training set, with another transform."
            )

    def _check_one(self, path: str, loader: Any) -> Any:
        view = self._views.get(path)
        if view is None or not speaks_view(loader, view):
            where = f" {printable(path)}" if path else ""
            read = type(getattr(loader, "dataset", loader)).__name__
            sampler = type(getattr(loader, "sampler", None)).__name__
            raise RuntimeError(
                f"Expected the training loader{where} to read what the sanitizer keeps, but it reads {read} by "
                f"{sampler}.\nAnother callback or hook replaced the loader or its sampler after it was filtered: put "
                "the Sanitizer behind it, or wrap the data in a SanitizedDataModule."
            )
        return loader
