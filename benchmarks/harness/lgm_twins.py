"""Pairs of classifiers for comparisons: one network with an LGM head, one with a linear head, trained alike."""

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_poison import LGMMixin
from lightning_poison.contexts import reproducible_kernels
from lightning_poison.randomness import isolated_rng
from lightning_poison.runtime import has_fast_bf16

CPU = torch.device("cpu")


class Recipe(LightningModule):
    """Adam with a one-cycle schedule; `self.body` maps images to features."""

    def __init__(self, body: nn.Module, learning_rate: float) -> None:
        super().__init__()
        self.body = body
        self.learning_rate = learning_rate

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.learning_rate)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.learning_rate, total_steps=steps, pct_start=0.2)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class LGMClassifier(LGMMixin, Recipe):
    """A network with an LGM head and the loss of the paper. Default: margin 1, likelihood weight 1, identity."""

    def __init__(self, body: nn.Module, feature_size: int, *, learning_rate: float, **head: Any) -> None:
        super().__init__(body, learning_rate)
        self.add_lgm_head("body", feature_size=feature_size, num_classes=10, normalize=False, **head)


class SoftmaxClassifier(Recipe):
    """Its twin: a linear head trained with cross-entropy."""

    def __init__(self, body: nn.Module, feature_size: int, *, learning_rate: float) -> None:
        super().__init__(body, learning_rate)
        self.head = nn.Linear(feature_size, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(inputs).float())
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:  # noqa: ARG002 (Lightning's signature)
        return F.cross_entropy(self(batch[0]), batch[1])


def train(module: LightningModule, dataset: Any, *, epochs: int, seed: int, batch_size: int = 128) -> None:
    """Train a module in place with a Trainer: bfloat16 if the CPU supports it, gradients clipped at 5."""
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        precision="bf16-mixed" if has_fast_bf16(CPU) else "32-true",
        gradient_clip_val=5.0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    module.to(memory_format=torch.channels_last)
    with isolated_rng(seed, CPU), reproducible_kernels(CPU, torch.get_num_threads()):
        trainer.fit(module, DataLoader(dataset, batch_size=batch_size, shuffle=True, drop_last=True))
    module.eval()


@torch.no_grad()
def features_of(module: Any, images: Tensor) -> Tensor:
    """Return the features of images, float32."""
    return torch.cat([module.body(batch).float() for batch in torch.split(images, 500)])


def class_means(module: Any, images: Tensor, labels: Tensor) -> Tensor:
    """Return the mean feature vector of each class, `(10, F)`."""
    features = features_of(module, images)
    return torch.stack([features[labels == label].mean(0) for label in range(10)])
