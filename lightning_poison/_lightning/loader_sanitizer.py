"""`LoaderSanitizer`: scores the data sets of a Trainer's training loaders once and rebuilds the loaders.

The `Sanitizer` callback and `SanitizedDataModule` are two ways to put it between data and training.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from lightning_poison._lightning.judged_data import JudgedData
from lightning_poison._lightning.loader_decision import LoaderDecision
from lightning_poison._lightning.loader_labels import check_same_labels, unlabeled_loaders
from lightning_poison._lightning.loaders import (
    check_indexable,
    equalize_lengths,
    lost_batches,
    map_loaders,
    reads_view,
    rebuild_loader,
    replaced_loader,
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
from lightning_poison._lightning.scored_view import known_class_names, scored_view
from lightning_poison._lightning.stream_sanitizer import TO_FILTER, StreamSanitizer
from lightning_poison._lightning.validation_interval import check_validation_interval
from lightning_poison.checks import expected, printable
from lightning_poison.data.map_style_data import check_length, drawn_positions
from lightning_poison.data.reading import ReadSettings
from lightning_poison.data.source import Readable
from lightning_poison.errors import DataChangedError
from lightning_poison.runtime import Runtime, all_ranks
from lightning_poison.sanitization.decide import decide
from lightning_poison.sanitization.pipeline import known_verdict
from lightning_poison.sanitization.stored_decision import StoredDecision
from lightning_poison.sanitization.verdict import Verdict


@dataclass
class LoaderSanitizer:
    """Scores each training loader's data set once, and filters the loaders each time they are requested.

    Args:
        settings: The settings.
        presentation: Writes the page of a verdict and draws its figures. Default: neither.
    """

    settings: SanitizerSettings
    presentation: Presentation | None = None

    def __post_init__(self) -> None:
        self.streams = StreamSanitizer(self.settings)
        # Keys are paths of loaders in the collection, `""` for a single one.
        self._decisions: dict[str, LoaderDecision] = {}
        self._unlabeled: dict[str, Any] = {}  # data sets of loaders without labels, which are not judged
        self._stored: dict[str, StoredDecision] = {}  # from a checkpoint
        self._restored: dict[str, Verdict] = {}  # of the stored decisions whose files are still there
        self._candidates: dict[str, Verdict] = {}  # of earlier runs, reused if the data are the same
        self._unwritable: Path | None = None

    def start_run(self) -> None:
        """Start a run. Verdicts of earlier runs are reused if the data are the same; those of a checkpoint must fit."""
        decided = {path: each.unedited for path, each in self._decisions.items()}
        self._candidates |= {path: verdict for path, verdict in decided.items() if verdict is not None}
        self._restored.clear()
        self._stored.clear()
        self.streams.start_run()
        self._forget_decisions()

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
                match the data, it or a manifest is used with several loaders, or filtering leaves too few batches for
                `val_check_interval`.
            ManifestError: If the manifest cannot be read or does not match the data.
        """
        with open_runtime(trainer) as runtime:
            judged = self._select(loaders, runtime)
        if judged - self._decisions.keys():
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
        unrecorded = sorted(path for path, each in self._decisions.items() if not each.is_recorded)
        if not unrecorded or is_tuning(trainer):
            return
        directory = report_directory(trainer, self.settings.dirpath, self.settings.name)
        for path in unrecorded:
            with open_runtime(trainer) as runtime, all_ranks(runtime):
                if runtime.rank == 0:
                    self._write(path, directory, runtime, trainer)
            log_values(trainer, self.settings.name, self.verdicts, path, flag_only=self.settings.action == "flag")
        for path in unrecorded:
            self._decisions[path].is_recorded = True

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """The verdicts of this run by the path of their loader in the collection, `""` for a single one."""
        return {path: verdict for path, each in self._decisions.items() if (verdict := each.verdict) is not None}

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
        made = {path: StoredDecision.of(each, self._decisions[path].file) for path, each in self.verdicts.items()}
        return decisions_to_state(self._stored | made)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the decisions of a state. An empty state, which tuners restore, has no effect."""
        self._stored |= decisions_from_state(state)
        self._restored |= {path: each for path, stored in self._stored.items() if (each := verdict_of(stored))}
        common = self._decisions.keys() & self._stored.keys()
        if any(self._decisions[path].differs_from(self._stored[path]) for path in common):
            self._forget_decisions()

    def _forget_decisions(self) -> None:
        self._decisions.clear()
        self._unlabeled.clear()

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
            labeled = {path: each.dataset for path, each in self._decisions.items()}
            unlabeled = unlabeled_loaders(loaders, self.settings.sample, known=labeled, before=self._unlabeled)
        for path, loader in loaders.items():
            if path not in unlabeled:
                self._unlabeled.pop(path, None)
            elif self._unlabeled.get(path) is not loader.dataset:
                where = f"{self.settings.name}{printable(path)}"
                runtime.announce(f"{where}: not judged and trained on as it is, since {unlabeled[path]}")
                self._unlabeled[path] = loader.dataset
        labeled = {path: loader for path, loader in loaders.items() if path not in self._unlabeled}
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
                view = self._decisions[path].kept_samples(self.settings.decision.max_removed)
                rebuilt = rebuild_loader(loader, view)
            rebuilt = equalize_lengths(rebuilt, runtime)
            self._warn_of_lost_batches(path, lost_batches(loader, rebuilt, runtime.world_size), runtime)
            if not path:
                check_validation_interval(loader, rebuilt, runtime.world_size, trainer)
            return rebuilt

    def _is_judged(self, path: str, loader: DataLoader[Any]) -> bool:
        """Return whether there is a decision about the data of a loader as they are now."""
        decision, seed = self._decisions.get(path), self.settings.decision.seed
        return decision is not None and decision.is_about(loader, sample=self.settings.sample, seed=seed)

    def _warn_of_lost_batches(self, path: str, lost: str, runtime: Runtime) -> None:
        if lost and runtime.rank == 0:
            where = f"the training loader {printable(path)}" if path else "the training loader"
            warnings.warn(
                f"In {where}, {lost}.\nUse a smaller `batch_size`, or `drop_last=False`.", UserWarning, stacklevel=2
            )

    def _decide(self, path: str, loader: DataLoader[Any], runtime: Runtime, trainer: Any) -> None:
        """Decide about the data of a loader, and announce the decision unless it is the same as before."""
        earlier = self._decisions.get(path)
        try:
            decision = self._decision(path, loader, runtime, trainer)
        except Exception as error:
            if path:
                error.add_note(
                    f"In the training loader {printable(path)}. To leave it unchanged, name the loaders to judge: "
                    "`Sanitizer(scorer, loaders=[...])`."
                )
            raise
        self._decisions[path] = decision
        name, verdict = f"{self.settings.name}{printable(path)}", decision.verdict
        before = None if earlier is None else earlier.verdict
        if verdict is None:
            removed = f"{int((~decision.made.keep).sum()):,} of {len(decision.made):,} samples are left out"
            runtime.announce(f"{name}: {removed}, as the checkpoint says")
        elif before is None or before.fingerprint != verdict.fingerprint:
            decision.is_recorded = False
            if before is not None:
                runtime.announce(f"{name}: the data have changed and were judged again")
            names = known_class_names(self._scored(loader.dataset), loader.dataset, self.settings.sample)
            summary = verdict.summary(class_names=names, flag_only=self.settings.action == "flag")
            runtime.announce(f"{name}: {summary}")

    def _decision(self, path: str, loader: DataLoader[Any], runtime: Runtime, trainer: Any) -> LoaderDecision:
        """Return a decision about the data of a loader as they are now, with the files of an earlier one."""
        settings, reading, earlier = self.settings, ReadSettings.of(loader), self._decisions.get(path)
        with all_ranks(runtime):
            check_length(self._scored(loader.dataset), "the data set")
            trained = Readable(loader.dataset, drawn_positions(loader), reading)
            scored = replace(trained, dataset=self._scored(loader.dataset))
            if settings.score_dataset is not None:
                check_same_labels(
                    scored.dataset, trained.dataset, trained.positions, sample=settings.sample, reading=reading
                )
            edits = Edits() if settings.manifest is None else find_edits(settings.manifest, scored, settings.sample)
        made = runtime.broadcast(self._judge(path, scored, runtime, trainer))
        unedited = made if isinstance(made, Verdict) else None
        is_same = scored.dataset is trained.dataset
        judged = [JudgedData.of(trained, made, inputs=is_same)]
        if not is_same:
            judged.append(JudgedData.of(scored, made))
        return LoaderDecision(
            made=made if unedited is None else edits.applied_to(unedited),
            unedited=unedited,
            edits=edits,
            dataset=loader.dataset,
            reading=reading,
            judged=judged,
            file=None if earlier is None else earlier.file,
            is_recorded=earlier is None or earlier.is_recorded,
        )

    def _judge(self, path: str, data: Readable, runtime: Runtime, trainer: Any) -> Verdict | StoredDecision:
        """Return the verdict on data, or the decision of a checkpoint if its verdict is not available."""
        settings, earlier = self.settings, self._decisions.get(path)
        stored = self._stored.get(path) if earlier is None else None
        candidates = (None if earlier is None else earlier.unedited, self._candidates.get(path))
        return decide(
            data,
            settings.scorer,
            settings=settings.decision,
            trusted=settings.trusted,
            sample=settings.sample,
            runtime=runtime,
            known=known_verdict(settings.known) if stored is None else self._restored.get(path, stored),
            candidates=[each for each in candidates if each is not None],
            cache=cache_directory(trainer, settings.dirpath) if settings.cache else None,
        )

    def _scored(self, dataset: Any) -> Any:
        """Return the data set that is scored for a training set."""
        return scored_view(self.settings.score_dataset, dataset)

    def _write(self, path: str, directory: Path | None, runtime: Runtime, trainer: Any) -> None:
        """Write the files of a verdict, unless there is no directory, and log its figures."""
        settings, decision = self.settings, self._decisions[path]
        folder, name = folder_name(path, list(self.verdicts)), f"{settings.name}{printable(path)}"
        scored, flag_only = self._scored(decision.dataset), settings.action == "flag"
        names = known_class_names(scored, decision.dataset, settings.sample)
        shown = Shown(self.verdicts[path], scored, decision.reading, settings.sample, flag_only, name, names)
        presentation = self.presentation if settings.report else None
        if directory is not None:
            target = directory / folder
            runtime.announce(f"{name}: writing verdict and manifest to {target}")
            is_written = write_files(
                target,
                shown.verdict,
                shown.dataset,
                sample=shown.sample,
                edits=decision.edits,
                flag_only=shown.flag_only,
                class_names=names,
                announce=runtime.announce,
                reading=shown.reading,
                name=settings.name,
                warned=directory == self._unwritable,
            )
            if is_written:
                decision.file = str((target / VERDICT_FILE).absolute())
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
        decision = self._decisions.get(path)
        is_filtered = decision is not None or path in self.streams.streams
        if not is_filtered and (path in self._unlabeled or self.settings.loaders is not None):
            return loader
        view = None if decision is None else decision.view
        if not (self.streams.reads_stream(path, loader) or (view is not None and reads_view(loader, view))):
            raise RuntimeError(replaced_loader(path, loader))
        return loader
