"""A run on several ranks, to be started as a program of its own: `distributed_run.py DIRECTORY JSON`.

Every rank writes what it found to `DIRECTORY/<rank>.pt`.
"""

import json
import sys
import time
import warnings
from datetime import timedelta
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy
from sklearn.datasets import load_digits
from torch import nn
from torch.distributed import distributed_c10d
from torch.utils.data import DataLoader, Dataset, Sampler

from lightning_poison import LikelihoodScorer, Sanitizer
from lightning_poison.adversarial import FGSM
from lightning_poison.models.fitting import FitSettings
from lightning_poison.scorers import FeatureModel, RobustFeatureScorer


class Digits(Dataset):
    """Handwritten digits `(image, label, id)`, an eighth of them under a wrong label."""

    def __init__(self, first, count, *, wrong=True, seed=0):
        loaded = load_digits()
        self.images = torch.tensor(loaded.images[first : first + count] / 16, dtype=torch.float32)[:, None]
        truth = torch.tensor(loaded.target[first : first + count])
        self.is_wrong = torch.zeros(count, dtype=torch.bool)
        if wrong:
            self.is_wrong[torch.randperm(count, generator=torch.Generator().manual_seed(seed))[: count // 8]] = True
        self.targets = torch.where(self.is_wrong, (truth + 1) % 10, truth)

    @classmethod
    def backdoored(cls, count, poisoned):
        """Give some of the digits a white corner and the label 0, and no other one a wrong label."""
        data = cls(0, count, wrong=False)
        chosen = (data.targets != 0).nonzero().flatten()[:poisoned]
        data.images[chosen, :, 6:, 6:] = 1
        data.targets[chosen] = 0
        return data

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return self.images[index], self.targets[index], index


class Classifier(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        self.batches = []

    def training_step(self, batch, batch_idx):
        self.batches.append(batch[2].tolist())
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Rows(Sampler):
    """A batch sampler of somebody's own that shares batches of two out itself."""

    def __init__(self, length, rank, world):
        self.length, self.rank, self.world = length - length % (2 * world), rank, world

    def __len__(self):
        return self.length // (2 * self.world)

    def __iter__(self):
        return iter([[start, start + 1] for start in range(2 * self.rank, self.length, 2 * self.world)])


class Scorer(LikelihoodScorer):
    """The real one, which can be told to fail, or to take its time, on one rank only."""

    def fit(self, trusted, *, runtime=None, generator=None):
        if OPTIONS.get("fails") == rank():
            raise OSError("this rank is broken")
        if "sleeps" in OPTIONS:
            distributed_c10d._set_pg_timeout(timedelta(seconds=4), torch.distributed.group.WORLD)
            time.sleep(12 * (OPTIONS["sleeps"] == rank()))
        return super().fit(trusted, runtime=runtime, generator=generator)


class Result(pl.Callback):
    def __init__(self, sanitizers, directory):
        self.sanitizers = sanitizers
        self.directory = directory

    def on_train_end(self, trainer, pl_module):
        found = {
            "verdicts": [each.verdict.tensors() for each in self.sanitizers],
            "fingerprints": [each.verdict.fingerprint for each in self.sanitizers],
            "batches": pl_module.batches,
            "num_training_batches": trainer.num_training_batches,
        }
        torch.save(found, Path(self.directory) / f"{trainer.global_rank}.pt")


def rank():
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def strategy_of():
    if OPTIONS["world"] == 1:
        return "auto"
    return DDPStrategy(
        process_group_backend="gloo",
        start_method=OPTIONS["start"],
        timeout=timedelta(seconds=200),
    )


class Data(pl.LightningDataModule):
    def train_dataloader(self):
        if OPTIONS.get("groups"):
            return DataLoader(Digits.backdoored(601, 40), batch_size=16, shuffle=True)
        data = Digits(0, 601, seed=rank() if OPTIONS.get("differs") else 0)
        if OPTIONS.get("rows"):
            return DataLoader(data, batch_sampler=Rows(len(data), rank(), OPTIONS["world"]))
        return DataLoader(data, batch_size=16, shuffle=True)


def by_groups():
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU())
    settings = FitSettings(epochs=60, batch_size=32, learning_rate=2e-3, min_steps=0)
    network = FeatureModel(backbone=body, feature_size=64, fit_settings=settings, adversary=FGSM(0.15))
    return RobustFeatureScorer(network, components=8)


def main(directory):
    pl.seed_everything(1, verbose=False)
    quick = FitSettings(epochs=2, batch_size=64, min_steps=150)
    sanitizers = [Sanitizer(by_groups() if OPTIONS.get("groups") else Scorer(fit_settings=quick))]
    if OPTIONS.get("trusted"):
        small = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32))
        scorer = Scorer(fit_settings=quick, backbone=small)
        sanitizers.append(Sanitizer(scorer, trusted=Digits(601, 1100, wrong=False), name="second"))
    trainer = pl.Trainer(
        max_epochs=OPTIONS.get("epochs", 1),
        accelerator="cpu",
        devices=OPTIONS["world"],
        strategy=strategy_of(),
        callbacks=[*sanitizers, Result(sanitizers, directory)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=not OPTIONS.get("rows"),
        default_root_dir=directory,
    )
    trainer.fit(Classifier(), datamodule=Data())


OPTIONS = json.loads(sys.argv[2]) if __name__ in ("__main__", "__mp_main__") else {}

if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main(sys.argv[1])
