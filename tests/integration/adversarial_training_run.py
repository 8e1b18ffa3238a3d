"""Trains adversarially on several ranks: `adversarial_training_run.py DIRECTORY CASES`, `CASES` a JSON list of dicts.

Each case is one training. Every rank writes its weights and metrics to `DIRECTORY/<folder>/<name>`. Forked cases come
first, since a process that has used autograd cannot be forked. The `ddp` launcher starts this program again for rank 1,
which skips the cases before the first launched one; those must come last.
"""

import json
import multiprocessing
import os
import sys
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.strategies import DDPStrategy
from parent_watch import end_with_parent
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lightning_poison import AdversarialTraining
from lightning_poison.adversarial import FGSM, PGD, TRADES, CollapseGuard, Free, PoisonImmunity
from lightning_poison.strategies import adversarial

GLOBAL_BATCH, STEPS = 16, 10
START = "fork" if hasattr(os, "fork") else "spawn"
ADVERSARIES = {"pgd": PGD(0.2, steps=3), "fgsm": FGSM(0.2)}
RECIPES = {
    "trades": TRADES(beta=2),
    "free": Free(replays=2),
    "matching": PoisonImmunity(),
    "collision": PoisonImmunity("feature-collision", layers=["net.2"]),
    "patch": PoisonImmunity("patch"),
}


class CollapseOnRank0(CollapseGuard):
    """Counts a collapse on rank 0 alone, which is one in the sum over both ranks."""

    def probe(self, batches):
        return torch.tensor([50, 2 if batches[-1].part[0] == 0 else 40])


class Module(pl.LightningModule):
    def __init__(self, directory, *, manual):
        super().__init__()
        self.directory = directory
        self.automatic_optimization = not manual
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))

    def forward(self, images):
        return self.net(images)

    def train_dataloader(self):
        return self.loader(STEPS)

    def val_dataloader(self):
        return [self.loader(3), self.loader(2)]

    def loader(self, steps):
        generator = torch.Generator().manual_seed(0)
        labels = torch.arange(GLOBAL_BATCH * steps) % 3
        images = 0.5 * torch.rand(len(labels), 1, 8, 8, generator=generator) + 0.2 * labels[:, None, None, None]
        data, ranks = TensorDataset(images, labels), self.trainer.world_size
        sampler = DistributedSampler(data, ranks, self.trainer.global_rank, shuffle=False)
        return DataLoader(data, batch_size=GLOBAL_BATCH // ranks, sampler=sampler)

    def setup(self, stage):
        if multiprocessing.parent_process() is not None:
            end_with_parent()

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self(batch[0]), batch[1])
        if self.automatic_optimization:
            return loss
        self.optimizers().zero_grad()
        self.manual_backward(loss)
        return self.optimizers().step()

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        pass

    def on_train_end(self):
        rank = self.trainer.global_rank
        metrics = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        states = [each.state_dict() for each in self.trainer.callbacks if isinstance(each, AdversarialTraining)]
        (self.directory / f"state-{rank}.json").write_text(json.dumps(states))
        (self.directory / f"metrics-{rank}.json").write_text(json.dumps(metrics))
        torch.save(self.net.state_dict(), self.directory / f"{rank}.pt")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.2)


def train(
    directory, *, ranks, adversary, recipe=None, as_strategy=False, manual=False, collapse=False, ddp=(), **options
):
    guard = CollapseOnRank0() if collapse else CollapseGuard()
    training = AdversarialTraining(
        ADVERSARIES[adversary], recipe=RECIPES.get(recipe), guard=guard, validation=PGD(0.2, steps=2)
    )
    strategy, callbacks = "auto", [training]
    if as_strategy:
        strategy, callbacks = adversarial(DDPStrategy, training=training, start_method=START), []
    elif ranks > 1:
        strategy = DDPStrategy(start_method="popen", **dict.fromkeys(ddp, True))
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy=strategy,
        callbacks=callbacks,
        max_epochs=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        log_every_n_steps=2,
        **options,
    )
    module = Module(directory, manual=manual)
    if not as_strategy:
        metrics = {name: value for each in trainer.validate(module, verbose=False) for name, value in each.items()}
        (directory / f"untrained-{trainer.global_rank}.json").write_text(json.dumps(metrics))
    trainer.fit(module)


def main(directory, cases):
    end_with_parent()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if "LOCAL_RANK" in os.environ:
        cases = [case for case in cases if case["folder"] == "launched"]
    for case in cases:
        own = directory / case.pop("folder") / case.pop("name")
        own.mkdir(parents=True, exist_ok=True)
        train(own, **case)
        if case.get("as_strategy"):
            del os.environ["MASTER_PORT"]  # of ranks that have ended


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
