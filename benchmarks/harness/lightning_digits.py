"""A LightningModule for MNIST and its training in a Trainer."""

from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from harness.datasets import LabeledImages
from harness.networks import digit_network
from harness.runs import with_cpu_seconds

BATCH, LEARNING_RATE = 128, 5e-3


class DigitClassifier(pl.LightningModule):
    """A user's module, without any attack."""

    def __init__(self, seed: int, steps: int, rate: float = LEARNING_RATE) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.net, self.steps, self.rate = digit_network(10), steps, rate

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images)
        return logits

    def training_step(self, batch: LabeledImages) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.rate, total_steps=self.steps, pct_start=0.4)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fit(model: DigitClassifier, data: TensorDataset, epochs: int, *callbacks: pl.Callback, seed: int) -> float:
    """Train in a Trainer and return the CPU seconds."""
    loader = DataLoader(data, BATCH, shuffle=True, drop_last=True, generator=torch.Generator().manual_seed(seed))
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=epochs, callbacks=list(callbacks), logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    return with_cpu_seconds(lambda: trainer.fit(model, loader))[1]
