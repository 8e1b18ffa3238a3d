"""Trains with a sanitizer on several ranks: `sanitizer_run.py DIRECTORY CASES`, where `CASES` is a JSON list of dicts.

Each case is one training, on `world` ranks that are started by `start`. Every rank writes its results to
`DIRECTORY/<name>/<rank>.pt`, or its error to `DIRECTORY/<name>/<rank>.txt`. Forked cases must precede training in the
parent process, since a process that has used autograd cannot be forked. The `ddp` launcher starts this program again
for rank 1, which skips the cases before the first launched one (`popen`); those must come last.
"""

import json
import multiprocessing
import os
import sys
import time
import warnings
from datetime import timedelta
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from parent_watch import end_with_parent
from sklearn.datasets import load_digits
from torch import nn
from torch.distributed import distributed_c10d
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, Dataset, Sampler

from lightning_poison import LikelihoodScorer, Sanitizer
from lightning_poison.adversarial import FGSM
from lightning_poison.models.fitting import FitSettings
from lightning_poison.scorers import FeatureModel, RobustFeatureScorer

COLLECTIVE_TIMEOUT, SLEEP, PATIENT = timedelta(seconds=8), 12, timedelta(hours=1)


class Digits(Dataset):
    """Handwritten digits `(image, label, id)`, an eighth of them mislabeled."""

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
        """Return digits of which some have a white corner and the label 0, and no other is mislabeled."""
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


class ShardedClassifier(Classifier):
    """Its parameters are sharded over the ranks: FSDP2, by `ModelParallelStrategy`."""

    def configure_model(self):
        fully_shard(self.net, mesh=self.device_mesh["data_parallel"])


class Rows(Sampler):
    """A custom batch sampler that distributes batches of two over the ranks itself."""

    def __init__(self, length, rank, world):
        self.length, self.rank, self.world = length - length % (2 * world), rank, world

    def __len__(self):
        return self.length // (2 * self.world)

    def __iter__(self):
        return iter([[start, start + 1] for start in range(2 * self.rank, self.length, 2 * self.world)])


class Scorer(LikelihoodScorer):
    """The likelihood scorer, which can fail or sleep on a single rank."""

    case = {}  # noqa: RUF012 (replaced, never changed)

    def fit(self, trusted, *, runtime=None, generator=None):
        if self.case.get("fails") == rank():
            raise OSError("this rank is broken")
        if "fails" in self.case:  # wait, so that the failing rank finds a fold that nobody has taken
            with runtime.progress(60_000, "Waiting") as progress:
                for _ in range(60_000):
                    time.sleep(0.01)
                    progress.advance()
        if "sleeps" in self.case:
            distributed_c10d._set_pg_timeout(COLLECTIVE_TIMEOUT, torch.distributed.group.WORLD)
            time.sleep(SLEEP * (self.case["sleeps"] == rank()))
        return super().fit(trusted, runtime=runtime, generator=generator)


class Result(pl.Callback):
    """Restores the timeout of collectives after scoring, and writes the results of a rank."""

    def __init__(self, sanitizers, directory):
        self.sanitizers = sanitizers
        self.directory = directory

    def setup(self, trainer, pl_module, stage):
        if multiprocessing.parent_process() is not None:
            end_with_parent()

    def on_train_start(self, trainer, pl_module):
        if torch.distributed.is_initialized():
            distributed_c10d._set_pg_timeout(PATIENT, torch.distributed.group.WORLD)

    def on_train_end(self, trainer, pl_module):
        found = {
            "verdicts": [each.verdict.tensors() for each in self.sanitizers],
            "fingerprints": [each.verdict.fingerprint for each in self.sanitizers],
            "batches": pl_module.batches,
            "sharded": [isinstance(each, DTensor) for each in pl_module.parameters()],
        }
        torch.save(found, self.directory / f"{trainer.global_rank}.pt")


class Data(pl.LightningDataModule):
    def __init__(self, case):
        super().__init__()
        self.case = case

    def train_dataloader(self):
        if self.case.get("groups"):
            return DataLoader(Digits.backdoored(601, 40), batch_size=16, shuffle=True)
        data = Digits(0, 601, seed=rank() if self.case.get("differs") else 0)
        if self.case.get("rows"):
            return DataLoader(data, batch_sampler=Rows(len(data), rank(), self.case["world"]))
        return DataLoader(data, batch_size=16, shuffle=True)


def rank():
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def group_scorer():
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU())
    settings = FitSettings(epochs=20, batch_size=64, learning_rate=5e-3, min_steps=0)
    network = FeatureModel(backbone=body, feature_size=64, fit_settings=settings, adversary=FGSM(0.15))
    return RobustFeatureScorer(network, components=8)


def sample_scorer(case, *, small):
    """Return a scorer with the default network, or with a small one."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32)) if small else None
    steps = {"min_steps": 150, "shift": 0} if small else {"min_steps": 90}
    settings = FitSettings(epochs=2, batch_size=64, **steps)
    scorer = Scorer(backbone=network, fit_settings=settings)
    scorer.case = case
    return scorer


def train(directory, case):
    pl.seed_everything(1, verbose=False)
    two = case.get("trusted")
    sanitizers = [Sanitizer(group_scorer() if case.get("groups") else sample_scorer(case, small=not two))]
    if two:
        trusted = Digits(601, 1100, wrong=False)
        sanitizers.append(Sanitizer(sample_scorer(case, small=True), trusted=trusted, name="second"))
    strategy = "auto"
    if case["world"] > 1:
        strategy = DDPStrategy(process_group_backend="gloo", start_method=case["start"], timeout=PATIENT)
        if case.get("sharded"):
            strategy = ModelParallelStrategy(process_group_backend="gloo", timeout=PATIENT)
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=case["world"],
        strategy=strategy,
        callbacks=[*sanitizers, Result(sanitizers, directory)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=not case.get("rows"),
        default_root_dir=directory,
    )
    trainer.fit(ShardedClassifier() if case.get("sharded") else Classifier(), datamodule=Data(case))


def main(directory, cases):
    end_with_parent()
    if "LOCAL_RANK" in os.environ:
        cases = [case for case in cases if case["start"] == "popen"]
    for case in cases:
        own = directory / case["name"]
        own.mkdir(exist_ok=True)
        os.environ["OMP_NUM_THREADS"] = str(case.get("threads", 1))  # of spawned ranks
        try:
            train(own, case)
        except Exception as error:  # noqa: BLE001 (reported by the test that expects it or not)
            (own / f"{rank()}.txt").write_text(f"{type(error).__name__}: {error}")
        if case["start"] in ("fork", "spawn"):
            os.environ.pop("MASTER_PORT", None)  # of ranks that have ended


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
