"""`StreamSanitizer`: puts a filter before the streams that training loaders read, and follows what it removes."""

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from lightning_poison._lightning.loaders import rebuild_stream_loader, select_loaders
from lightning_poison._lightning.records import check_directory, folder_name, report_directory
from lightning_poison._lightning.runtime import open_runtime
from lightning_poison._lightning.sanitizer_settings import SanitizerSettings
from lightning_poison.checks import printable
from lightning_poison.runtime import all_ranks
from lightning_poison.sanitization.stream import SanitizedStream
from lightning_poison.sanitization.stream_filter import WAY_TO_FILTER
from lightning_poison.sanitization.stream_progress import StreamProgress, drift_message

TO_FILTER = f"Filter it as it is read, by a scorer that was fitted and calibrated on known-clean data:\n{WAY_TO_FILTER}"
"""The way out where a stream is refused."""


@dataclass
class StreamSanitizer:
    """Wraps the streams of training loaders, once each, and logs their counters.

    Args:
        settings: The settings, with a filter.
        warns: Whether the processes that read warn of a drift. Otherwise `follow` warns, in the main process.
        streams: Filtered streams by the path of their loader in the collection.
    """

    settings: SanitizerSettings
    warns: bool = True
    streams: dict[str, SanitizedStream] = field(default_factory=dict)
    _alarmed: set[str] = field(default_factory=set)

    def start_run(self) -> None:
        """Start a run, with counters of its own."""
        self.streams.clear()
        self._alarmed.clear()

    def among(self, loaders: Any) -> dict[str, DataLoader[Any]]:
        """Return the loaders of streams to filter by path, none without a filter.

        Args:
            loaders: A training loader or a collection of them.
        """
        if self.settings.stream_filter is None:
            return {}
        chosen = select_loaders(loaders, self.settings.loaders)
        return {path: loader for path, loader in chosen.items() if is_stream(loader)}

    def wrap(self, loaders: Any, trainer: Any) -> dict[str, DataLoader[Any]]:
        """Return loaders that read filtered streams, by path; the original loaders are left unchanged.

        Args:
            loaders: A training loader or a collection of them.
            trainer: The Trainer, or `None`.

        Raises:
            OSError: If files cannot be written to the user's `dirpath`.
            UnsupportedDataError: If a loader cannot be rebuilt around another data set.
        """
        found = self.among(loaders)
        if not found:
            return {}
        directory = self._directory(trainer)
        with open_runtime(trainer) as runtime:
            with all_ranks(runtime):
                for path, loader in found.items():
                    known = self.streams.get(path)
                    if known is None or known.dataset is not loader.dataset:
                        folder = None if directory is None else directory / folder_name(path, list(found))
                        self.streams[path] = self._stream(loader.dataset, folder, (runtime.rank, runtime.world_size))
                rebuilt = {path: rebuild_stream_loader(loader, self.streams[path]) for path, loader in found.items()}
            run = runtime.broadcast(next(stream.run for stream in self.streams.values()))
            for stream in self.streams.values():
                stream.run = run
        return rebuilt

    def _stream(self, dataset: Any, folder: Path | None, rank: tuple[int, int]) -> SanitizedStream:
        settings = self.settings
        assert settings.stream_filter is not None  # noqa: S101 (there are no streams without one)
        return SanitizedStream(
            dataset,
            settings.stream_filter,
            sample=settings.sample,
            remove=settings.action == "remove",
            directory=folder,
            max_removed=settings.decision.max_removed,
            rank=rank,
            warn=self.warns,
        )

    def _directory(self, trainer: Any) -> Path | None:
        directory = report_directory(trainer, self.settings.dirpath, self.settings.name)
        if directory is None:
            return None
        with open_runtime(trainer) as runtime:
            with all_ranks(runtime):
                usable = runtime.rank != 0 or check_directory(directory, self.settings.dirpath, self.settings.name)
            return directory if runtime.all_true(usable) else None

    def follow(self, trainer: Any) -> None:
        """Log the counters of this rank's streams, every `log_every_n_steps` steps, and warn of a new drift."""
        if not self.streams or (trainer.global_step % max(1, trainer.log_every_n_steps) and not trainer.is_last_batch):
            return
        for path, stream in self.streams.items():
            progress = stream.progress()
            prefix = Path(self.settings.name, folder_name(path, list(self.streams))).as_posix()
            self._warn(path, stream, progress)
            values = {
                f"{prefix}/stream_judged": float(progress.judged),
                f"{prefix}/stream_removed_fraction": progress.share,
                f"{prefix}/stream_removed_low": progress.low,
                f"{prefix}/stream_removed_high": progress.high,
                f"{prefix}/stream_drift": float(bool(progress.drifts)),
            }
            for logger in trainer.loggers:
                logger.log_metrics(values, step=trainer.global_step)

    def finish(self, trainer: Any) -> None:
        """Warn of a drift in the last steps, and announce what has been removed, in total."""
        with open_runtime(trainer) as runtime:
            for path, stream in self.streams.items():
                progress = stream.progress()
                self._warn(path, stream, progress)
                where = "" if stream.directory is None else f"\nwritten to {printable(stream.directory, limit=500)}"
                of_rank = " on rank 0" if runtime.world_size > 1 else ""
                runtime.announce(f"{self.settings.name}{printable(path)}: the stream{of_rank}: {progress}{where}")

    def _warn(self, path: str, stream: SanitizedStream, progress: StreamProgress) -> None:
        if not self.warns and progress.drifts and path not in self._alarmed:
            place = f"the training loader {printable(path)}, stream " if path else "the stream "
            name = f"{place}{printable(type(stream.dataset).__name__)}"
            warnings.warn(drift_message(name, list(progress.drifts)), stacklevel=3)
        (self._alarmed.add if progress.drifts else self._alarmed.discard)(path)

    def reads_stream(self, path: str, loader: Any) -> bool:
        """Return whether a loader reads the filtered stream of its path."""
        return path in self.streams and getattr(loader, "dataset", None) is self.streams[path]


def is_stream(loader: Any) -> bool:
    """Return whether a training loader is a torch DataLoader that reads an iterable data set.

    Example:
        >>> class Stream(IterableDataset):
        ...     def __iter__(self):
        ...         return iter([])
        >>> is_stream(DataLoader(Stream())), is_stream(DataLoader([1, 2])), is_stream([1, 2])
        (True, False, False)
    """
    return isinstance(loader, DataLoader) and isinstance(loader.dataset, IterableDataset)
