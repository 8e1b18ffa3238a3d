"""A LightningCLI program without lightning-poison; `config.yaml` adds the sanitizer.

    python examples/cli/train.py fit --config examples/cli/config.yaml

The program stays as it is. In the configuration, `trainer.callbacks` lists `lightning_poison.Sanitizer` with a nested
scorer. Every argument of both can be set there or on the command line, misspelled ones are rejected, and
`--print_config` prints them with their defaults:

    python examples/cli/train.py fit --config examples/cli/config.yaml --print_config

To wrap the data instead, pass `LightningCLI` a base class with `subclass_mode_data=True`, and write

    data:
      class_path: lightning_poison.SanitizedDataModule
      init_args:
        data: {class_path: your_project.YourDataModule}
        scorer: {class_path: lightning_poison.LikelihoodScorer}
"""

import warnings

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import LightningCLI
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

warnings.filterwarnings("ignore", message=".*does not have many workers")
warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
torch.set_num_threads(1)  # a network as small as this is not faster with more


class Digits(pl.LightningDataModule):
    """scikit-learn's handwritten digits, some of them mislabeled.

    Args:
        batch_size: Number of images per batch.
        mislabeled: Share of wrong labels, in [0, 1].
    """

    def __init__(self, batch_size: int = 64, mislabeled: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage: str) -> None:
        """Load the images and change some labels."""
        pixels, digits = load_digits(return_X_y=True)
        generator = torch.Generator().manual_seed(0)
        wrong = torch.rand(len(digits), generator=generator) < self.hparams.mislabeled
        labels = torch.where(wrong, (torch.tensor(digits) + 1) % 10, torch.tensor(digits))
        self.train_set = TensorDataset(torch.tensor(pixels / 16).float().view(-1, 1, 8, 8), labels)

    def train_dataloader(self) -> DataLoader:
        """Return the training images, shuffled."""
        return DataLoader(self.train_set, batch_size=self.hparams.batch_size, shuffle=True)


class Classifier(pl.LightningModule):
    """A two-layer network.

    Args:
        learning_rate: Learning rate of Adam.
    """

    def __init__(self, learning_rate: float = 2e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the cross-entropy."""
        images, labels = batch
        return F.cross_entropy(self.network(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.hparams.learning_rate)


if __name__ == "__main__":
    LightningCLI(Classifier, Digits, save_config_callback=None)
