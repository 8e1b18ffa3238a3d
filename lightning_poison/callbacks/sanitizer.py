"""`Sanitizer`: keeps suspicious samples out of a training that is there already."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_poison._lightning.data_source import DataSource
from lightning_poison._lightning.loader_sanitizer import Action, Gate, GateSettings
from lightning_poison._lightning.namespaces import CallbackBase
from lightning_poison._lightning.yaml_types import AnyDataset, AnyScorer
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.sanitization.verdict import Verdict
from lightning_poison.statistics.contamination import NATURAL_ERROR_RATE

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class Sanitizer(CallbackBase):
    """Scores every training sample before the first optimizer step and trains on what is kept.

    It works on the training loaders, wherever they come from; validation and test loaders are never touched. Samples
    are scored when the Trainer first asks for its training loaders, in a pass of its own: the module's forward, its
    random numbers and its weights have no part in it. The decision is made once, is the same on every rank, is written
    to `<log_dir>/lightning_poison/<name>/`, and is stored in checkpoints: a resumed run does not score again.

    Args:
        scorer: how suspicious a sample is.
        trusted: a map-style data set, or a loader of one, whose samples are believed; nothing is trusted where it is
            `None`, and the data are judged by themselves.
        false_positive_rate: the share of clean samples that may be lost, in (0, 1).
        action: `"remove"` trains on what is kept, `"flag"` only reports.
        sample: where input and label stand in a sample; found by itself where it is `None`.
        score_dataset: the same samples in the same order under an evaluation transform, where the training set
            augments; they are scored in the place of the training samples.
        folds: how many folds to cross-fit over where nothing is trusted, at least 2.
        natural_error_rate: the share of wrong labels that counts as no evidence of poison, in [0, 1].
        remove_without_evidence: remove what looks wrong also where nothing is trusted and there is no evidence.
        max_removed: the share of the data set, in (0, 1], above which it is an error to remove.
        manifest: a manifest of an earlier run; the samples that were kept by hand in it are kept.
        dirpath: where to write, in the place of the Trainer's log directory.
        seed: the only source of randomness; the Trainer's own random numbers are the same with and without it.
        name: tells several sanitizers of one Trainer apart, in checkpoints, files and logs.

    Raises:
        TypeError: where `scorer` is no scorer.
        ValueError: where an argument is out of its range, or `scorer` is a control.

    Example:
        >>> from lightning_poison.scorers.likelihood import LikelihoodScorer
        >>> callback = Sanitizer(LikelihoodScorer(), false_positive_rate=0.005)
        >>> callback.state_key
        'Sanitizer[sanitizer]'
    """

    def __init__(
        self,
        scorer: AnyScorer,
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
        manifest: str | Path | None = None,
        dirpath: str | Path | None = None,
        seed: int = 0,
        name: str = "sanitizer",
    ) -> None:
        super().__init__()
        self.gate = Gate(
            GateSettings(
                scorer=scorer,
                trusted=trusted,
                false_positive_rate=false_positive_rate,
                action=action,
                sample=sample,
                score_dataset=score_dataset,
                folds=folds,
                natural_error_rate=natural_error_rate,
                remove_without_evidence=remove_without_evidence,
                max_removed=max_removed,
                manifest=manifest,
                dirpath=dirpath,
                seed=seed,
                name=name,
            )
        )
        self.name = name

    @property
    def state_key(self) -> str:
        """The key of its state in a checkpoint; it does not change with subclasses."""
        return f"Sanitizer[{self.name}]"

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """The verdicts, by the path of the training loader in its collection, `""` for a bare one."""
        return self.gate.decided

    @property
    def verdict(self) -> Verdict:
        """The verdict about the one training loader.

        Raises:
            RuntimeError: before there is one, or where there are several loaders.
        """
        return self.gate.only_verdict()

    def setup(self, trainer: "Trainer", pl_module: "LightningModule", stage: str) -> None:
        """Put the gate behind the Trainer's data source; nothing is scored yet."""
        if stage == "fit":
            self.gate.start()
            DataSource.add(trainer, self.state_key, partial(self.gate.filter, trainer=trainer))

    def on_train_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Check that every training loader reads what is kept, and tell what a tuner has kept from the loggers.

        Raises:
            RuntimeError: where one does not.
        """
        self.gate.check(trainer.train_dataloader)
        self.gate.tell(trainer)

    def teardown(self, trainer: "Trainer", pl_module: "LightningModule", stage: str) -> None:
        """Put the Trainer's own data source back."""
        DataSource.remove(trainer, self.state_key)

    def on_exception(self, trainer: "Trainer", pl_module: "LightningModule", exception: BaseException) -> None:
        """Put the Trainer's own data source back; Lightning calls no `teardown` after an exception."""
        DataSource.remove(trainer, self.state_key)

    def state_dict(self) -> dict[str, Any]:
        """Return the decisions, as a checkpoint can hold them."""
        return self.gate.state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over stored decisions; they win over any that were made meanwhile."""
        self.gate.restore(state_dict)

    def on_load_checkpoint(self, trainer: "Trainer", pl_module: "LightningModule", checkpoint: dict[str, Any]) -> None:
        """Have the loaders asked for again where a strategy restores so late that they were built already."""
        if self.state_key in checkpoint.get("callbacks", {}) and self.gate.verdicts:
            DataSource.ask_again(trainer)
