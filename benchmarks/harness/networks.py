"""Small networks, plain or adversarial training for them, and what is measured on every network."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_poison.adversarial import AdversarialLoss, Adversary, perturb_against
from lightning_poison.data import MemoryDataset
from lightning_poison.models import FitSettings, fit_module
from lightning_poison.runtime import LocalRuntime


def digit_network(classes: int) -> nn.Sequential:
    """Return the network of Wong, Rice, Kolter 2020 (arXiv 2001.03994) for MNIST; layer "6" gives 100 features."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 4, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 49, 100), nn.ReLU(), nn.Linear(100, classes),
    )  # fmt: skip


def photo_network(classes: int) -> nn.Sequential:
    """Return a small VGG-style network for 32x32 color images; layer "15" gives 768 features."""

    def block(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    return nn.Sequential(
        *block(3, 24, 2), *block(24, 48), nn.MaxPool2d(2), *block(48, 96), nn.MaxPool2d(2), *block(96, 48),
        nn.Identity(), nn.Flatten(), nn.Linear(768, classes),
    )  # fmt: skip


def conv_network(seed: int) -> nn.Sequential:
    """Return a network of two convolutions for MNIST, seeded; layer "6" gives 64 features."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        convolutions = [nn.Conv2d(1, 16, 5, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 5, stride=2), nn.ReLU()]
        return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10))


def fit_conv_network(network: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> None:
    """Train in place: two epochs of Adam in batches of 64 on 20,000 images, which are drawn anew for each epoch."""
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    for _ in range(2):
        for batch in torch.split(torch.randperm(len(images), generator=generator)[:20_000], 64):
            optimizer.zero_grad()
            F.cross_entropy(network(images[batch]), labels[batch]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    network.eval()


def fit_network(
    network: nn.Sequential,
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    adversary: Adversary | None = None,
    seed: int,
    shift: int = 2,
) -> nn.Sequential:
    """Train a network in place, optionally against an adversary whose radius grows over the first epoch.

    Images are shifted by up to `shift` pixels in each direction.
    """
    settings = FitSettings(epochs=epochs, batch_size=128, learning_rate=3e-3, min_steps=0, shift=shift)
    generator = torch.Generator().manual_seed(seed)
    runtime = LocalRuntime(threads=torch.get_num_threads())
    data = MemoryDataset(images, labels)
    if adversary is None:
        fit_module(network, data, cross_entropy, settings=settings, runtime=runtime, generator=generator)
    else:
        loss = AdversarialLoss(adversary, warm_up=settings.steps_per_epoch(len(labels)), generator=generator)
        fit_module(network, data, loss, settings=settings, runtime=runtime, generator=generator)
    return network


def cross_entropy(network: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy, in float32."""
    return F.cross_entropy(network(inputs).float(), labels)


@torch.no_grad()
def outputs_of(network: nn.Module, images: Tensor, *, batch_size: int = 500) -> Tensor:
    """Return a network's outputs, computed batch by batch."""
    return torch.cat([network(batch) for batch in torch.split(images, batch_size)])


@torch.no_grad()
def predict(network: nn.Module, images: Tensor, *, batch_size: int = 500) -> Tensor:
    """Return the predicted classes."""
    return torch.cat([network(batch).argmax(1) for batch in torch.split(images, batch_size)])


def accuracy_of(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of images that are classified correctly."""
    return float(predict(network, images).eq(labels).double().mean())


def robust_accuracy(network: nn.Module, images: Tensor, labels: Tensor, epsilon: float) -> float:
    """Return the accuracy under PGD with 20 steps."""
    generator = torch.Generator().manual_seed(0)
    perturbed = perturb_against(network, images, labels, epsilon=epsilon, steps=20, generator=generator)
    return accuracy_of(network, perturbed, labels)
