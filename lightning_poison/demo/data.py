"""The images of the demo: scikit-learn's bundled digits, or MNIST from a folder that has it."""

from dataclasses import dataclass
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import TensorDataset

from lightning_poison.data.pixel_range import PixelRange


@dataclass(frozen=True)
class DemoData:
    """Real images, and how they are shared out.

    Args:
        name: what they are called.
        images: float32 `(N, C, H, W)` in [0, 1].
        labels: int64 `(N,)`.
        pixels: their pixel domain.
        pretrained: how many images the frogs' victim was pretrained on.
        pretraining_epochs: how long.
        fine_tuned: how many it is fine-tuned on.
        trained: how many the victim of the flipped labels is trained on.
        epochs: how long that one is trained.

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
    """Read scikit-learn's bundled digits, or MNIST from a folder that has it already.

    Args:
        name: `"digits"` or `"mnist"`.
        root: the folder that holds `MNIST/raw`.
        seed: seeds the order of the images.

    Raises:
        FileNotFoundError: where MNIST is not in that folder.

    Example:
        >>> digits = load_demo_data("digits")
        >>> digits.images.shape, digits.labels.bincount().min() >= 170
        (torch.Size([1797, 1, 8, 8]), tensor(True))
        >>> digits.labels.equal(load_demo_data("digits", seed=1).labels)
        False
    """
    generator = torch.Generator().manual_seed(seed)
    if name == "digits":
        pixels, targets = load_digits(return_X_y=True)
        order = torch.randperm(len(targets), generator=generator)
        images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8)[order] / 16
        labels = torch.tensor(targets, dtype=torch.int64)[order]
        return DemoData("scikit-learn's digits", images, labels, PixelRange(levels=17), 800, 20, 400, 1297, 20)
    if root is None or not (root / "MNIST" / "raw").is_dir():
        raise FileNotFoundError(
            f"Expected MNIST as torchvision lays it out, a folder MNIST/raw in `--data-root`, but got {root}.\n"
            "Fetch it with `torchvision.datasets.MNIST(root, download=True)`, or use `--data digits`."
        )
    from torchvision.datasets import MNIST

    parts = [MNIST(root, train=train) for train in (True, False)]
    images = torch.cat([part.data for part in parts]).float().unsqueeze(1) / 255
    labels = torch.cat([part.targets for part in parts])
    order = torch.randperm(len(labels), generator=generator)[:20000]
    return DemoData("MNIST", images[order], labels[order], PixelRange(), 6000, 6, 400, 10000, 25)
