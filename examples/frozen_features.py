"""Poison against a linear head on frozen features, and why robust features resist it.

In transfer learning, a linear classifier is trained on the frozen features of a pretrained network. An attacker who can
change the training images invisibly moves them along the direction that rotates this classifier
(`adversarial-poisoning`, a plug-in: `pip install lightning-poison-collisions`). The labels stay correct.

This program trains two feature networks on the digits 0 to 4, one normally and one adversarially (on the worst images
within a small ball), and classifies the digits 5 to 9 on the frozen features of each, clean and poisoned.

Run it with `python examples/frozen_features.py`, or with `--data-root FOLDER` for MNIST.
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
"""Of the adversarial training and of the attack, in units of the [0, 1] image."""


def digits(data: TensorDataset, first: int) -> TensorDataset:
    """Return the images of five digits, labeled from 0 to 4."""
    images, labels = data.tensors
    chosen = (labels >= first) & (labels < first + 5)
    return TensorDataset(images[chosen], labels[chosen] - first)


def feature_network(data: TensorDataset, *, robust: bool) -> nn.Module:
    """Return a two-layer classifier of five digits; its layer "2" returns 64 features."""
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
    print(f"{len(inside):,} images of the digits 5 to 9, each pixel changed by at most {RADIUS}\n")
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
