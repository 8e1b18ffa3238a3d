"""Small networks whose features are frozen, and their training, plain or adversarial."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_poison.adversarial import AdversarialLoss, Adversary
from lightning_poison.data import MemoryDataset
from lightning_poison.models import FitSettings, fit_module
from lightning_poison.models.fitting import Loss
from lightning_poison.runtime import LocalRuntime


def digit_network(classes: int) -> nn.Sequential:
    """Return the network of Wong, Rice, Kolter 2020 (arXiv 2001.03994) for MNIST; layer "6" gives 100 features."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 4, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 49, 100), nn.ReLU(), nn.Linear(100, classes),
    )  # fmt: skip


def photo_network(classes: int) -> nn.Sequential:
    """Return a network in the manner of VGG for 32x32 color images; layer "15" gives 768 features."""

    def block(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    return nn.Sequential(
        *block(3, 24, 2), *block(24, 48), nn.MaxPool2d(2), *block(48, 96), nn.MaxPool2d(2), *block(96, 48),
        nn.Identity(), nn.Flatten(), nn.Linear(768, classes),
    )  # fmt: skip


def fit_network(
    network: nn.Module, images: Tensor, labels: Tensor, *, epochs: int, adversary: Adversary | None = None, seed: int
) -> nn.Module:
    """Train a network in place: plainly, or on what an adversary makes of the images; its radius grows over an epoch.

    Images are moved by up to two pixels each way.
    """
    settings = FitSettings(epochs=epochs, batch_size=128, learning_rate=3e-3, min_steps=0, shift=2)
    draws = torch.Generator().manual_seed(seed)
    loss: Loss = _plain_loss
    if adversary is not None:
        loss = AdversarialLoss(adversary, warm_up=settings.steps_per_epoch(len(labels)), generator=draws)
    runtime = LocalRuntime(threads=torch.get_num_threads())
    data = MemoryDataset(images, labels)
    return fit_module(network, data, loss, settings=settings, runtime=runtime, generator=draws)


def _plain_loss(module: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(module(inputs).float(), labels)


@torch.no_grad()
def accuracy_of(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of images that are read rightly."""
    return float(torch.cat([network(part).argmax(1) for part in images.split(500)]).eq(labels).double().mean())
