"""Train a classifier with a Trainer, to compare attacks and defenses."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_poison.contexts import reproducible_kernels
from lightning_poison.evaluation.measurement import Predict
from lightning_poison.mixins import LGMMixin
from lightning_poison.randomness import isolated_rng
from lightning_poison.runtime import DEFAULT_THREADS

_IGNORED_WARNINGS = ("Found .* in eval mode", "The 'train_dataloader' does not have many workers")
"""Lightning's warnings about what is intended here: frozen modules, and loading in the main process."""


class Classifier(LightningModule):
    """Plain classifier with a cross-entropy loss.

    Args:
        network: Maps inputs to logits `(B, C)`. Parameters that require no gradient stay frozen.
        learning_rate: Learning rate of Adam. Default: 0.003.

    Example:
        >>> model = Classifier(nn.Linear(4, 3), learning_rate=0.01)
        >>> model(torch.zeros(5, 4)).shape, model.configure_optimizers().defaults["lr"]
        (torch.Size([5, 3]), 0.01)
    """

    def __init__(self, network: nn.Module, *, learning_rate: float = 3e-3) -> None:
        super().__init__()
        self.network = network
        self.learning_rate = learning_rate

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits `(B, C)`."""
        logits: Tensor = self.network(inputs)
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:  # noqa: ARG002 (Lightning's signature)
        """Return the cross-entropy of a batch."""
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam over the parameters that require gradients."""
        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return torch.optim.Adam(trainable, lr=self.learning_rate)


class LGMClassifier(LGMMixin, LightningModule):
    """Classifier with an LGM head, which provides log-likelihoods.

    The head has the loss of the paper: the attack's settings were chosen for features at that scale.

    Args:
        extractor: Maps inputs to features `(B, feature_size)`.
        feature_size: Length of a feature vector.
        num_classes: Number of classes.
        learning_rate: Learning rate of Adam. Default: 0.003.

    Example:
        >>> model = LGMClassifier(nn.Linear(4, 2), feature_size=2, num_classes=3)
        >>> model.log_likelihood((torch.zeros(5, 4), torch.tensor([0, 1, 2, 0, 1]))).shape
        torch.Size([5])
    """

    def __init__(
        self, extractor: nn.Module, feature_size: int, num_classes: int, *, learning_rate: float = 3e-3
    ) -> None:
        super().__init__()
        self.extractor = extractor
        self.learning_rate = learning_rate
        self.add_lgm_head("extractor", feature_size=feature_size, num_classes=num_classes, normalize=False)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam over all parameters."""
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)


def fit_quietly(
    module: LightningModule,
    dataset: Any,
    *,
    epochs: int,
    batch_size: int = 64,
    callbacks: Sequence[Callback] = (),
    seed: int = 0,
    device: str = "cpu",
    threads: int = DEFAULT_THREADS,
) -> LightningModule:
    """Train a module with a Trainer without output, logging or checkpoints.

    Args:
        module: Module to train, in place.
        dataset: Training set.
        epochs: Number of epochs.
        batch_size: Number of samples per step. Default: 64.
        callbacks: Callbacks of the Trainer. Default: none.
        seed: Seed of data order and dropout. The global random states are restored. Default: 0.
        device: `"cpu"` or `"cuda"`. Default: `"cpu"`.
        threads: Number of CPU threads. Default: half the cores, at most four.

    Returns:
        The same module in evaluation mode, on the CPU.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> labels = torch.arange(64) % 2
        >>> dataset = TensorDataset(F.one_hot(labels).float(), labels)
        >>> model = Classifier(nn.Linear(2, 2), learning_rate=0.1)
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore", FutureWarning)  # raised by Lightning
        ...     model = fit_quietly(model, dataset, epochs=5, batch_size=16)
        >>> model(torch.eye(2)).argmax(1)
        tensor([0, 1])
    """
    where = torch.device(device)
    with _quiet(), isolated_rng(seed, where), reproducible_kernels(where, threads):
        trainer = Trainer(
            accelerator=device,
            devices=1,
            max_epochs=epochs,
            callbacks=list(callbacks),
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
        )
        trainer.fit(module, DataLoader(dataset, batch_size=batch_size, shuffle=True))
    return module.cpu().eval()


def predict_with(module: nn.Module, *, batch_size: int = 512) -> Predict:
    """Return a function that predicts labels for a data set, as the argmax of the logits of a module.

    Args:
        module: Maps inputs to logits `(B, C)`.
        batch_size: Number of samples per batch. Default: 512.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> predict_with(nn.Identity())(TensorDataset(torch.tensor([[0.1, 0.9], [3.0, 2.0]]), torch.zeros(2)))
        tensor([1, 0])
    """

    def predict(dataset: Any) -> Tensor:
        with torch.no_grad():
            loader = DataLoader(dataset, batch_size=batch_size)
            return torch.cat([module(batch[0]).argmax(1) for batch in loader])

    return predict


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress Lightning's logs about devices and tips, and warnings about what is intended here."""
    names = ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_utilities")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            for message in _IGNORED_WARNINGS:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
