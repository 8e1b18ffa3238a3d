"""`AttackMonitor`: the success of an attack beside the clean accuracy, in any training."""

import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_poison._lightning.namespaces import CallbackBase
from lightning_poison.attacks.objectives import Objective
from lightning_poison.attacks.poison import Poison
from lightning_poison.checks import describe, expected, instance, positive_int, printable
from lightning_poison.contexts import evaluating
from lightning_poison.data.sample_spec import SampleSpec, check_sample_spec
from lightning_poison.entry_points import call_plugin
from lightning_poison.evaluation.metrics import AttackSuccessRate
from lightning_poison.randomness import isolated_rng

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

Logits = Callable[[Any, Any], Tensor]
"""Maps the module and a batch of inputs to logits `(B, C)` or predicted labels `(B,)`."""


class AttackMonitor(CallbackBase):
    """Logs how often an attack succeeds, and the accuracy on clean samples, after each epoch.

        trainer = L.Trainer(callbacks=[AttackMonitor(poison, test)])

    It logs `attack_success/NAME` and `clean_accuracy/NAME`, in [0, 1], to all loggers of the Trainer, so that
    `ModelCheckpoint` and `EarlyStopping` can monitor them. `trainer.validate` and `trainer.test` log them too. The
    module runs in evaluation mode, without gradients, at the precision of the Trainer. Training draws the same random
    numbers as without the callback. With several ranks, each one evaluates all samples.

    Args:
        poison: The poison, the path of a saved one, or its objective.
        test: Clean test set, map-style, from which the objective builds its evaluation set.
        predict: Maps the module and a batch of inputs to logits `(B, C)` or labels `(B,)`. Default: the module's
            `forward`.
        sample: Paths of inputs and labels in a sample of `test`. Default: detected.
        every_n_epochs: Number of epochs between two evaluations. Default: 1.
        batch_size: Number of samples per batch. Default: 256.
        name: Name in the logs. Default: that of the attack, or of the class of the objective.

    Raises:
        FileNotFoundError: If there is no file of this name.
        TypeError: If `poison` is none of these.
        ValueError: If the attack has no target in `test`, a number is not positive, or during the run, if the module
            does not return logits or labels.
        PluginError: If the objective fails, chained to its error.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> from lightning_poison.attacks.objectives import ProtectedClassObjective
        >>> test = TensorDataset(torch.eye(3), torch.arange(3))
        >>> monitor = AttackMonitor(ProtectedClassObjective(1, target_class=2), test)
        >>> monitor.evaluate(torch.nn.Identity())
        {'attack_success/ProtectedClassObjective': 0.0, 'clean_accuracy/ProtectedClassObjective': 1.0}
    """

    def __init__(
        self,
        poison: Poison | Objective | str | os.PathLike[str],
        test: Any,
        *,
        predict: Logits | None = None,
        sample: SampleSpec | None = None,
        every_n_epochs: int = 1,
        batch_size: int = 256,
        name: str | None = None,
    ) -> None:
        if isinstance(poison, str | os.PathLike):
            poison = Poison.load(Path(poison))
        if not isinstance(poison, Poison | Objective):
            raise TypeError(expected("poison", "poison, its path, or its objective", describe(poison)))
        self.objective: Objective = poison.objective if isinstance(poison, Poison) else poison
        default = poison.attack if isinstance(poison, Poison) else type(poison).__name__
        self.name = printable(default) if name is None else printable(instance("name", name, str))
        self.test = test
        self.predict: Logits = (lambda module, inputs: module(inputs)) if predict is None else predict
        self.sample = check_sample_spec(sample)
        self.every_n_epochs = positive_int("every_n_epochs", every_n_epochs)
        self.batch_size = positive_int("batch_size", batch_size)
        self._items: Any = call_plugin(lambda: self.objective.evaluation_set(test), self._what)
        if not call_plugin(lambda: len(self._items), self._what):
            raise ValueError(
                expected("test", "samples that the attack targets", "none of them", "Pass a larger test set.")
            )

    @property
    def _what(self) -> str:
        return f"the objective of the attack `{self.name}`"

    @property
    def state_key(self) -> str:
        """The key of the callback's state, by name, so that a Trainer can have several."""
        return f"AttackMonitor[{self.name}]"

    def on_train_epoch_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Evaluate and log."""
        if (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._log(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Evaluate and log in `trainer.validate`."""
        if trainer.state.fn == "validate":
            self._log(trainer, pl_module)

    def on_test_epoch_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Evaluate and log in `trainer.test`."""
        self._log(trainer, pl_module)

    def evaluate(self, module: Any) -> dict[str, float]:
        """Return the success of the attack and the clean accuracy of a module, in [0, 1], by the names in the logs.

        Args:
            module: A module of the kind that `predict` expects. Inputs are moved to the device of its parameters.
        """
        device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
        success, right, total = AttackSuccessRate(self.objective, sync_on_compute=False), 0, 0
        with isolated_rng(0, device), torch.no_grad(), evaluating(module):
            for inputs, true, wanted in self._batches(self._items):
                success_of = functools.partial(success.update, self._labels(module, inputs, len(true), device))
                call_plugin(functools.partial(success_of, true, wanted), self._what)
            spec = self.sample
            for batch in self._batches(self.test):
                spec = spec or SampleSpec.detect(batch, batched=True)
                labels = torch.as_tensor(spec.labels_in(batch)).flatten()
                right += int((self._labels(module, spec.inputs_in(batch), len(labels), device) == labels).sum())
                total += len(labels)
        return {
            f"attack_success/{self.name}": float(success.compute()),
            f"clean_accuracy/{self.name}": right / max(1, total),
        }

    def _log(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        with trainer.precision_plugin.forward_context():
            values = self.evaluate(pl_module)
        several = trainer.world_size > 1
        pl_module.log_dict(values, on_step=False, on_epoch=True, batch_size=1, sync_dist=several)

    def _batches(self, items: Any) -> Iterator[Any]:
        return iter(DataLoader(items, batch_size=self.batch_size, generator=torch.Generator()))

    def _labels(self, module: Any, inputs: Any, count: int, device: torch.device) -> Tensor:
        """Return the predicted labels of a batch, int64 `(B,)`, on the CPU."""
        output = self.predict(module, apply_to_collection(inputs, Tensor, torch.Tensor.to, device))
        if isinstance(output, Tensor) and len(output) == count:
            if output.ndim == 2 and output.is_floating_point():
                return output.argmax(1).cpu()
            if output.ndim == 1 and not output.is_floating_point():
                return output.long().cpu()
        way = "Pass `predict=`, a function of the module and the inputs."
        what = f"logits ({count}, C) or labels ({count},)"
        raise ValueError(expected("the output of the module", what, describe(output), way))
