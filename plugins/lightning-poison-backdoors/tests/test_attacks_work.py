"""Each attack against an undefended network trained from scratch on small real images."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import Dataset

from lightning_poison import PoisonedDataset, Surrogate
from lightning_poison_backdoors import (
    AdaptiveBlend,
    AdaptivePatch,
    BadNets,
    Blended,
    CleanLabelBackdoor,
    Refool,
    SampleSpecific,
    Sig,
    TaCT,
)

WHITE = [[255, 255], [255, 255]]
TRAINED = 1300


class Digits(Dataset):
    def __init__(self, part):
        images, labels = load_digits(return_X_y=True)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[part]
        self.data = (torch.tensor(images).view(-1, 1, 8, 8) * 255 / 16).round().to(torch.uint8)[order]
        self.targets = torch.tensor(labels)[order]
        self.transform = lambda image: image.float() / 255

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return self.transform(self.data[index]), int(self.targets[index])


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def train_set():
    return Digits(slice(TRAINED))


@pytest.fixture(scope="module")
def test_set():
    return Digits(slice(TRAINED, None))


@pytest.fixture(scope="module")
def clean_model(train_set):
    return train(train_set, seed=1)


def train(dataset, *, seed):
    inputs, labels = columns_of(dataset)
    with torch.random.fork_rng(devices=[]):
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
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(15):
            for batch in torch.randperm(len(labels)).split(32):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(inputs[batch]), labels[batch]).backward()
                optimizer.step()
    return model.eval()


def columns_of(dataset):
    inputs, *rest = zip(*(dataset[index] for index in range(len(dataset))), strict=True)
    return [torch.stack(inputs), *(torch.tensor(column) for column in rest)]


@torch.no_grad()
def predict(model, inputs):
    return model(inputs).argmax(1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attack", "budget", "min_success"),
    [
        (BadNets(3, pattern=WHITE), 65, 0.9),
        (BadNets(7, source_class=1, pattern=WHITE), 40, 0.9),
        (BadNets("next", pattern=WHITE), 430, 0.8),
        (Blended(amplitude=0.3), 65, 0.9),
        (Sig(3, amplitude=0.5, test_amplitude=0.7, frequency=1.5), 120, 0.5),
        (CleanLabelBackdoor(3), 65, 0.5),
        (AdaptivePatch(pattern=WHITE), 80, 0.8),
        (AdaptiveBlend(amplitude=0.3, test_amplitude=0.4), 80, 0.8),
        (Refool(), 65, 0.8),
        (SampleSpecific(amplitude=0.3), 65, 0.8),
        (TaCT(3, source_class=1, pattern=WHITE), 80, 0.8),
    ],
    ids=lambda value: value.name if hasattr(value, "name") else None,
)
def test_only_triggered_digits_are_misclassified(
    attack, budget, min_success, train_set, test_set, clean_model, poison_of
):
    poison = poison_of(attack, train_set, budget=budget, surrogates=[Surrogate(clean_model, "6")])
    victim = train(PoisonedDataset(train_set, poison), seed=0)
    inputs, true, wanted = columns_of(poison.objective.evaluation_set(test_set))
    succeeded = [poison.objective.success(predict(model, inputs), true, wanted) for model in (victim, clean_model)]
    images, labels = columns_of(test_set)
    success, unpoisoned = (float(each.float().mean()) for each in succeeded)
    clean = float((predict(victim, images) == labels).float().mean())
    assert success >= min_success, (success, unpoisoned, clean)
    assert unpoisoned <= 0.3, (success, unpoisoned, clean)
    assert clean >= 0.93, (success, unpoisoned, clean)
