from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset, TensorDataset

from lightning_poison import PixelRange, Surrogate
from lightning_poison.attacks import RawFeatures
from lightning_poison.scorers import Scorer
from lightning_poison_collisions import FeatureDistance

FEATURE_LAYER = "6"


@contextmanager
def one_thread() -> Iterator[None]:
    """Run on one thread: the networks of these tests are too small to gain from more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def nonlinear(generator: torch.Generator) -> tuple[Tensor, FeatureDistance]:
    """Return bases `(6, 1, 5, 5)` and the distance of a small network to random targets."""
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(36, 8)).requires_grad_(False)
    for parameter in network.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    bases, targets = torch.rand(2, 6, 1, 5, 5, generator=generator)
    return bases, FeatureDistance([network], bases, targets)


@pytest.fixture(scope="session")
def digits() -> TensorDataset:
    """Real images: 8 × 8 pixels with 17 gray levels."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return TensorDataset(torch.tensor(images).float().view(-1, 1, 8, 8)[order] / 16, torch.tensor(labels)[order])


@pytest.fixture(scope="session")
def pixels() -> PixelRange:
    return PixelRange(levels=17)


@pytest.fixture(scope="session")
def dataset(digits: TensorDataset) -> Subset:
    """The training set of the victim's head."""
    return Subset(digits, range(800, 1200))


@pytest.fixture(scope="session")
def holdout(digits: TensorDataset) -> Subset:
    return Subset(digits, range(1200, len(digits)))


@pytest.fixture(scope="session")
def surrogate(digits: TensorDataset) -> Surrogate:
    """The network whose features the victim fine-tunes on, trained on its own images."""
    return Surrogate(train(*digits[:800], seed=0), FEATURE_LAYER)


@pytest.fixture(scope="session")
def another_surrogate(digits: TensorDataset) -> Surrogate:
    return Surrogate(train(*digits[:800], seed=1), FEATURE_LAYER)


@pytest.fixture
def features(surrogate: Surrogate, pixels: PixelRange) -> RawFeatures:
    return RawFeatures(surrogate, pixels)


class Brightness(Scorer):
    name, fitted_tensors = "brightness", ()

    def fit(self, trusted, *, runtime=None, generator=None):
        return self

    def score_batch(self, inputs, labels):
        return inputs.flatten(1).mean(1)


class BrightPixels(Brightness):
    """A scorer without gradients."""

    name = "bright-pixels"

    def score_batch(self, inputs, labels):
        return (inputs > 0.5).flatten(1).float().mean(1)


def train(images: Tensor, labels: Tensor, *, seed: int, epochs: int = 15) -> nn.Module:
    with torch.random.fork_rng(devices=[]), one_thread():
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(512, 32),
            nn.ReLU(),
            nn.Linear(32, 10),
        )
        fit(model, images, labels, epochs=epochs, lr=3e-3)
    return model.eval()


def fit(model: nn.Module, inputs: Tensor, labels: Tensor, *, epochs: int, lr: float) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for batch in torch.randperm(len(labels), generator=generator).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[batch]), labels[batch]).backward()
            optimizer.step()


def images_of(dataset: Dataset, indices: Tensor | None = None) -> Tensor:
    positions = range(len(dataset)) if indices is None else indices.tolist()
    return torch.stack([dataset[position][0] for position in positions])
