"""DataModules around another DataModule or around loaders: sanitized, or poisoned for an evaluation."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from lightning_poison._lightning.datamodule_wrapper import WrappedDataModule
from lightning_poison._lightning.loader_sanitizer import Action, Gate, GateSettings
from lightning_poison._lightning.loaders import filterable, map_loaders, replace_dataset
from lightning_poison._lightning.runtime import opened_runtime
from lightning_poison._lightning.yaml_types import AnyData, AnyDataset, AnyPoison, AnyScorer
from lightning_poison.attacks.crafting import check_identity, craft
from lightning_poison.attacks.poison import Poison
from lightning_poison.attacks.poisoned_dataset import PoisonedDataset
from lightning_poison.attacks.threat import Surrogate, Threat
from lightning_poison.checks import expected, printable
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.runtime import agreed
from lightning_poison.sanitization.verdict import Verdict
from lightning_poison.statistics.contamination import NATURAL_ERROR_RATE


class SanitizedDataModule(WrappedDataModule):
    """Scores every training sample when the training loaders are first asked for, and serves what is kept.

    The same as the `Sanitizer` callback, through public hooks alone. Both may not be used for the same decision twice:
    each would judge what the other left.

    Args:
        data: a DataModule, a training DataLoader, or a collection of training loaders.
        scorer: how suspicious a sample is.
        trusted: as for `Sanitizer`, and so are all others.
        false_positive_rate: the share of clean samples that may be lost, in (0, 1).
        action: `"remove"` serves what is kept, `"flag"` only reports.
        sample: where input and label stand in a sample.
        score_dataset: the same samples under an evaluation transform.
        folds: how many folds to cross-fit over where nothing is trusted.
        natural_error_rate: the share of wrong labels that counts as no evidence of poison.
        remove_without_evidence: remove what looks wrong also where there is no evidence.
        max_removed: the share of the data set above which it is an error to remove.
        manifest: a manifest of an earlier run; samples that were kept by hand in it are kept.
        dirpath: where to write, in the place of the Trainer's log directory.
        seed: the only source of randomness.
        name: names the folder and the figures in the logs.

    Raises:
        TypeError: where `data` or `scorer` is something else.
        ValueError: where an argument is out of its range, or `scorer` is a control.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> from lightning_poison.scorers.likelihood import LikelihoodScorer
        >>> loader = DataLoader(TensorDataset(torch.zeros(8, 2), torch.arange(8) % 2), batch_size=4)
        >>> module = SanitizedDataModule(loader, LikelihoodScorer())
        >>> module.verdicts
        {}
    """

    def __init__(
        self,
        data: AnyData,
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
        super().__init__(data)

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

    def setup(self, stage: str) -> None:
        """Begin a run: decisions of an earlier one are checked against the data before they are used again."""
        if stage == "fit":
            self.gate.start()
        if self._is_module:
            self.inner.setup(stage=stage)

    def teardown(self, stage: str) -> None:
        """Tell the loggers what a tuner has kept from them."""
        if stage == "fit":
            self.gate.tell(self.trainer)
        if self._is_module:
            self.inner.teardown(stage=stage)

    def change(self, loaders: Any) -> Any:
        """Return the loaders without what is kept out."""
        return self.gate.filter(loaders, self.trainer)

    def state_dict(self) -> dict[str, Any]:
        """Return the decisions, and the inner DataModule's state."""
        return {**super().state_dict(), "gate": self.gate.state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over stored decisions, and hand the inner DataModule its state back."""
        super().load_state_dict(state_dict)
        self.gate.restore(state_dict.get("gate", {}))


class PoisonedDataModule(WrappedDataModule):
    """Serves a poisoned training set, to test a defense; nothing else is changed.

    The poison is drawn once, when the training loader is first asked for, and is the same on every rank.

    Args:
        data: a DataModule, a training DataLoader, or a collection with one training loader.
        poison: poison that was drawn before, the path of a file that `Poison.save` wrote, or an attack that draws it.
        threat: the limits that an attack is held to; needed with an attack.
        surrogates: models that an attack crafts on.
        holdout: samples that are not trained on, for attacks that need targets.
        sample: where input and label stand in a sample; found by itself where it is `None`.
        seed: seeds the attack.

    Raises:
        TypeError: where `data` or `poison` is something else, or an attack comes without a threat.
        ValueError: where what only an attack can use stands beside poison that was drawn.
        FileNotFoundError: where there is no such file.
        PluginError: where the attack lacks its name, or breaks the contract when it draws; see `craft`.

    Example:
        >>> from torch.utils.data import TensorDataset
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
        given = Poison.load(poison) if isinstance(poison, str | os.PathLike) else poison
        self.poison: Poison | None = given if isinstance(given, Poison) else None
        """The ground truth for metrics; `None` until an attack has drawn it."""
        self._craft: partial[Poison] | None = None
        if isinstance(given, Poison):
            _refuse_leftovers(threat=threat, surrogates=surrogates or None, holdout=holdout)
        else:
            limits = _checked_threat(_checked_attack(given), threat)
            self._craft = partial(craft, given, threat=limits, surrogates=tuple(surrogates), holdout=holdout)
        self._sample = sample
        self._seed = seed
        self._view: PoisonedDataset | None = None
        super().__init__(data)

    def change(self, loaders: Any) -> Any:
        """Return the loader with the poison in its data set.

        Raises:
            ValueError: where there is more than one training loader.
            UnsupportedDataError: where the loader cannot be changed by index.
        """
        found: list[DataLoader[Any]] = []
        map_loaders(loaders, lambda path, loader: found.append(filterable(loader, path)))
        if len(found) != 1:
            way = "Poison is drawn for one data set: wrap that one in a `PoisonedDataset` yourself."
            raise ValueError(expected("data", "one training loader", f"{len(found)} of them", way))
        view = self._poisoned(found[0].dataset)
        return map_loaders(loaders, lambda _, loader: replace_dataset(loader, view))

    def _poisoned(self, dataset: Any) -> Any:
        """Return one and the same view for as long as the inner data set is the same."""
        if self.poison is None and self._craft is not None:
            work = partial(self._craft, dataset, generator=torch.Generator().manual_seed(self._seed))
            with opened_runtime(self.trainer) as runtime:
                self.poison = runtime.broadcast(agreed(runtime, work))
        if self.poison is not None and (self._view is None or self._view.dataset is not dataset):
            self._view = PoisonedDataset(dataset, self.poison, sample=self._sample)
        return self._view


def _checked_attack(attack: Any) -> Any:
    if isinstance(attack, type) or not hasattr(attack, "craft"):
        came = f"the class {attack.__name__}" if isinstance(attack, type) else type(attack).__name__
        way = "`get_attack(name)` builds an installed attack by its name."
        raise TypeError(expected("poison", "a Poison, the path of one, or an attack", came, way))
    check_identity(attack)
    return attack


def _checked_threat(attack: Any, threat: Any) -> Threat:
    if not isinstance(threat, Threat):
        came = "none" if threat is None else type(threat).__name__
        way = "Say what the attacker may do: `threat=Threat(budget=...)`."
        raise TypeError(expected("threat", f"a Threat, which the attack {printable(attack.name)} needs", came, way))
    return threat


def _refuse_leftovers(**arguments: Any) -> None:
    for name, value in arguments.items():
        if value is not None:
            way = "Give an attack as `poison` to have it drawn here."
            raise ValueError(expected(name, "left out beside poison that was drawn before", type(value).__name__, way))
