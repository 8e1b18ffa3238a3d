"""`LoaderSanitizer`: scores the data sets of a Trainer's training loaders once and rebuilds the loaders.

The `Sanitizer` callback and `SanitizedDataModule` are two ways to put it between data and training.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_poison._lightning.loaders import (
    equalize_lengths,
    indexable_loaders,
    map_loaders,
    reads_view,
    rebuild_loader,
)
from lightning_poison._lightning.records import (
    folder_name,
    is_tuning,
    log_values,
    report_directory,
    verdicts_from_state,
    verdicts_to_state,
    write_files,
)
from lightning_poison._lightning.runtime import open_runtime
from lightning_poison.checks import expected, one_of, printable
from lightning_poison.data.labels import labels_of
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.data.views import SanitizedDataset
from lightning_poison.manifest.manifest import read_manifest
from lightning_poison.runtime import Runtime, all_ranks
from lightning_poison.sanitization.pipeline import check_scorer_argument, sanitize
from lightning_poison.sanitization.settings import DecisionSettings
from lightning_poison.sanitization.verdict import Verdict
from lightning_poison.scorers.inspection import AnyScorer

Action = Literal["remove", "flag"]


@dataclass(frozen=True, kw_only=True)
class SanitizerSettings:
    """The arguments of `Sanitizer`, with those of the decision in `decision`; see there for values and errors."""

    scorer: AnyScorer
    trusted: Any = None
    action: Action = "remove"
    sample: SampleSpec | None = None
    score_dataset: Any = None
    manifest: str | Path | None = None
    dirpath: str | Path | None = None
    name: str = "sanitizer"
    decision: DecisionSettings = field(default_factory=DecisionSettings)

    def __post_init__(self) -> None:
        check_scorer_argument(self.scorer)
        one_of("action", self.action, ("remove", "flag"))
        if not self.name.replace("-", "").replace("_", "").isalnum():
            raise ValueError(expected("name", "letters, digits, - and _", self.name))

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any]) -> Self:
        """Build the settings from the arguments of `Sanitizer` or `SanitizedDataModule` by name; ignore all others."""
        decision = {each.name: arguments[each.name] for each in fields(DecisionSettings)}
        own = {each.name: arguments[each.name] for each in fields(cls) if each.name != "decision"}
        return cls(**own, decision=DecisionSettings(**decision))


@dataclass
class LoaderSanitizer:
    """Scores each training loader's data set once, and filters the loaders each time they are requested.

    Args:
        settings: The settings.
        verdicts: Verdicts by the path of a loader in the collection, `""` for a single one.
    """

    settings: SanitizerSettings
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    _restored: dict[str, Verdict] = field(default_factory=dict)
    _views: dict[str, SanitizedDataset] = field(default_factory=dict)
    _datasets: dict[str, Any] = field(default_factory=dict)
    _kept_by_hand: dict[str, Tensor] = field(default_factory=dict)
    _unrecorded: set[str] = field(default_factory=set)

    def start_run(self) -> None:
        """Start a run: verdicts of an earlier run are checked against the data before they are reused."""
        self._restored |= self.verdicts
        self._clear()

    def filter(self, loaders: Any, trainer: Any = None) -> Any:
        """Return loaders that read the kept samples; the original loaders are left unchanged.

        Args:
            loaders: A training loader or a collection of them.
            trainer: The Trainer that computes and shows progress. Default: the local machine.

        Raises:
            UnsupportedDataError: If a loader cannot be filtered by index.
            DataChangedError: If a restored verdict belongs to other data.
            ValueError: If `score_dataset` does not match the data, or it or a manifest is used with several loaders.
            ManifestError: If the manifest cannot be read or does not match the data.
        """
        self._check_single(len(indexable_loaders(loaders)))
        filtered = map_loaders(loaders, lambda path, loader: self._filter_one(path, loader, trainer))
        self.write_records(trainer)
        return filtered

    def check(self, loaders: Any) -> None:
        """Check that every training loader reads the filtered view and draws positions in it.

        Raises:
            RuntimeError: If one does not.
        """
        if self.settings.action == "remove":
            map_loaders(loaders, self._check_one)

    def write_records(self, trainer: Any = None) -> None:
        """Write files and log values for new verdicts, once; postponed while a tuner replaces the loggers."""
        if not self._unrecorded or is_tuning(trainer):
            return
        directory = report_directory(trainer, self.settings.dirpath, self.settings.name)
        for path in sorted(self._unrecorded):
            if directory is not None:
                with open_runtime(trainer) as runtime, all_ranks(runtime):
                    if runtime.rank == 0:
                        self._write(path, directory, runtime)
            log_values(trainer, self.settings.name, self.verdicts, path, flag_only=self.settings.action == "flag")
        self._unrecorded.clear()

    @property
    def available_verdicts(self) -> dict[str, Verdict]:
        """All verdicts; until they are confirmed, those of an earlier run."""
        return dict(self.verdicts or self._restored)

    def single_verdict(self) -> Verdict:
        """Return the verdict on the only training loader.

        Raises:
            RuntimeError: If there is no verdict yet, or there are several loaders.
        """
        if len(self.available_verdicts) != 1:
            raise RuntimeError(
                f"Expected the verdict on one training loader, but there are {len(self.available_verdicts)} verdicts.\n"
                "Verdicts are available once training has started; with several loaders use `verdicts`. They are not "
                "returned from spawned ranks: use `Verdict.load` on the file that they wrote."
            )
        return next(iter(self.available_verdicts.values()))

    def state(self) -> dict[str, Any]:
        """Return the verdicts as tensors, strings and numbers for a checkpoint."""
        return verdicts_to_state(self.available_verdicts)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the verdicts of a state. An empty state, which tuners restore, has no effect."""
        self._restored |= verdicts_from_state(state)
        if any(not made.agrees_with(self._restored.get(path, made)) for path, made in self.verdicts.items()):
            self._clear()

    def _clear(self) -> None:
        for stored in (self.verdicts, self._views, self._datasets, self._kept_by_hand, self._unrecorded):
            stored.clear()

    def _filter_one(self, path: str, loader: DataLoader[Any], trainer: Any) -> Any:
        with open_runtime(trainer, num_workers=loader.num_workers) as runtime:
            if self._datasets.get(path) is not loader.dataset:
                self._decide(path, loader.dataset, runtime)
            if self.settings.action == "flag":
                return loader
            with all_ranks(runtime):
                rebuilt = rebuild_loader(loader, self._views[path])
            return equalize_lengths(rebuilt, runtime)

    def _decide(self, path: str, dataset: Any, runtime: Runtime) -> None:
        if path not in self.verdicts:
            self._unrecorded.add(path)
        verdict = self._score(path, dataset, runtime)
        if path in self._unrecorded:
            summary = verdict.summary(flag_only=self.settings.action == "flag")
            runtime.announce(f"{self.settings.name}{printable(path)}: {summary}")
        self.verdicts[path] = verdict
        self._views[path] = SanitizedDataset(dataset, verdict.keep)
        self._datasets[path] = dataset

    def _score(self, path: str, dataset: Any, runtime: Runtime) -> Verdict:
        settings = self.settings
        scored = dataset if settings.score_dataset is None else settings.score_dataset
        with all_ranks(runtime):
            self._check_score_dataset(dataset)
            self._kept_by_hand[path] = self._read_kept_by_hand(scored)
        verdict = sanitize(
            scored,
            settings.scorer,
            trusted=settings.trusted,
            sample=settings.sample,
            runtime=runtime,
            known=self.verdicts.get(path, self._restored.get(path)),
            **asdict(settings.decision),
        )
        return runtime.broadcast(verdict.with_kept(self._kept_by_hand[path]))

    def _read_kept_by_hand(self, dataset: Any) -> Tensor:
        if self.settings.manifest is None:
            return torch.zeros(0, dtype=torch.int64)
        return read_manifest(self.settings.manifest).kept_by_hand(dataset, sample=self.settings.sample, search=True)

    def _write(self, path: str, directory: Path, runtime: Runtime) -> None:
        target = directory / folder_name(path, list(self.verdicts))
        runtime.announce(f"{self.settings.name}{printable(path)}: writing verdict and manifest to {target}")
        view = self.settings.score_dataset
        write_files(
            target,
            self.verdicts[path],
            self._datasets[path] if view is None else view,
            sample=self.settings.sample,
            kept_by_hand=self._kept_by_hand[path],
            flag_only=self.settings.action == "flag",
            announce=runtime.announce,
        )

    def _check_single(self, count: int) -> None:
        for name in ("score_dataset", "manifest"):
            if getattr(self.settings, name) is not None and count != 1:
                hint = "It applies to a single data set. Score the others with `sanitize`."
                raise ValueError(expected(name, "used with one training loader", str(count), hint))

    def _check_score_dataset(self, dataset: Any) -> None:
        view, sample = self.settings.score_dataset, self.settings.sample
        if view is None:
            return
        if len(view) != len(dataset) or not torch.equal(labels_of(view, sample), labels_of(dataset, sample)):
            raise ValueError(
                f"Expected `score_dataset` to contain the {len(dataset):,} samples of the training set in the same "
                f"order, but got {len(view):,} samples or other labels.\n"
                "Build it like the training set, with another transform."
            )

    def _check_one(self, path: str, loader: Any) -> Any:
        view = self._views.get(path)
        if view is None or not reads_view(loader, view):
            where = f" {printable(path)}" if path else ""
            dataset = type(getattr(loader, "dataset", loader)).__name__
            sampler = type(getattr(loader, "sampler", None)).__name__
            raise RuntimeError(
                f"Expected the training loader{where} to read the kept samples, but got one that reads {dataset} with "
                f"{sampler}.\nAnother callback or hook replaced the loader or its sampler after filtering. Place the "
                "Sanitizer after it, or wrap the data in a SanitizedDataModule."
            )
        return loader
