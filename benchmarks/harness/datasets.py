"""MNIST and CIFAR-10 in memory, and the columns of data sets and of poison as tensors."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from lightning_poison import Poison
from lightning_poison.attacks import InstancesObjective

LabeledImages = tuple[Tensor, Tensor]
"""Images `(N, C, H, W)` in [0, 1] and their labels `(N,)`."""


@dataclass(frozen=True)
class TrainTestImages:
    """Training and test images `(N, C, H, W)` in [0, 1] with labels."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    def part(self, begin: int, count: int) -> LabeledImages:
        """Return `count` training images from `begin` on."""
        return self.images[begin : begin + count], self.labels[begin : begin + count]


def load_mnist(root: Path, *, train: bool) -> LabeledImages:
    """Return float32 images `(N, 1, 28, 28)` in [0, 1] and labels `(N,)`."""
    data = torchvision.datasets.MNIST(root, train=train)
    return data.data[:, None].float() / 255, data.targets


TO_FLOAT = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
"""Transform of a PIL image to a tensor, float32 in [0, 1]."""


def stored_mnist(root: Path) -> Dataset[Any]:
    """Return torchvision's training set of MNIST, which transforms each image when it is read."""
    return torchvision.datasets.MNIST(root, train=True, transform=TO_FLOAT)  # type: ignore[no-any-return]


def load_cifar(root: Path, *, train: bool, classes: Sequence[int] = tuple(range(10))) -> LabeledImages:
    """Return images of CIFAR-10 (JPEG q75), float32 `(N, 3, 32, 32)` in [0, 1], and labels `(N,)`, class by class."""
    paths, labels = cifar_files(root, train=train, classes=classes)
    return read_images(paths), labels


def cifar_files(root: Path, *, train: bool, classes: Sequence[int]) -> tuple[list[str], Tensor]:
    """Return the files of CIFAR-10 and their labels, class by class."""
    folder = torchvision.datasets.ImageFolder(root / "cifar10" / ("train" if train else "test"))
    wanted = [(path, label) for path, label in folder.samples if label in classes]
    return [path for path, _ in wanted], torch.tensor([label for _, label in wanted])


def read_images(paths: Sequence[str]) -> Tensor:
    """Return images, float32 `(N, 3, H, W)` in [0, 1]."""
    return torch.stack([decode_image(path, ImageReadMode.RGB) for path in paths]).float() / 255


class RawDataset(Dataset[Any]):
    """Images in memory, uint8 `(N, C, H, W)`, with a transform to [0, 1], laid out like torchvision's data sets."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.data = images
        self.targets = labels
        self.transform = _scale

    @classmethod
    def from_floats(cls, images: Tensor, labels: Tensor) -> "RawDataset":
        """Return a data set of images that are given in [0, 1]."""
        return cls((255 * images).round().byte(), labels)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.data[index]), int(self.targets[index])


def _scale(image: Tensor) -> Tensor:
    return image.float() / 255


class ShiftedDataset(Dataset[Any]):
    """Images in memory, each shifted by up to `shift` pixels with edges repeated, and optionally mirrored at random."""

    def __init__(self, images: Tensor, labels: Tensor, *, shift: int, mirror: bool = False) -> None:
        self.padded = F.pad(images, (shift,) * 4, mode="replicate")
        self.labels, self.shift, self.mirror = labels, shift, mirror

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> LabeledImages:
        row, column, mirrored = (int(torch.randint(high, ())) for high in (2 * self.shift + 1, 2 * self.shift + 1, 2))
        height, width = (side - 2 * self.shift for side in self.padded.shape[-2:])
        image = self.padded[index, :, row : row + height, column : column + width]
        return image.flip(-1) if self.mirror and mirrored else image, self.labels[index]


def columns_of(dataset: Any) -> list[Tensor]:
    """Return the inputs, labels and further fields of all samples, each as one tensor."""
    inputs, *rest = zip(*(dataset[index] for index in range(len(dataset))), strict=True)
    return [torch.stack(inputs), *(torch.tensor(column) for column in rest)]


def first_of_each_class(labels: Tensor, count: int, *, classes: int = 10) -> Tensor:
    """Return the positions of the first `count` samples of each class, class by class."""
    return torch.cat([(labels == label).nonzero().flatten()[:count] for label in range(classes)])


def inputs_of(poison: Poison) -> Tensor:
    """Return the inputs of poison that changes inputs."""
    assert poison.inputs is not None
    return poison.inputs


def bases_of(poison: Poison, images: Tensor) -> Tensor:
    """Return the images that the poison was made from."""
    assert poison.base_indices is not None
    return images[poison.base_indices]


def targets_of(poison: Poison) -> InstancesObjective:
    """Return the objective of an attack on chosen test samples."""
    assert isinstance(poison.objective, InstancesObjective)
    return poison.objective
