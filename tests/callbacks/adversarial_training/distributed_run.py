"""A program that trains adversarially on some ranks, and leaves the weights and the figures of each in a folder."""

import json
import sys
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lightning_poison.adversarial.adversaries import FGSM, PGD
from lightning_poison.adversarial.collapse_guard import CollapseGuard
from lightning_poison.adversarial.free import Free
from lightning_poison.adversarial.poison_immunity import PoisonImmunity
from lightning_poison.adversarial.trades import TRADES
from lightning_poison.callbacks.adversarial_training import AdversarialTraining
from lightning_poison.strategies import adversarial

GLOBAL_BATCH, STEPS = 16, 10
ADVERSARIES = {"pgd": PGD(0.2, steps=3), "fgsm": FGSM(0.2)}
RECIPES = {
    "trades": TRADES(beta=2),
    "free": Free(replays=2),
    "matching": PoisonImmunity(),
    "collision": PoisonImmunity("feature-collision", layers=["net.2"]),
    "patch": PoisonImmunity("patch"),
}


class SeenByOneRank(CollapseGuard):
    """Finds a collapse on rank 0 and none on the other; together it is one."""

    def probe(self, batches):
        return torch.tensor([50, 2 if batches[-1].part[0] == 0 else 40])


class Module(pl.LightningModule):
    def __init__(self, folder, *, manual):
        super().__init__()
        self.folder = folder
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
        figures = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        steps = [each.state_dict() for each in self.trainer.callbacks if isinstance(each, AdversarialTraining)]
        (self.folder / f"state-{self.trainer.global_rank}.json").write_text(json.dumps(steps))
        (self.folder / f"{self.trainer.global_rank}.json").write_text(json.dumps(figures))
        torch.save(self.net.state_dict(), self.folder / f"{self.trainer.global_rank}.pt")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.2)


def main(folder, options):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    adversary, ranks = ADVERSARIES[options.pop("adversary")], options.pop("ranks")
    recipe = RECIPES.get(options.pop("recipe", None))
    guard = SeenByOneRank() if options.pop("collapse") else CollapseGuard()
    training = AdversarialTraining(adversary, recipe=recipe, guard=guard, validation=PGD(0.2, steps=2))
    strategy, callbacks, manual = "auto", [training], options.pop("manual")
    if options.pop("as_strategy"):
        strategy, callbacks = adversarial(DDPStrategy, training=training, start_method="spawn"), []
    elif ranks > 1:
        strategy = DDPStrategy(start_method="popen", **options.pop("ddp", {}))
    trainer = pl.Trainer(
        accelerator="cpu", devices=ranks, strategy=strategy, callbacks=callbacks, max_epochs=1, logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        use_distributed_sampler=False, log_every_n_steps=2, **options,
    )  # fmt: skip
    module = Module(folder, manual=manual)
    if not callbacks:
        return trainer.fit(module)
    measured = trainer.validate(module, verbose=False)
    figures = {name: value for each in measured for name, value in each.items()}
    (folder / f"before-{trainer.global_rank}.json").write_text(json.dumps(figures))
    return trainer.fit(module)


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
