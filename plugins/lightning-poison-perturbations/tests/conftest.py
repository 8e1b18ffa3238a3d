from collections.abc import Iterator

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import Subset, TensorDataset

from lightning_poison import PixelRange, Surrogate, Threat, craft


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
def pixels() -> PixelRange:
    return PixelRange(levels=17)


@pytest.fixture(scope="session")
def digits() -> TensorDataset:
    """Real images: 8 × 8 pixels with 17 gray levels."""
    images, labels = load_digits(return_X_y=True)
    return TensorDataset(torch.tensor(images).float().view(-1, 1, 8, 8) / 16, torch.tensor(labels))


@pytest.fixture(scope="session")
def dataset(digits: TensorDataset) -> Subset:
    return Subset(digits, range(900, 1797))


@pytest.fixture(scope="session")
def model(digits: TensorDataset) -> nn.Module:
    """A classifier trained on other images than those of `dataset`."""
    images, labels = digits[:900]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(100):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
    return model.eval()


@pytest.fixture
def surrogate(model: nn.Module) -> Surrogate:
    return Surrogate(model, "2")


@pytest.fixture
def craft_on_digits(dataset, surrogate, pixels):
    """Return a function that crafts poison of the digits and returns it with the original images."""

    def run(attack, budget=80, seed=0, **threat_settings):
        generator = torch.Generator().manual_seed(seed)
        threat = Threat(budget, clean_label=True, pixels=pixels, **threat_settings)
        poison = craft(attack, dataset, threat, surrogates=[surrogate], generator=generator)
        return poison, torch.stack([dataset[index][0] for index in poison.indices.tolist()])

    return run
