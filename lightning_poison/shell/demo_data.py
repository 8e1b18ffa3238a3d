"""Data sets of the demo: scikit-learn's bundled digits, or a local copy of MNIST."""

from dataclasses import dataclass
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import TensorDataset

from lightning_poison.data.pixel_range import PixelRange


@dataclass(frozen=True)
class DemoData:
    """Images, and their split between the two attacks.

    Args:
        name: Name of the data set.
        images: float32 `(N, C, H, W)` in [0, 1].
        labels: int64 `(N,)`.
        pixels: Pixel range of the images.
        pretrained: Number of images for pretraining the victim of the poison frogs.
        pretraining_epochs: Number of pretraining epochs.
        fine_tuned: Number of images for fine-tuning this victim.
        trained: Number of images for training the victim of the flipped labels.
        epochs: Number of epochs of this training.

    Example:
        >>> digits = load_demo_data("digits")
        >>> image, label = digits.part(800, 1200)[0]
        >>> len(digits.part(800, 1200)), label == digits.labels[800]
        (400, tensor(True))
    """

    name: str
    images: Tensor
    labels: Tensor
    pixels: PixelRange
    pretrained: int
    pretraining_epochs: int
    fine_tuned: int
    trained: int
    epochs: int

    def part(self, start: int, stop: int | None = None) -> TensorDataset:
        """Return images from `start` to `stop` as a data set."""
        return TensorDataset(self.images[start:stop], self.labels[start:stop])


def load_demo_data(name: str, root: Path | None = None, *, seed: int = 0) -> DemoData:
    """Load scikit-learn's bundled digits, or MNIST from a local folder.

    Args:
        name: `"digits"` or `"mnist"`.
        root: Folder that contains `MNIST/raw`; required for MNIST.
        seed: Seed of the order of the images.

    Raises:
        FileNotFoundError: If the folder does not contain MNIST.

    Example:
        >>> digits = load_demo_data("digits")
        >>> digits.images.shape, digits.labels.bincount().min() >= 170
        (torch.Size([1797, 1, 8, 8]), tensor(True))
        >>> digits.labels.equal(load_demo_data("digits", seed=1).labels)
        False
    """
    images, labels = load_all(name, root)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[:20000]
    images, labels = images[order], labels[order]
    if name == "digits":
        return DemoData("scikit-learn's digits", images, labels, PixelRange(levels=17), 800, 20, 400, 1297, 20)
    return DemoData("MNIST", images, labels, PixelRange(), 6000, 6, 400, 10000, 25)


def load_all(name: str, root: Path | None = None) -> tuple[Tensor, Tensor]:
    """Return all images, float32 `(N, C, H, W)` in [0, 1], and labels, int64 `(N,)`, of scikit-learn's digits or MNIST.

    Args:
        name: `"digits"` or `"mnist"`, training and test images.
        root: Folder that contains `MNIST/raw`; required for MNIST.

    Raises:
        FileNotFoundError: If the folder does not contain MNIST.
    """
    if name == "digits":
        pixels, targets = load_digits(return_X_y=True)
        images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
        return images, torch.tensor(targets, dtype=torch.int64)
    if root is None or not (root / "MNIST" / "raw").is_dir():
        raise FileNotFoundError(
            f"Expected a folder MNIST/raw in `--data-root`, as created by torchvision, but got {root}.\n"
            "Download it with `torchvision.datasets.MNIST(root, download=True)`, or use `--data digits`."
        )
    from torchvision.datasets import MNIST

    parts = [MNIST(root, train=train) for train in (True, False)]
    images = torch.cat([part.data for part in parts]).float().unsqueeze(1) / 255
    return images, torch.cat([part.targets for part in parts])
