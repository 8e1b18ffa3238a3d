"""Small images and networks for the attacks with a hidden trigger."""

import torch
from torch import nn

from lightning_poison import PixelRange, Surrogate, Threat
from lightning_poison.data import read_raw

from .conftest import one_thread

NORMALIZED = PixelRange(mean=(0.5, 0.4, 0.3), std=(0.25, 0.2, 0.3))


def network_of(pixels: int, seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(pixels, 16), nn.ReLU(), nn.Linear(16, 3))


def surrogate_of(dataset, *, seed=0, steps=40):
    """Return a small network that is trained on all samples; layer "2" gives 16 features."""
    inputs = torch.stack([read_raw(dataset, index) for index in range(len(dataset))]).float() / 255
    labels = torch.as_tensor(dataset.targets)
    model = network_of(inputs[0].numel(), seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with one_thread():
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
    model.zero_grad()
    return Surrogate(model.eval(), "2")


def craft(attack, dataset, *, budget=6, surrogates=None, holdout=None, seed=0, epsilon=None):
    if surrogates is None:
        surrogates = [surrogate_of(dataset)] if hasattr(dataset, "targets") else [Surrogate(network_of(64, 0), "2")]
    return attack.craft(
        dataset,
        Threat(budget, epsilon=epsilon, clean_label=True),
        surrogates=surrogates,
        holdout=holdout,
        generator=torch.Generator().manual_seed(seed),
    )
