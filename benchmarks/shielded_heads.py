"""A victim that trains a linear head on frozen features: the parts of MNIST, extractors, and heads."""

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from common import Figures, load_mnist
from robust_networks import digit_network, fit_network
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from lightning_poison.adversarial import FGSM
from lightning_poison.models import FitSettings, fit_module
from lightning_poison.models.frozen_features import HEADS
from lightning_poison.randomness import derived_generator, seeded_rng
from lightning_poison.runtime import LocalRuntime

SIZES = {"extractor": 20_000, "victim": 10_000, "pool": 24_000, "validation": 6_000}
FEATURE_LAYER = "6"
JUDGES = ("logistic", "svm", "fc")


@dataclass
class World:
    """What one seed gives: the parts of MNIST, and the extractor."""

    parts: dict[str, TensorDataset]
    judge: TensorDataset
    extractor: nn.Module

    @functools.cached_property
    def victim_features(self) -> Tensor:
        return self.features(self.parts["victim"].tensors[0])

    @functools.cached_property
    def judge_features(self) -> Tensor:
        return self.features(self.judge.tensors[0])

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        return torch.cat([self.extractor[: int(FEATURE_LAYER) + 1](part) for part in images.split(500)])


def cross_entropy(module: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(module(inputs).float(), labels)


def build_world(root: Path, seed: int, *, judge: str = "test", shifted: bool = False, epsilon: float = 0.0) -> World:
    """Divide MNIST and train the extractor: plainly, with images shifted at random, or adversarially."""
    images, labels = load_mnist(root, train=True)
    order = torch.randperm(len(labels), generator=derived_generator(seed, "parts")).split(list(SIZES.values()))
    parts = {name: TensorDataset(images[rows], labels[rows]) for name, rows in zip(SIZES, order, strict=True)}
    with seeded_rng(seed):
        network = digit_network(10)
    if epsilon:
        fit_network(network, *parts["extractor"].tensors, epochs=8, adversary=FGSM(epsilon), seed=seed)
    else:
        settings = FitSettings(epochs=4, learning_rate=3e-3, min_steps=0, shift=2 if shifted else 0)
        runtime, draws = LocalRuntime(threads=torch.get_num_threads()), derived_generator(seed, "extractor")
        fit_module(network, parts["extractor"], cross_entropy, settings=settings, runtime=runtime, generator=draws)
    judged_on = parts["validation"] if judge == "validation" else TensorDataset(*load_mnist(root, train=False))
    return World(parts, judged_on, network.eval())


def fully_connected(features: Tensor, labels: Tensor, seed: int) -> Callable[[Tensor], Tensor]:
    """Train one linear layer by SGD; return what predicts."""
    with seeded_rng(seed):
        layer = nn.Linear(features.shape[1], 10)
    optimizer = torch.optim.SGD(layer.parameters(), lr=3.0, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=20)
    generator = derived_generator(seed, "fc")
    for _ in range(20):
        for rows in torch.randperm(len(labels), generator=generator).split(64):
            optimizer.zero_grad()
            F.cross_entropy(layer(features[rows]), labels[rows]).backward()
            optimizer.step()
        schedule.step()
    return lambda rows: layer(rows).argmax(1)


def judged(world: World, protected: int, images: Tensor, labels: Tensor, seed: int) -> Figures:
    """Return the accuracies of each head that is trained with added images, `(protected, others)`."""
    features = torch.cat([world.victim_features, world.features(images)])
    targets = torch.cat([world.parts["victim"].tensors[1], labels])
    scale = features.norm(dim=1).mean()
    features, test = features / scale, world.judge_features / scale
    true = world.judge.tensors[1]
    figures: Figures = {}
    for name in JUDGES:
        if name == "fc":
            predicted = fully_connected(features, targets, seed)(test)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                head = HEADS[name](seed)
                head.fit(features.numpy(), targets.numpy())
            predicted = torch.from_numpy(head.predict(test.numpy()))
        right, mine = (predicted == true).double(), true == protected
        figures[name] = [float(right[mine].mean()), float(right[~mine].mean())]
    return figures
