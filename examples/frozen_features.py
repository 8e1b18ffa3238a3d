"""Poison against a linear head on frozen features, and why robust features withstand it.

You took somebody's network, left it as it is, and train a linear classifier on its features: transfer learning. An
attacker who can touch your images, by an amount that nobody sees, moves them along the axis on which your classifier
turns (`adversarial-poisoning`, a plug-in: `pip install lightning-poison-collisions`). The labels stay right.

This program trains two feature networks on the digits 0 to 4, one plainly and one on the worst images within a small
ball (adversarial training), and classifies the digits 5 to 9 on the frozen features of each, clean and poisoned.

Run it: `python examples/frozen_features.py`, or with
`--data-root FOLDER` on MNIST.
"""

import torch
from project import data_root, load
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from lightning_poison import PoisonedDataset, Surrogate, Threat, craft, get_attack
from lightning_poison.adversarial import perturb_against
from lightning_poison.models import FitSettings, FrozenFeatureClassifier, fit_module

RADIUS = 0.15
"""Of both the training and the attack, in units of the [0, 1] image."""


def digits(data: TensorDataset, first: int) -> TensorDataset:
    """Return the images of five digits, labeled from 0 to 4."""
    images, labels = data.tensors
    chosen = (labels >= first) & (labels < first + 5)
    return TensorDataset(images[chosen], labels[chosen] - first)


def feature_network(data: TensorDataset, *, robust: bool) -> nn.Module:
    """Return a network of two layers that reads five digits; its layer "2" gives 64 features."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(data[0][0].numel(), 64), nn.ReLU(), nn.Linear(64, 5))
    draws = torch.Generator().manual_seed(0)

    def loss(module: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        if robust:
            images = perturb_against(module, images, labels, epsilon=RADIUS, steps=3, generator=draws)
        return F.cross_entropy(module(images).float(), labels)

    return fit_module(network, data, loss, settings=FitSettings(epochs=20, batch_size=64, shift=0))


def main() -> None:
    """Compare naive and robust features."""
    train, test = load(data_root())
    outside, inside, judged = digits(train, 0), digits(train, 5), digits(test, 5)
    threat = Threat(budget=len(inside), epsilon=RADIUS, clean_label=True)
    print(f"{len(inside):,} images of the digits 5 to 9, all moved by at most {RADIUS} in each pixel\n")
    for name, robust in (("naive", False), ("robust", True)):
        network = feature_network(outside, robust=robust)
        poison = craft(
            get_attack("adversarial-poisoning", c=10),
            inside,
            threat,
            surrogates=[Surrogate(network, "2")],
            generator=torch.Generator().manual_seed(0),
        )
        for what, data in (("clean", inside), ("poisoned", PoisonedDataset(inside, poison))):
            accuracy = FrozenFeatureClassifier(network, "2", head="svm").fit(data).accuracy(judged)
            print(f"accuracy on {name} features, {what:<10} {accuracy:.3f}")


if __name__ == "__main__":
    main()
