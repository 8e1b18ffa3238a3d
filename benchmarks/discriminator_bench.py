"""Images, attackers and thresholds that the benchmarks of the discriminators share."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import load_mnist
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from lightning_poison import PixelRange
from lightning_poison.adversarial import perturb_against
from lightning_poison.models import FitSettings, default_backbone, fit_module
from lightning_poison.randomness import derived_generator
from lightning_poison.runtime import LocalRuntime
from lightning_poison.scorers.discriminator import smooth_noise
from lightning_poison.statistics import class_thresholds

FIT, CALIBRATION, ATTACKER, TESTED = 1000, 500, 1000, 2000
INK, AS_WELL = 0.1, 0.02
RATES = {"5 %": 0.05, "1 %": 0.01}
PIXELS, RUNTIME = PixelRange(), LocalRuntime(threads=1)
Score = Callable[[Tensor], Tensor]


class Bench:
    """Disjoint parts of the training set, drawn by a seed, and the test set: float32 `(N, 1, 28, 28)` in [0, 1]."""

    def __init__(self, root: Path, seed: int, *, sigma: float = 0.0, faded: bool = False) -> None:
        self.seed = seed
        images, labels = load_mnist(root, train=True)
        order = torch.randperm(len(labels), generator=derived_generator(seed, "training images"))
        members = [order[labels[order] == label] for label in range(10)]
        ends = torch.tensor([FIT, CALIBRATION, ATTACKER, TESTED]).cumsum(0).tolist()
        parts = [torch.cat([own[start:end] for own in members]) for start, end in zip([0, *ends], ends, strict=False)]
        noise = derived_generator(seed, "noise")
        images = noisy(0.25 + 0.5 * images if faded else images, sigma, noise)
        sets = [TensorDataset(images[part], labels[part]) for part in parts]
        self.fit, self.calibration, self.attacker, self.tested = sets
        test_images, self.labels = load_mnist(root, train=False)
        self.images = noisy(0.25 + 0.5 * test_images if faded else test_images, sigma, noise)
        self._network: nn.Module | None = None

    def first_of_each(self, count: int) -> Tensor:
        """Return the positions of the first test images of each digit."""
        return torch.cat([(self.labels == digit).nonzero().flatten()[:count] for digit in range(10)])

    @property
    def network(self) -> nn.Module:
        """The attacker's, trained when it is first asked for."""
        if self._network is None:
            generator = derived_generator(self.seed, "attacker")
            network = default_backbone((1, 28, 28), 10, seed=1000 + self.seed)
            self._network = fit_module(
                network,
                self.attacker,
                cross_entropy,
                settings=FitSettings(epochs=3),
                runtime=RUNTIME,
                generator=generator,
            )
        return self._network

    def changed(self, change: str, epsilon: float, images: Tensor, labels: Tensor) -> Tensor:
        """Return changed images, on the grid of 8 bits."""
        generator = derived_generator(self.seed, change)
        if change in ("fgsm", "ink"):
            mask = images > INK if change == "ink" else None
            options: dict[str, Any] = {"epsilon": epsilon, "step_size": epsilon, "steps": 1, "random_start": False}
            found = perturb_against(self.network, images, labels, mask=mask, **options)
        elif change == "signs":
            found = images + epsilon * (2 * torch.randint(2, images.shape, generator=generator) - 1)
        else:
            found = images + epsilon * smooth_noise((1, 1, 28, 28), generator=generator, cells=5)
        return PIXELS.round_raw(found, around=images, epsilon=epsilon)


def noisy(images: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    if not sigma:
        return images
    return PIXELS.round_raw(images + sigma * torch.randn(images.shape, generator=generator))


def cross_entropy(module: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(module(inputs), labels)


def fitted(scorer: Any, bench: Bench) -> tuple[Score, float]:
    """Return what scores images under every label, `(N, 10)`, and the CPU seconds of its fit."""
    start = time.process_time()
    scorer.fit(bench.fit, runtime=RUNTIME, generator=derived_generator(bench.seed, "scorer"))
    return lambda images: scored(scorer, images), time.process_time() - start


@torch.no_grad()
def scored(scorer: Any, images: Tensor) -> Tensor:
    with RUNTIME.autocast():
        return torch.cat([scorer.score_labels(part) for part in images.split(500)]).double()


def dark_pixels(images: Tensor) -> Tensor:
    """Count what a flat black background does not have; the same under every label."""
    return ((images > 0) & (images < 0.12)).double().flatten(1).mean(1, keepdim=True).expand(-1, 10)


def own(scores: Tensor, labels: Tensor) -> Tensor:
    return scores.gather(1, labels[:, None])[:, 0]


def thresholds_of(score: Score, bench: Bench) -> dict[str, Tensor]:
    images, labels = bench.calibration.tensors
    scores = own(score(images), labels)
    return {
        name: class_thresholds(scores, labels, false_positive_rate=rate, num_classes=10) for name, rate in RATES.items()
    }


def mean_auroc(clean: Tensor, changed: Tensor, labels: Tensor) -> float:
    """Return the mean over digits."""
    aurocs = []
    for digit in range(10):
        both = torch.cat([clean[labels == digit], changed[labels == digit]])
        aurocs.append(roc_auc_score(torch.arange(len(both)) >= len(both) // 2, both))
    return sum(aurocs) / 10


def said_of(found: list[float], counted: list[float]) -> str:
    """Say for all seeds whether counting finds as much as a discriminator: trivial, neither finds half, or no."""
    words = []
    for ours, theirs in zip(found, counted, strict=True):
        as_well = theirs >= ours - AS_WELL
        words.append("no" if not as_well else "trivial" if max(ours, theirs) >= 0.5 else "neither")
    return (
        words[0] if len(set(words)) == 1 else ", ".join(f"{word} in {words.count(word)}" for word in sorted(set(words)))
    )
