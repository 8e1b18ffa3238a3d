"""`LoaderSanitizer`: scores the data sets of a Trainer's training loaders once and rebuilds the loaders.

The `Sanitizer` callback and `SanitizedDataModule` are two ways to put it between data and training.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_poison._lightning.judged_data import JudgedData
from lightning_poison._lightning.loader_labels import check_same_labels, unlabeled_loaders
from lightning_poison._lightning.loaders import (
    check_indexable,
    equalize_lengths,
    lost_batches,
    map_loaders,
    reads_view,
    rebuild_loader,
    select_loaders,
)
from lightning_poison._lightning.presentation import Presentation, Shown, log_figures, write_page
from lightning_poison._lightning.records import (
    VERDICT_FILE,
    Edits,
    cache_directory,
    check_directory,
    decisions_from_state,
    decisions_to_state,
    find_edits,
    folder_name,
    is_tuning,
    log_values,
    report_directory,
    verdict_of,
    write_files,
)
from lightning_poison._lightning.runtime import open_runtime
from lightning_poison._lightning.sanitizer_settings import SanitizerSettings
from lightning_poison._lightning.stream_sanitizer import TO_FILTER, StreamSanitizer
from lightning_poison.checks import expected, printable
from lightning_poison.data.map_style_data import check_length, drawn_positions
from lightning_poison.data.reading import ReadSettings
from lightning_poison.data.source import Readable
from lightning_poison.data.views import SanitizedDataset
from lightning_poison.errors import DataChangedError
from lightning_poison.runtime import Runtime, all_ranks
from lightning_poison.sanitization.decide import decide
from lightning_poison.sanitization.pipeline import check_removal, known_verdict
from lightning_poison.sanitization.stored_decision import StoredDecision
from lightning_poison.sanitization.verdict import Verdict


@dataclass
class LoaderSanitizer:
    """Scores each training loader's data set once, and filters the loaders each time they are requested.

    Args:
        settings: The settings.
        presentation: Writes the page of a verdict and draws its figures. Default: neither.
        verdicts: Verdicts by the path of a loader in the collection, `""` for a single one.
    """

    settings: SanitizerSettings
    presentation: Presentation | None = None
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    _restored: dict[str, Verdict] = field(default_factory=dict)
    _stored: dict[str, StoredDecision] = field(default_factory=dict)
    _candidates: dict[str, Verdict] = field(default_factory=dict)
    _unedited: dict[str, Verdict] = field(default_factory=dict)
    _masks: dict[str, Tensor] = field(default_factory=dict)
    _reading: dict[str, ReadSettings] = field(default_factory=dict)
    _files: dict[str, str] = field(default_factory=dict)
    _unjudged: dict[str, Any] = field(default_factory=dict)
    _views: dict[str, SanitizedDataset] = field(default_factory=dict)
    _datasets: dict[str, Any] = field(default_factory=dict)
    _judged: dict[str, list[JudgedData]] = field(default_factory=dict)
    _edits: dict[str, Edits] = field(default_factory=dict)
    _unrecorded: set[str] = field(default_factory=set)
    _unwritable: Path | None = None

    def __post_init__(self) -> None:
        self.streams = StreamSanitizer(self.settings)

    def start_run(self) -> None:
        """Start a run. Verdicts of earlier runs are reused if the data are the same; those of a checkpoint must fit."""
        self._candidates |= self._unedited
        self._restored.clear()
        self._stored.clear()
        self.streams.start_run()
        self._clear()

    def filter(self, loaders: Any, trainer: Any = None) -> Any:
        """Return loaders that read the kept samples; the original loaders are left unchanged.

        Args:
            loaders: A training loader or a collection of them.
            trainer: The Trainer that computes and shows progress. Default: the local machine.

        Raises:
            UnsupportedDataError: If a loader cannot be filtered by index.
            DataChangedError: If a verdict restored from a checkpoint belongs to other data.
            OSError: If files cannot be written to the user's `dirpath`. Nothing has been scored then.
            ValueError: If `loaders` names no loader, it is unclear which loaders have labels, `score_dataset` does not
                match the data, or it or a manifest is used with several loaders.
            ManifestError: If the manifest cannot be read or does not match the data.
        """
        with open_runtime(trainer) as runtime:
            judged = self._select(loaders, runtime)
        if judged - self._masks.keys():
            self._check_directory(trainer)
        streams = self.streams.wrap(loaders, trainer)
        filtered = map_loaders(
            loaders,
            lambda path, each: self._filter_one(path, each, trainer) if path in judged else streams.get(path, each),
        )
        self.write_records(trainer)
        return filtered

    def _check_directory(self, trainer: Any) -> None:
        """Check before anything is scored that files can be written; see `check_directory`."""
        if is_tuning(trainer) and self.settings.dirpath is None:
            return
        directory = report_directory(trainer, self.settings.dirpath, self.settings.name)
        with open_runtime(trainer) as runtime, all_ranks(runtime):
            if directory is not None and runtime.rank == 0 and directory != self._unwritable:
                is_usable = check_directory(directory, self.settings.dirpath, self.settings.name)
                self._unwritable = None if is_usable else directory

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
            with open_runtime(trainer) as runtime, all_ranks(runtime):
                if runtime.rank == 0:
                    self._write(path, directory, runtime, trainer)
            log_values(trainer, self.settings.name, self.verdicts, path, flag_only=self.settings.action == "flag")
        self._unrecorded.clear()

    @property
    def available_verdicts(self) -> dict[str, Verdict]:
        """All verdicts; until they are confirmed, those of an earlier run."""
        return dict(self.verdicts or self._restored or self._candidates)

    def single_verdict(self) -> Verdict:
        """Return the verdict on the only training loader.

        Raises:
            RuntimeError: If there is no verdict yet, or there are several loaders.
        """
        if len(self.available_verdicts) != 1:
            raise RuntimeError(
                f"Expected the verdict on one training loader, but there are {len(self.available_verdicts)} verdicts.\n"
                "Verdicts are available once training has started; with several loaders use `verdicts`. They are not "
                "returned from spawned ranks, nor is a verdict stored in a checkpoint, which has the mask and the path "
                "of the file: use `Verdict.load` on the file that was written."
            )
        return next(iter(self.available_verdicts.values()))

    def state(self) -> dict[str, Any]:
        """Return the decisions as tensors, strings and numbers for a checkpoint."""
        made = {path: StoredDecision.of(each, self._files.get(path)) for path, each in self.verdicts.items()}
        return decisions_to_state(self._stored | made)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the decisions of a state. An empty state, which tuners restore, has no effect."""
        self._stored |= decisions_from_state(state)
        self._restored |= {path: each for path, stored in self._stored.items() if (each := verdict_of(stored))}
        for path, mask in self._masks.items():
            stored, made = self._stored.get(path), self.verdicts.get(path)
            if stored is None:
                continue
            if not torch.equal(mask, stored.keep) or (made is not None and made.fingerprint != stored.fingerprint):
                self._clear()
                return

    def _clear(self) -> None:
        decided = (self.verdicts, self._masks, self._views, self._datasets, self._judged, self._reading, self._unedited)
        for each in (*decided, self._files, self._edits, self._unrecorded, self._unjudged):
            each.clear()

    def _select(self, loaders: Any, runtime: Runtime) -> set[str]:
        """Return the paths of the loaders to judge: the chosen ones, or all that have labels."""
        with all_ranks(runtime):
            several, streams = len(select_loaders(loaders, None)) > 1, self.streams.among(loaders)
            found = select_loaders(loaders, self.settings.loaders)
            chosen = {path: loader for path, loader in found.items() if path not in streams}
            way = "\nOr leave this loader unchanged: name those to judge, as in `loaders=['labeled']`."
            for path, loader in chosen.items():
                check_indexable(loader, path, way=way if several else "", stream_way=TO_FILTER)
        if streams and not chosen:
            return set()
        if several and self.settings.loaders is None:
            chosen = self._labeled(chosen, runtime)
        self._check_single(len(chosen))
        own = sorted(chosen)
        if not runtime.all_true(runtime.broadcast(own) == own):
            raise DataChangedError(
                f"Expected the same training loaders on every rank, but got {printable(own)} on rank {runtime.rank} "
                "and others elsewhere.\nReturn the same collection of loaders from `train_dataloader` on all ranks."
            )
        return set(chosen)

    def _labeled(self, loaders: dict[str, DataLoader[Any]], runtime: Runtime) -> dict[str, DataLoader[Any]]:
        """Return the loaders whose samples have labels, and announce the others."""
        with all_ranks(runtime):
            options = {"known": self._datasets, "before": self._unjudged}
            unlabeled = unlabeled_loaders(loaders, self.settings.sample, **options)
        for path, loader in loaders.items():
            if path not in unlabeled:
                self._unjudged.pop(path, None)
            elif self._unjudged.get(path) is not loader.dataset:
                where = f"{self.settings.name}{printable(path)}"
                runtime.announce(f"{where}: not judged and trained on as it is, since {unlabeled[path]}")
                self._unjudged[path] = loader.dataset
        labeled = {path: loader for path, loader in loaders.items() if path not in self._unjudged}
        if not labeled:
            raise ValueError(
                "Expected a training loader with labels, but none has any: their samples consist of inputs alone, or "
                "have the label -1.\nName the part that is the label: `sample=SampleSpec(inputs=..., labels=...)`."
            )
        return labeled

    def _filter_one(self, path: str, loader: DataLoader[Any], trainer: Any) -> Any:
        with open_runtime(trainer, num_workers=loader.num_workers) as runtime:
            with all_ranks(runtime):
                is_judged = self._is_judged(path, loader)
            if not runtime.all_true(is_judged):
                self._decide(path, loader, runtime, trainer)
        self.write_records(trainer)
        if self.settings.action == "flag":
            return loader
        with open_runtime(trainer, num_workers=loader.num_workers) as runtime:
            with all_ranks(runtime):
                rebuilt = rebuild_loader(loader, self._view(path))
            rebuilt = equalize_lengths(rebuilt, runtime)
            self._warn_of_lost_batches(path, lost_batches(loader, rebuilt, runtime.world_size), runtime)
            return rebuilt

    def _is_judged(self, path: str, loader: DataLoader[Any]) -> bool:
        """Whether the mask is about the data of a loader, which may have changed since the last request."""
        if self._datasets.get(path) is not loader.dataset:
            return False
        drawn, seed = drawn_positions(loader), self.settings.decision.seed
        return all(each.is_unchanged(drawn, sample=self.settings.sample, seed=seed) for each in self._judged[path])

    def _view(self, path: str) -> SanitizedDataset:
        """Return the view of the kept samples of a loader, made on first use.

        Raises:
            NothingKeptError: If too few samples are kept.
        """
        if path not in self._views:
            if path in self.verdicts:
                check_removal(self.verdicts[path], self.settings.decision.max_removed)
            self._views[path] = SanitizedDataset(self._datasets[path], self._masks[path])
        return self._views[path]

    def _warn_of_lost_batches(self, path: str, lost: str, runtime: Runtime) -> None:
        if lost and runtime.rank == 0:
            where = f"the training loader {printable(path)}" if path else "the training loader"
            warnings.warn(
                f"In {where}, {lost}.\nUse a smaller `batch_size`, or `drop_last=False`.", UserWarning, stacklevel=2
            )

    def _decide(self, path: str, loader: DataLoader[Any], runtime: Runtime, trainer: Any) -> None:
        earlier = self._masks.get(path)
        try:
            made = self._score(path, loader, runtime, trainer)
        except Exception as error:
            if path:
                error.add_note(
                    f"In the training loader {printable(path)}. To leave it unchanged, name the loaders to judge: "
                    "`Sanitizer(scorer, loaders=[...])`."
                )
            raise
        before = self.verdicts.get(path)
        if isinstance(made, Verdict):
            self._record(path, made, before, runtime)
        elif earlier is None:
            runtime.announce(
                f"{self.settings.name}{printable(path)}: {int((~made.keep).sum()):,} of {len(made):,} samples are left "
                "out, as the checkpoint says"
            )
        self._masks[path] = made.keep
        self._datasets[path] = loader.dataset
        self._reading[path] = reading = ReadSettings.of(loader)
        self._views.pop(path, None)
        drawn, view = drawn_positions(loader), self.settings.score_dataset
        data = Readable(loader.dataset, drawn, reading)
        self._judged[path] = [JudgedData.of(data, made, inputs=view is None)]
        if view is not None:
            self._judged[path].append(JudgedData.of(Readable(view, drawn, reading), made))

    def _record(self, path: str, verdict: Verdict, earlier: Verdict | None, runtime: Runtime) -> None:
        if earlier is not None and earlier.fingerprint != verdict.fingerprint:
            runtime.announce(f"{self.settings.name}{printable(path)}: the data have changed and were judged again")
        if earlier is None or earlier.fingerprint != verdict.fingerprint:
            self._unrecorded.add(path)
            summary = verdict.summary(flag_only=self.settings.action == "flag")
            runtime.announce(f"{self.settings.name}{printable(path)}: {summary}")
        self.verdicts[path] = verdict

    def _score(self, path: str, loader: DataLoader[Any], runtime: Runtime, trainer: Any) -> Verdict | StoredDecision:
        """Return the verdict on the data of a loader, or only the mask of a restored decision whose verdict is lost."""
        settings, dataset, reading = self.settings, loader.dataset, ReadSettings.of(loader)
        scored = dataset if settings.score_dataset is None else settings.score_dataset
        with all_ranks(runtime):
            check_length(scored, "the data set")
            drawn = drawn_positions(loader)
            if settings.score_dataset is not None:
                check_same_labels(settings.score_dataset, dataset, drawn, sample=settings.sample, reading=reading)
            self._edits[path] = Edits()
            if settings.manifest is not None:
                self._edits[path] = find_edits(settings.manifest, Readable(scored, drawn, reading), settings.sample)
        stored = self._stored.get(path) if path not in self._masks else None
        made = decide(
            Readable(scored, drawn, reading),
            settings.scorer,
            settings=settings.decision,
            trusted=settings.trusted,
            sample=settings.sample,
            runtime=runtime,
            known=self._restored.get(path, stored) if stored is not None else known_verdict(settings.known),
            candidates=[each[path] for each in (self._unedited, self._candidates) if path in each],
            cache=cache_directory(trainer, settings.dirpath) if settings.cache else None,
        )
        made = runtime.broadcast(made)
        if isinstance(made, StoredDecision):
            return made
        self._unedited[path] = made
        return self._edits[path].applied_to(made)

    def _write(self, path: str, directory: Path | None, runtime: Runtime, trainer: Any) -> None:
        settings, folder = self.settings, folder_name(path, list(self.verdicts))
        scored = self._datasets[path] if settings.score_dataset is None else settings.score_dataset
        name = f"{settings.name}{printable(path)}"
        flag_only = settings.action == "flag"
        shown = Shown(self.verdicts[path], scored, self._reading[path], settings.sample, flag_only, name)
        presentation = self.presentation if settings.report else None
        if directory is not None:
            target = directory / folder
            runtime.announce(f"{name}: writing verdict and manifest to {target}")
            is_written = write_files(
                target,
                shown.verdict,
                scored,
                sample=settings.sample,
                edits=self._edits[path],
                flag_only=flag_only,
                announce=runtime.announce,
                reading=shown.reading,
                name=settings.name,
                warned=directory == self._unwritable,
            )
            if is_written:
                self._files[path] = str((target / VERDICT_FILE).absolute())
            if is_written and presentation is not None:
                write_page(presentation, target, shown)
        if presentation is not None:
            log_figures(presentation, trainer, Path(settings.name, folder).as_posix(), shown)

    def _check_single(self, count: int) -> None:
        used = {name: getattr(self.settings, name) for name in ("score_dataset", "manifest", "known")}
        for name, value in {**used, "groups": self.settings.decision.groups}.items():
            if value is not None and count != 1:
                hint = "It applies to a single data set. Score the others with `sanitize`."
                raise ValueError(expected(name, "used with one training loader", str(count), hint))

    def _check_one(self, path: str, loader: Any) -> Any:
        is_filtered = path in self._masks or path in self.streams.streams
        if not is_filtered and (path in self._unjudged or self.settings.loaders is not None):
            return loader
        view = self._views.get(path)
        if not (self.streams.reads_stream(path, loader) or (view is not None and reads_view(loader, view))):
            where = f" {printable(path)}" if path else ""
            dataset = type(getattr(loader, "dataset", loader)).__name__
            sampler = type(getattr(loader, "sampler", None)).__name__
            raise RuntimeError(
                f"Expected the training loader{where} to read the kept samples, but got one that reads {dataset} with "
                f"{sampler}.\nAnother callback or hook replaced the loader or its sampler after filtering. Place the "
                "Sanitizer after it, or wrap the data in a SanitizedDataModule."
            )
        return loader
