"""Twins for the benchmarks: one network under the Gaussian mixture loss and under cross-entropy, trained alike."""

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_poison import LGMMixin
from lightning_poison.contexts import reproducible_kernels
from lightning_poison.randomness import isolated_rng
from lightning_poison.runtime import has_fast_bf16

CPU = torch.device("cpu")


class PaperNet(nn.Module):
    """The MNIST network of Yaseen et al. 2020, appendix C.1: six 5x5 convolutions, PReLU, one linear layer.

    Args:
        feature_size: the length of the feature vector; the paper's is 2.
        width: how many channels the first convolution has; the paper's is 32.
    """

    def __init__(self, feature_size: int, *, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for out in (width, 2 * width, 4 * width):
            layers += [
                nn.Conv2d(channels, out, 5, padding=2),
                nn.PReLU(),
                nn.Conv2d(out, out, 5, padding=2),
                nn.PReLU(),
            ]
            layers.append(nn.MaxPool2d(2))
            channels = out
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.PReLU(), nn.Linear(9 * channels, feature_size))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers(inputs)


class Recipe(LightningModule):
    """Adam under a one-cycle schedule; `self.body` maps images to features."""

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
    """The network with an LGM head: margin 1, likelihood weight 1, identity covariance unless said otherwise."""

    def __init__(self, body: nn.Module, feature_size: int, *, learning_rate: float, **head: Any) -> None:
        super().__init__(body, learning_rate)
        self.add_lgm_head("body", feature_size=feature_size, num_classes=10, **head)


class SoftmaxClassifier(Recipe):
    """Its twin: a linear layer and cross-entropy."""

    def __init__(self, body: nn.Module, feature_size: int, *, learning_rate: float) -> None:
        super().__init__(body, learning_rate)
        self.head = nn.Linear(feature_size, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.body(inputs).float())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:  # noqa: ARG002 (Lightning's signature)
        return F.cross_entropy(self(batch[0]), batch[1])


class Moved(Dataset[Any]):
    """Images in memory, each moved by up to `shift` pixels, edges repeated, and mirrored half of the time if asked."""

    def __init__(self, images: Tensor, labels: Tensor, *, shift: int, mirror: bool = False) -> None:
        self.padded = F.pad(images, (shift,) * 4, mode="replicate")
        self.labels, self.shift, self.mirror = labels, shift, mirror

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        row, column, mirrored = (int(torch.randint(high, ())) for high in (2 * self.shift + 1, 2 * self.shift + 1, 2))
        height, width = (side - 2 * self.shift for side in self.padded.shape[-2:])
        image = self.padded[index, :, row : row + height, column : column + width]
        return image.flip(-1) if self.mirror and mirrored else image, self.labels[index]


def train(module: LightningModule, dataset: Any, *, epochs: int, seed: int, batch_size: int = 128) -> None:
    """Train a module in place with a Trainer: bfloat16 where the CPU has it, gradients clipped at 5."""
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
def accuracy(module: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of images that are read rightly."""
    predicted = torch.cat([module(batch).argmax(1) for batch in images.split(500)])
    return float((predicted == labels).double().mean())
