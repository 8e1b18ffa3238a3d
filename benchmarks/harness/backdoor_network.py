"""The victim of the backdoor benchmarks: a network of two convolutions, trained from scratch with Adam."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.networks import digit_network
from lightning_poison.randomness import isolated_rng

EPOCHS, BATCH, LEARNING_RATE = 4, 128, 3e-3


def fit(images: Tensor, labels: Tensor, *, seed: int) -> nn.Sequential:
    """Train a network on float images `(N, 1, 28, 28)`."""
    with isolated_rng(seed, torch.device("cpu")):
        model = digit_network(10)
        steps = EPOCHS * (len(labels) // BATCH)
        optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.2)
        for _ in range(EPOCHS):
            for batch in torch.split(torch.randperm(len(labels)), BATCH)[: steps // EPOCHS]:
                optimizer.zero_grad(set_to_none=True)
                F.cross_entropy(model(images[batch]), labels[batch]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
    return model.eval()
