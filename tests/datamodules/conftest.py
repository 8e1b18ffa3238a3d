"""A Trainer, modules that record the samples of their steps, and DataModules over partly mislabeled data."""

from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import pytorch_lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lightning_poison.attacks.objectives import AvailabilityObjective
from lightning_poison.attacks.poison import Poison
from lightning_poison.datamodules import PoisonedDataModule, SanitizedDataModule


class Numbered(Dataset):
    """Samples `(input, label, number)` of three classes, the first `wrong` of them mislabeled."""

    def __init__(self, count=120, wrong=12, seed=0):
        generator = torch.Generator().manual_seed(seed)
        truth = torch.arange(count) % 3
        self.points = torch.randn(count, 4, generator=generator) + 8 * torch.eye(4)[truth]
        self.targets = torch.where(torch.arange(count) < wrong, (truth + 1) % 3, truth)
        self.wrong = wrong

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return self.points[index], int(self.targets[index]), float(index)


class Recording:
    """Training steps that record the numbers and labels of their samples."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.epochs = []
        self.labels = {}

    def on_train_epoch_start(self):
        self.epochs.append([])

    def training_step(self, batch, batch_idx):
        loss = 0.0
        for points, labels, numbers in parts_of(batch):
            self.epochs[-1] += numbers.int().tolist()
            self.labels |= dict(zip(numbers.int().tolist(), labels.tolist(), strict=True))
            loss = loss + nn.functional.cross_entropy(self.layer(points), labels)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def parts_of(batch):
    """Return the batches of the single loaders of a collection."""
    if isinstance(batch, dict):
        return [part for each in batch.values() for part in parts_of(each)]
    return [batch] if isinstance(batch[0], torch.Tensor) else [part for each in batch for part in parts_of(each)]


class Module(Recording, pl.LightningModule):
    pass


class OtherModule(Recording, pytorch_lightning.LightningModule):
    pass


class Plain:
    """Training loaders alone, over data created in `setup`."""

    def __init__(self, wrong=12, batch_size=16):
        super().__init__()
        self.wrong = wrong
        self.batch_size = batch_size
        self.calls = []

    def setup(self, stage):
        self.calls.append(stage)
        self.train_set = Numbered(wrong=self.wrong)

    def train_dataloader(self):
        return DataLoader(self.train_set, batch_size=self.batch_size, shuffle=True)


class PlainDataModule(Plain, pl.LightningDataModule):
    pass


class OtherPlainDataModule(Plain, pytorch_lightning.LightningDataModule):
    pass


def trainer(folder, *, namespace=pl, callbacks=(), **settings):
    quiet = dict.fromkeys(("enable_progress_bar", "enable_model_summary", "enable_checkpointing", "logger"), False)
    machine = {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "log_every_n_steps": 1}
    return namespace.Trainer(callbacks=list(callbacks), default_root_dir=folder, **{**quiet, **machine, **settings})


def flips(indices=(0, 1, 2), labels=(2, 2, 2), **settings):
    return Poison(torch.tensor(indices), torch.tensor(labels), AvailabilityObjective(), attack="flips", **settings)


@pytest.fixture
def kit(centroid_scorer, tmp_path):
    """Factories for a run; `kit.scorer.fits` has the fits of the sanitizer, three per decision."""
    scorer = centroid_scorer()
    return SimpleNamespace(
        numbered=Numbered,
        loader=lambda dataset=None, **settings: DataLoader(dataset or Numbered(), **{"batch_size": 16, **settings}),
        module=Module,
        other_module=OtherModule,
        plain=PlainDataModule,
        other_plain=OtherPlainDataModule,
        scorer=scorer,
        sanitized=lambda data, **settings: SanitizedDataModule(data, settings.pop("scorer", scorer), **settings),
        poisoned=PoisonedDataModule,
        flips=flips,
        trainer=lambda **settings: trainer(tmp_path, **settings),
        path=tmp_path,
    )


@pytest.fixture
def assert_clean():
    """Return a check that a module was trained on exactly the correctly labeled samples."""

    def check(module, sanitized):
        kept = set(sanitized.verdict.keep.nonzero().flatten().tolist())
        assert kept == set(range(12, 120)) == {number for epoch in module.epochs for number in epoch}

    return check


@pytest.fixture(autouse=True)
def no_process_group():
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
