"""DataModules around another DataModule or around loaders: sanitized, or poisoned for an evaluation."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lightning_poison._lightning.datamodule_wrapper import DataModuleWrapper
from lightning_poison._lightning.loader_sanitizer import LoaderSanitizer
from lightning_poison._lightning.loaders import indexable_loaders, map_loaders, rebuild_loader
from lightning_poison._lightning.presentation import Presentation
from lightning_poison._lightning.ranks import close_link, open_link
from lightning_poison._lightning.runtime import open_runtime
from lightning_poison._lightning.sanitizer_settings import Action, SanitizerSettings
from lightning_poison._lightning.yaml_types import AnyData, AnyDataset, AnyPoison
from lightning_poison.attacks.crafting import check_interface, craft
from lightning_poison.attacks.poison import Poison
from lightning_poison.attacks.poisoned_dataset import PoisonedDataset
from lightning_poison.attacks.threat import Surrogate, Threat
from lightning_poison.checks import expected, printable
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.report.in_training import draw_figures, write_page
from lightning_poison.runtime import all_ranks
from lightning_poison.sanitization.stream import SanitizedStream
from lightning_poison.sanitization.stream_filter import StreamFilter
from lightning_poison.sanitization.verdict import Verdict
from lightning_poison.scorers.inspection import AnyScorer
from lightning_poison.scorers.recommended import Preset
from lightning_poison.statistics.contamination import NATURAL_ERROR_RATE


class SanitizedDataModule(DataModuleWrapper):
    """Scores every training sample when the training loaders are first requested, and serves those that are kept.

    Does the same as the `Sanitizer` callback through public hooks alone. Do not use both for one decision: each would
    score what the other has kept. Once training has started, `verdict` holds the decision.

    Args:
        data: A DataModule, a training DataLoader, or a collection of training loaders.
        scorer: How suspicious a sample is. Or a preset by its name, see `RecommendedScorer`: `"fast"`, `"balanced"` or
            `"thorough"`. Default: `"balanced"`.
        trusted: Known-clean samples. This and all other arguments are described in `Sanitizer`.
        false_positive_rate: Accepted share of clean samples removed, in (0, 1).
        action: `"remove"` serves the kept samples, `"flag"` only reports.
        sample: Paths of input and label in a sample.
        score_dataset: The training samples under an evaluation transform.
        loaders: Which of several training loaders are judged.
        folds: Number of folds for cross-fitting without trusted data.
        natural_error_rate: Share of wrong labels that does not count as evidence of poison.
        remove_without_evidence: Whether to remove suspicious samples without evidence.
        max_removed: Largest share of the data set that may be removed.
        groups: Group of each sample of the training set.
        known: Earlier verdict, or the path of its file, used instead of scoring.
        manifest: Manifest of an earlier run; what is kept or removed by hand in it is kept or removed.
        dirpath: Local directory of the written files, tried before anything is scored.
        cache: Whether finished and half-finished work is stored.
        report: Whether `report.html` is written, and figures are logged.
        stream_filter: Fitted and calibrated filter for loaders that read a stream. A drift is a warning of the process
            that reads.
        seed: The only source of randomness.
        name: Name of the folder and of the logged values.

    Raises:
        TypeError: If `data` or `scorer` has another type.
        ValueError: If an argument is out of range, or `scorer` is a control.

    Example:
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from lightning_poison.scorers.likelihood import LikelihoodScorer
        >>> loader = DataLoader(TensorDataset(torch.zeros(8, 2), torch.arange(8) % 2), batch_size=4)
        >>> module = SanitizedDataModule(loader, LikelihoodScorer())
        >>> module.verdicts
        {}
    """

    def __init__(
        self,
        data: AnyData,
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
        self.loader_sanitizer = LoaderSanitizer(settings, Presentation(write_page, draw_figures))
        super().__init__(data)

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
        """The filtered streams of this rank by the path of their loader, `""` for a single one."""
        return dict(self.loader_sanitizer.streams.streams)

    def setup(self, stage: str) -> None:
        """Start a run: verdicts of an earlier run are checked against the data before they are reused."""
        if stage == "fit":
            self.loader_sanitizer.start_run()
            open_link(self.trainer, self._link_name)
        if self._is_module:
            with open_runtime(self.trainer if stage == "fit" else None) as runtime, all_ranks(runtime):
                self.inner.setup(stage=stage)

    def teardown(self, stage: str) -> None:
        """Write records that a tuner has delayed."""
        if stage == "fit":
            self.loader_sanitizer.write_records(self.trainer)
            close_link(self.trainer, self._link_name)
        if self._is_module:
            self.inner.teardown(stage=stage)

    def on_exception(self, exception: BaseException) -> None:
        """Let the other ranks end as well if they still score."""
        close_link(self.trainer, self._link_name, exception)
        if self._is_module:
            self.inner.on_exception(exception)

    @property
    def _link_name(self) -> str:
        return f"module {id(self)}"

    def transform_loaders(self, loaders: Any) -> Any:
        """Return loaders that read the kept samples."""
        return self.loader_sanitizer.filter(loaders, self.trainer)

    def state_dict(self) -> dict[str, Any]:
        """Return the verdicts and the state of the inner DataModule."""
        return {**super().state_dict(), self._state_key: self.loader_sanitizer.state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore stored verdicts and the state of the inner DataModule."""
        super().load_state_dict(state_dict)
        self.loader_sanitizer.restore(state_dict.get(self._state_key, {}))

    @property
    def _state_key(self) -> str:
        return f"Sanitizer[{self.loader_sanitizer.settings.name}]"


class PoisonedDataModule(DataModuleWrapper):
    """Serves a poisoned training set to test a defense, and changes nothing else.

    The poison is drawn once, when the training loader is first requested, and is the same on every rank.

    Args:
        data: A DataModule, a training DataLoader, or a collection with one training loader.
        poison: An existing `Poison`, the path of a file that `Poison.save` wrote, or an attack that draws the poison.
        threat: Limits of the attack. Required with an attack.
        surrogates: Models on which the attack crafts. Default: none.
        holdout: Samples that are not trained on, for attacks that need targets. Default: none.
        sample: Paths of input and label in a sample. Default: detected.
        seed: Seeds the attack.

    Raises:
        TypeError: If `data` or `poison` has another type, or an attack has no threat.
        ValueError: If arguments of an attack are passed with an existing poison.
        FileNotFoundError: If the file does not exist.
        PluginError: If the attack has no name, or breaks the contract when it draws; see `craft`.

    Example:
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from lightning_poison.attacks.objectives import AvailabilityObjective
        >>> loader = DataLoader(TensorDataset(torch.zeros(8, 2), torch.arange(8) % 2), batch_size=4)
        >>> flip = Poison(torch.tensor([1]), torch.tensor([0]), AvailabilityObjective(), attack="label-flip")
        >>> PoisonedDataModule(loader, flip).train_dataloader().dataset.targets.tolist()
        [0, 0, 0, 1, 0, 1, 0, 1]
    """

    def __init__(
        self,
        data: AnyData,
        poison: AnyPoison,
        *,
        threat: Threat | None = None,
        surrogates: Sequence[Surrogate] = (),
        holdout: AnyDataset = None,
        sample: SampleSpec | None = None,
        seed: int = 0,
    ) -> None:
        source = Poison.load(poison) if isinstance(poison, str | os.PathLike) else poison
        self.poison: Poison | None = source if isinstance(source, Poison) else None
        """The ground truth for metrics; `None` until an attack has drawn it."""
        self._craft: partial[Poison] | None = None
        if isinstance(source, Poison):
            _refuse_attack_arguments(threat=threat, surrogates=surrogates or None, holdout=holdout)
        else:
            limits = _checked_threat(_checked_attack(source), threat)
            self._craft = partial(craft, source, threat=limits, surrogates=tuple(surrogates), holdout=holdout)
        self._sample = sample
        self._seed = seed
        self._view: PoisonedDataset | None = None
        super().__init__(data)

    def transform_loaders(self, loaders: Any) -> Any:
        """Return the loader with the poison in its data set.

        Raises:
            ValueError: If there is not exactly one training loader.
            UnsupportedDataError: If the loader cannot be changed by index.
        """
        found = indexable_loaders(loaders)
        if len(found) != 1:
            hint = "Poison is drawn for one data set: wrap that data set in a `PoisonedDataset`."
            raise ValueError(expected("data", "one training loader", str(len(found)), hint))
        view = self._poisoned_view(found[0].dataset)
        return map_loaders(loaders, lambda _, loader: rebuild_loader(loader, view))

    def _poisoned_view(self, dataset: Any) -> Any:
        """Return the same view as long as the inner data set is the same object."""
        if self.poison is None and self._craft is not None:
            with open_runtime(self.trainer) as runtime:
                with all_ranks(runtime):
                    drawn = self._craft(dataset, generator=torch.Generator().manual_seed(self._seed))
                self.poison = runtime.broadcast(drawn)
        if self.poison is not None and (self._view is None or self._view.dataset is not dataset):
            self._view = PoisonedDataset(dataset, self.poison, sample=self._sample)
        return self._view


def _checked_attack(attack: Any) -> Any:
    if isinstance(attack, type) or not hasattr(attack, "craft"):
        found = f"the class {attack.__name__}" if isinstance(attack, type) else type(attack).__name__
        hint = "To build an installed attack by name, use `get_attack(name)`."
        raise TypeError(expected("poison", "a Poison, the path of one, or an attack", found, hint))
    check_interface(attack)
    return attack


def _checked_threat(attack: Any, threat: Any) -> Threat:
    if not isinstance(threat, Threat):
        found = "none" if threat is None else type(threat).__name__
        hint = "Set the limits of the attacker: `threat=Threat(budget=...)`."
        raise TypeError(expected("threat", f"a Threat for the attack {printable(attack.name)}", found, hint))
    return threat


def _refuse_attack_arguments(**arguments: Any) -> None:
    for name, value in arguments.items():
        if value is not None:
            hint = "Pass an attack as `poison` to draw the poison here."
            raise ValueError(expected(name, "unset with an existing poison", type(value).__name__, hint))
