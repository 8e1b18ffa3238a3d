"""A Trainer, modules that record the samples of their steps, and numbered data of which some are mislabeled."""

from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import pytorch_lightning
import torch
from torch import nn
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, Dataset

from lightning_poison.callbacks.sanitizer import Sanitizer

FIRST_ID = 10_000


class Numbered(Dataset):
    """Samples `(input, label, id)` of three classes, some mislabeled."""

    def __init__(self, count=240, *, wrong=24, seed=0, container=None):
        generator = torch.Generator().manual_seed(seed)
        truth = torch.arange(count) % 3
        self.points = torch.randn(count, 4, generator=generator) + 8 * torch.eye(4)[truth]
        self.is_wrong = torch.zeros(count, dtype=torch.bool)
        self.is_wrong[torch.randperm(count, generator=generator)[:wrong]] = True
        self.targets = torch.where(self.is_wrong, (truth + 1) % 3, truth)
        self.container = container

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        sample = self.points[index], self.targets[index], torch.tensor(FIRST_ID + index)
        return sample if self.container is None else self.container(*sample)


class Recording:
    """Training steps that record the ids of their samples per epoch, for modules of either namespace."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.epochs = []
        self.validated = []

    def on_train_epoch_start(self):
        self.epochs.append([])

    def training_step(self, batch, batch_idx):
        self.epochs[-1].append(ids_in(batch))
        points = [leaf for leaf in tree_leaves(batch) if leaf.ndim == 2 and leaf.is_floating_point()]
        return sum(self.layer(each).square().mean() for each in points)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)

    @property
    def seen(self):
        """The positions of all samples in training steps."""
        return {each for epoch in self.epochs for batch in epoch for each in batch}


class Module(Recording, pl.LightningModule):
    pass


class ValidatedModule(Module):
    def validation_step(self, batch, batch_idx):
        self.validated.append(ids_in(batch))

    def test_step(self, batch, batch_idx):
        self.validated.append(ids_in(batch))


class OtherModule(Recording, pytorch_lightning.LightningModule):
    pass


def ids_in(batch):
    leaves = [leaf for leaf in tree_leaves(batch) if isinstance(leaf, torch.Tensor) and leaf.dtype == torch.int64]
    return [each - FIRST_ID for leaf in leaves for each in leaf.flatten().tolist() if each >= FIRST_ID]


@pytest.fixture(autouse=True)
def reproducible(single_thread):
    """Make all runs reproducible."""


@pytest.fixture
def world(centroid_scorer, tmp_path):
    """Factories for a run: `numbered`, `loader`, `module`, `sanitizer` and `trainer`."""

    def loader(dataset, **settings):
        return DataLoader(dataset, **{"batch_size": 16, "shuffle": True, **settings})

    def trainer(*callbacks, namespace=pl, **settings):
        off = ("enable_progress_bar", "enable_model_summary", "enable_checkpointing", "logger")
        defaults = {"max_epochs": 1, "accelerator": "cpu", "devices": 1, "log_every_n_steps": 1}
        arguments = {**defaults, **dict.fromkeys(off, False), **settings}
        return namespace.Trainer(callbacks=list(callbacks), default_root_dir=tmp_path, **arguments)

    def sanitizer(scorer=None, **settings):
        return Sanitizer(scorer or centroid_scorer(), **settings)

    return SimpleNamespace(
        numbered=Numbered,
        loader=loader,
        module=Module,
        validated_module=ValidatedModule,
        other_module=OtherModule,
        recording=Recording,
        sanitizer=sanitizer,
        trainer=trainer,
        first_id=FIRST_ID,
        path=tmp_path,
    )


@pytest.fixture
def assert_clean():
    """Return a check that exactly the kept samples were trained on."""

    def check(module, verdict, *, subset=False):
        kept = set(verdict.keep.nonzero().flatten().tolist())
        assert 0 < len(kept) < len(verdict)
        assert module.seen <= kept if subset else module.seen == kept
        assert module.seen

    return check
