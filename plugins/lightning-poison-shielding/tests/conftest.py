from collections.abc import Iterator

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import Subset, TensorDataset

from lightning_poison import PixelRange, Surrogate
from lightning_poison_shielding.generators import Pairs

FEATURE_LAYER = "6"
"""Feature layer of the network of these tests, with 32 features."""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Run on one thread: the networks of these tests are too small to gain from more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


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
    return Subset(digits, range(500, 800))


@pytest.fixture(scope="session")
def pool(digits: TensorDataset) -> Subset:
    """The attacker's pool."""
    return Subset(digits, range(800, 1500))


@pytest.fixture(scope="session")
def test_set(digits: TensorDataset) -> Subset:
    return Subset(digits, range(1500, len(digits)))


@pytest.fixture(scope="session")
def surrogate(digits: TensorDataset) -> Surrogate:
    """The network whose features the victim freezes, trained on its own images."""
    images, labels = (part[:500] for part in digits.tensors)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
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
    fit(model, images, labels, epochs=12)
    return Surrogate(model.eval(), FEATURE_LAYER)


def fit(model: nn.Module, inputs: Tensor, labels: Tensor, *, epochs: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for batch in torch.randperm(len(labels), generator=generator).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[batch]), labels[batch]).backward()
            optimizer.step()


def pairs_of(shape: tuple[int, int, int], *, features: int = 6, count: int = 2) -> Pairs:
    """Return random pairs, the same at each call."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, count, *shape, generator=generator)
    rows = torch.rand(2, count, features, generator=generator)
    return Pairs(*images, *rows)
