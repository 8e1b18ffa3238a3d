"""An ordinary Lightning project: data, a module, a Trainer. It does not use lightning-poison.

The other examples add lightning-poison to it. The data are scikit-learn's 1,797 handwritten digits of 8 x 8 pixels,
which need no download, or the first 10,000 images of MNIST from a folder with torchvision's files.
"""

import argparse
import logging
import warnings

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.functional import accuracy
from torchvision.datasets import MNIST

# Hide what Lightning logs about hardware and tips.
logging.disable(logging.INFO)
warnings.filterwarnings("ignore", message=".*does not have many workers")
warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
torch.set_num_threads(1)  # networks as small as these are not faster with more


def data_root() -> str | None:
    """Return the command-line argument `--data-root`."""
    parser = argparse.ArgumentParser(description="Handwritten digits, with and without poison.")
    parser.add_argument("--data-root", help="a folder with torchvision's MNIST; default: scikit-learn's digits")
    return parser.parse_args().data_root


def load(root: str | None) -> tuple[TensorDataset, TensorDataset]:
    """Return training and test images in [0, 1], `(1, H, W)`, with their labels."""
    if root is not None:
        train, test = (MNIST(root, train=part) for part in (True, False))
        images = torch.cat([train.data[:10_000], test.data])[:, None] / 255
        labels = torch.cat([train.targets[:10_000], test.targets])
        return TensorDataset(images[:10_000], labels[:10_000]), TensorDataset(images[10_000:], labels[10_000:])
    pixels, digits = load_digits(return_X_y=True)
    images, labels = torch.tensor(pixels / 16).float().view(-1, 1, 8, 8), torch.tensor(digits)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, test = order[:1400], order[1400:]
    return TensorDataset(images[train], labels[train]), TensorDataset(images[test], labels[test])


class Digits(pl.LightningDataModule):
    """The images, in batches of 64."""

    def __init__(self, root: str | None = None) -> None:
        super().__init__()
        self.train_set, self.test_set = load(root)

    def train_dataloader(self) -> DataLoader:
        """Return the training images, shuffled."""
        return DataLoader(self.train_set, batch_size=64, shuffle=True)

    def test_dataloader(self) -> DataLoader:
        """Return the test images."""
        return DataLoader(self.test_set, batch_size=500)


class Classifier(pl.LightningModule):
    """A two-layer network."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), nn.LazyLinear(256), nn.ReLU(), nn.Linear(256, 10))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        return self.network(images)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the cross-entropy."""
        images, labels = batch
        return F.cross_entropy(self(images), labels)

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Log the accuracy."""
        images, labels = batch
        self.log("accuracy", accuracy(self(images), labels, task="multiclass", num_classes=10))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def quiet_trainer(callbacks: list[pl.Callback] | None = None) -> pl.Trainer:
    """Return a Trainer without checkpoints and progress bars for short runs."""
    return pl.Trainer(
        max_epochs=40,
        accelerator="cpu",
        callbacks=callbacks or [],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
