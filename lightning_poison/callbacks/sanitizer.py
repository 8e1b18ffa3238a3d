"""`Sanitizer`: keeps suspicious samples out of an existing training."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_poison._lightning.data_source import DataSource
from lightning_poison._lightning.loader_sanitizer import LoaderSanitizer
from lightning_poison._lightning.namespaces import CallbackBase
from lightning_poison._lightning.presentation import Presentation
from lightning_poison._lightning.ranks import close_link, open_link
from lightning_poison._lightning.sanitizer_settings import Action, SanitizerSettings
from lightning_poison._lightning.yaml_types import AnyDataset
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.report.in_training import draw_figures, write_page
from lightning_poison.sanitization.stream import SanitizedStream
from lightning_poison.sanitization.stream_filter import StreamFilter
from lightning_poison.sanitization.verdict import Verdict
from lightning_poison.scorers.inspection import AnyScorer
from lightning_poison.scorers.recommended import Preset
from lightning_poison.statistics.contamination import NATURAL_ERROR_RATE

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class Sanitizer(CallbackBase):
    """Scores every training sample before the first optimizer step and trains on the samples that are kept.

    Works on the training loaders, regardless of their source; validation and test loaders are never changed. Samples
    are scored when the Trainer first requests its training loaders, in a separate pass that does not use the module,
    its weights or its random numbers. The decision is made once and is the same on every rank. It is written to
    `<log_dir>/sanitizer_reports/<name>/` (without a logger, to `<default_root_dir>/sanitizer_reports/<name>/`), and its
    mask is stored in checkpoints, so a resumed run does not score again. Once training has started, `verdict` holds
    it, or `verdicts` with several loaders.

    Args:
        scorer: How suspicious a sample is. Or a preset by its name, see `RecommendedScorer`: `"fast"`, `"balanced"` or
            `"thorough"`. Default: `"balanced"`.
        trusted: Known-clean samples: a map-style data set or a loader of one. Default: no trusted data.
        false_positive_rate: Accepted share of clean samples removed, in (0, 1).
        action: `"remove"` trains on the kept samples, `"flag"` only reports.
        sample: Paths of input and label in a sample. Default: detected.
        score_dataset: The training samples in the same order under an evaluation transform, scored in place of an
            augmented training set. If that is a `Subset`, as after `random_split`, the whole data set may be passed.
            Default: the training set.
        loaders: Which of several training loaders are judged: keys or positions in their collection, such as
            `["labeled"]`. The others are left unchanged. Default: all whose samples have labels.
        folds: Number of folds for cross-fitting without trusted data, at least 2.
        natural_error_rate: Share of wrong labels that does not count as evidence of poison, in [0, 1].
        remove_without_evidence: Whether to remove suspicious samples without trusted data and without evidence.
        max_removed: Largest share of the data set that may be removed, in (0, 1]; exceeding it is an error.
        groups: Group of each sample of the training set, such as its patient, its video or the original of which it is
            an augmentation: integers or texts, or a function of the index of a sample. See `sanitize`. Default: only
            copies are kept together.
        known: Earlier verdict, or the path of its file, `verdict.safetensors`. It is used instead of scoring, and must
            have been made for the same data and settings. Default: none.
        manifest: Manifest of an earlier run; what is kept or removed by hand in it is kept or removed. Default: none.
        dirpath: Local directory of the written files, tried before anything is scored. Default: see above. If the
            default cannot be written, a warning says so, and training goes on.
        cache: Whether finished and half-finished work is stored, so that an interrupted run, or another one with the
            same data and settings, does not score again: in `<default_root_dir>/sanitizer_cache/`, or in `cache/` below
            `dirpath`. Default: `True`.
        report: Whether `report.html` is written beside the manifest, and figures are logged with the loggers that take
            images: those of TensorBoard, W&B and MLflow. For this, up to 10,000 samples are read once more. A failure
            is a warning. Default: `True`.
        stream_filter: Fitted and calibrated filter for training loaders that read a stream, an `IterableDataset`, which
            is filtered as it is read. Of the other arguments, only `action`, `sample`, `max_removed`, `loaders`,
            `dirpath` and `name` apply to it. Default: streams are refused.
        seed: The only source of randomness; the Trainer's own random numbers are unaffected.
        name: Distinguishes several sanitizers of a Trainer in checkpoints, files and logs.

    Raises:
        TypeError: If `scorer` is not a scorer, or an argument is of another type.
        ValueError: If an argument is out of range, or `scorer` is a control.

    Example:
        >>> Sanitizer().state_key
        'Sanitizer[sanitizer]'
    """

    def __init__(
        self,
        scorer: AnyScorer | Preset = "balanced",
        *,
        trusted: AnyDataset = None,
        false_positive_rate: float = 0.01,
        action: Action = "remove",
        sample: SampleSpec | None = None,
        score_dataset: AnyDataset = None,
        folds: int = 3,
        natural_error_rate: float = NATURAL_ERROR_RATE,
        remove_without_evidence: bool = False,
        max_removed: float = 0.5,
        groups: Sequence[int | str | None] | Callable[[int], Any] | None = None,
        known: Verdict | str | Path | None = None,
        loaders: Sequence[str | int] | None = None,
        manifest: str | Path | None = None,
        dirpath: str | Path | None = None,
        cache: bool = True,
        report: bool = True,
        stream_filter: StreamFilter | None = None,
        seed: int = 0,
        name: str = "sanitizer",
    ) -> None:
        settings = SanitizerSettings.from_arguments(locals())
        super().__init__()
        self.loader_sanitizer = LoaderSanitizer(settings, Presentation(write_page, draw_figures))
        self.loader_sanitizer.streams.warns = False
        self.name = name

    @property
    def state_key(self) -> str:
        """The key of the callback's state in checkpoints, also for subclasses."""
        return f"Sanitizer[{self.name}]"

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """The verdicts by the path of the training loader in its collection, `""` for a single one."""
        return self.loader_sanitizer.available_verdicts

    @property
    def verdict(self) -> Verdict:
        """The verdict on the only training loader.

        Raises:
            RuntimeError: If there is no verdict yet, or there are several loaders.
        """
        return self.loader_sanitizer.single_verdict()

    @property
    def streams(self) -> dict[str, SanitizedStream]:
        """The filtered streams of this rank by the path of their loader, `""` for a single one.

        `progress()` of a stream returns what has been judged and removed so far, and whether the share drifts.
        """
        return dict(self.loader_sanitizer.streams.streams)

    def setup(self, trainer: "Trainer", pl_module: "LightningModule", stage: str) -> None:
        """Add the filter to the Trainer's data source; samples are scored later."""
        if stage == "fit":
            self.loader_sanitizer.start_run()
            open_link(trainer, self.state_key)
            DataSource.add(trainer, self.state_key, partial(self.loader_sanitizer.filter, trainer=trainer))

    def on_train_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Check that every training loader reads the kept samples, and write records that a tuner has delayed.

        Raises:
            RuntimeError: If a loader does not.
        """
        self.loader_sanitizer.check(trainer.train_dataloader)
        self.loader_sanitizer.write_records(trainer)

    def on_train_batch_end(self, trainer: "Trainer", *args: Any, **kwargs: Any) -> None:
        """Log what has been removed from streams, and warn if its share drifts."""
        self.loader_sanitizer.streams.follow(trainer)

    def on_train_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Announce what has been removed from streams."""
        self.loader_sanitizer.streams.finish(trainer)

    def teardown(self, trainer: "Trainer", pl_module: "LightningModule", stage: str) -> None:
        """Restore the Trainer's data source."""
        DataSource.remove(trainer, self.state_key)
        close_link(trainer, self.state_key)

    def on_exception(self, trainer: "Trainer", pl_module: "LightningModule", exception: BaseException) -> None:
        """Restore the Trainer's data source, and let the other ranks end as well if they still score.

        Lightning does not call `teardown` after an exception.
        """
        DataSource.remove(trainer, self.state_key)
        close_link(trainer, self.state_key, exception)

    def state_dict(self) -> dict[str, Any]:
        """Return the verdicts for a checkpoint."""
        return self.loader_sanitizer.state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore stored verdicts, which replace any made in the meantime."""
        self.loader_sanitizer.restore(state_dict)

    def on_load_checkpoint(self, trainer: "Trainer", pl_module: "LightningModule", checkpoint: dict[str, Any]) -> None:
        """Request the loaders again if the strategy restores checkpoints after they were built."""
        if self.state_key in checkpoint.get("callbacks", {}) and self.loader_sanitizer.verdicts:
            DataSource.request_reload(trainer)
