"""A victim that trains a linear head on frozen features: MNIST splits, feature extractors and heads."""

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from harness.datasets import load_mnist
from harness.networks import cross_entropy, digit_network, fit_network, outputs_of
from harness.runs import Figures
from lightning_poison.adversarial import FGSM
from lightning_poison.models import FitSettings, fit_module
from lightning_poison.models.frozen_features import HEADS
from lightning_poison.randomness import derived_generator, seeded_rng
from lightning_poison.runtime import LocalRuntime

SIZES = {"extractor": 20_000, "victim": 10_000, "pool": 24_000, "validation": 6_000}
FEATURE_LAYER = "6"
HEAD_NAMES = ("logistic", "svm", "fc")


@dataclass
class Scenario:
    """The splits of MNIST and the feature extractor of one seed."""

    parts: dict[str, TensorDataset]
    evaluated_on: TensorDataset
    extractor: nn.Sequential

    @functools.cached_property
    def victim_features(self) -> Tensor:
        return self.features(self.parts["victim"].tensors[0])

    @functools.cached_property
    def evaluation_features(self) -> Tensor:
        return self.features(self.evaluated_on.tensors[0])

    def features(self, images: Tensor) -> Tensor:
        return outputs_of(self.extractor[: int(FEATURE_LAYER) + 1], images)


def build_scenario(
    root: Path, seed: int, *, evaluate_on: str = "test", shifted: bool = False, epsilon: float = 0.0
) -> Scenario:
    """Split MNIST and train the extractor: plainly, with randomly shifted images, or adversarially."""
    images, labels = load_mnist(root, train=True)
    shuffled = torch.randperm(len(labels), generator=derived_generator(seed, "parts"))
    order = torch.split(shuffled, list(SIZES.values()))
    parts = {name: TensorDataset(images[rows], labels[rows]) for name, rows in zip(SIZES, order, strict=True)}
    with seeded_rng(seed):
        network = digit_network(10)
    if epsilon:
        fit_network(network, *parts["extractor"].tensors, epochs=8, adversary=FGSM(epsilon), seed=seed)
    else:
        settings = FitSettings(epochs=4, learning_rate=3e-3, min_steps=0, shift=2 if shifted else 0)
        runtime, generator = LocalRuntime(threads=torch.get_num_threads()), derived_generator(seed, "extractor")
        fit_module(network, parts["extractor"], cross_entropy, settings=settings, runtime=runtime, generator=generator)
    validates = evaluate_on == "validation"
    evaluated_on = parts["validation"] if validates else TensorDataset(*load_mnist(root, train=False))
    return Scenario(parts, evaluated_on, network.eval())


def fully_connected(features: Tensor, labels: Tensor, seed: int) -> Callable[[Tensor], Tensor]:
    """Train one linear layer by SGD and return its prediction function."""
    with seeded_rng(seed):
        layer = nn.Linear(features.shape[1], 10)
    optimizer = torch.optim.SGD(layer.parameters(), lr=3.0, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=20)
    generator = derived_generator(seed, "fc")
    for _ in range(20):
        for rows in torch.split(torch.randperm(len(labels), generator=generator), 64):
            optimizer.zero_grad()
            F.cross_entropy(layer(features[rows]), labels[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        schedule.step()
    return lambda rows: layer(rows).argmax(1)


def head_accuracies(scenario: Scenario, protected: int, images: Tensor, labels: Tensor, seed: int) -> Figures:
    """Train each head with added images and return its accuracies, `[protected class, other classes]`."""
    features = torch.cat([scenario.victim_features, scenario.features(images)])
    targets = torch.cat([scenario.parts["victim"].tensors[1], labels])
    scale = features.norm(dim=1).mean()
    features, test = features / scale, scenario.evaluation_features / scale
    true = scenario.evaluated_on.tensors[1]
    figures: Figures = {}
    for name in HEAD_NAMES:
        if name == "fc":
            predicted = fully_connected(features, targets, seed)(test)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                head = HEADS[name](seed)
                head.fit(features.numpy(), targets.numpy())
            predicted = torch.from_numpy(head.predict(test.numpy()))
        correct, is_protected = (predicted == true).double(), true == protected
        figures[name] = [float(correct[is_protected].mean()), float(correct[~is_protected].mean())]
    return figures
