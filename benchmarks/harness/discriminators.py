"""Images, perturbations and decision thresholds for the benchmarks of discriminators."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from harness.datasets import first_of_each_class, load_mnist
from harness.runs import with_cpu_seconds
from lightning_poison import PixelRange
from lightning_poison.adversarial import perturb_against
from lightning_poison.models import FitSettings, default_backbone, fit_module
from lightning_poison.randomness import derived_generator
from lightning_poison.runtime import LocalRuntime
from lightning_poison.scorers.discriminator import smooth_noise
from lightning_poison.statistics import class_thresholds

FIT, CALIBRATION, ATTACKER, TESTED = 1000, 500, 1000, 2000
INK, TRIVIAL_MARGIN = 0.1, 0.02
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

    def first_test_images(self, count: int) -> Tensor:
        """Return the positions of the first `count` test images of each digit."""
        return first_of_each_class(self.labels, count)

    @functools.cached_property
    def attacker_network(self) -> nn.Module:
        """The attacker's network, trained on first use."""
        return fit_module(
            default_backbone((1, 28, 28), 10, seed=1000 + self.seed),
            self.attacker,
            _cross_entropy,
            settings=FitSettings(epochs=3),
            runtime=RUNTIME,
            generator=derived_generator(self.seed, "attacker"),
        )

    def perturb(self, perturbation: str, epsilon: float, images: Tensor, labels: Tensor) -> Tensor:
        """Return perturbed images, rounded to 8 bits."""
        generator = derived_generator(self.seed, perturbation)
        if perturbation in ("fgsm", "ink"):
            mask = images > INK if perturbation == "ink" else None
            options: dict[str, Any] = {"epsilon": epsilon, "step_size": epsilon, "steps": 1, "random_start": False}
            perturbed = perturb_against(self.attacker_network, images, labels, mask=mask, **options)
        elif perturbation == "signs":
            perturbed = images + epsilon * (2 * torch.randint(2, images.shape, generator=generator) - 1)
        else:
            perturbed = images + epsilon * smooth_noise((1, 1, 28, 28), generator=generator, cells=5)
        return PIXELS.round_raw(perturbed, around=images, epsilon=epsilon)


def noisy(images: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    if not sigma:
        return images
    return PIXELS.round_raw(images + sigma * torch.randn(images.shape, generator=generator))


def _cross_entropy(module: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(module(inputs), labels)


def fit_scorer(scorer: Any, bench: Bench) -> tuple[Score, float]:
    """Return a function that scores images under every label, `(N, 10)`, and the CPU seconds of the fit."""
    generator = derived_generator(bench.seed, "scorer")
    _, seconds = with_cpu_seconds(lambda: scorer.fit(bench.fit, runtime=RUNTIME, generator=generator))
    return functools.partial(_score_all_labels, scorer), seconds


@torch.no_grad()
def _score_all_labels(scorer: Any, images: Tensor) -> Tensor:
    with RUNTIME.autocast():
        return torch.cat([scorer.score_labels(part) for part in torch.split(images, 500)]).double()


def dark_pixel_scores(images: Tensor) -> Tensor:
    """Return the share of dark gray pixels, in (0, .12), of each image; the same score under every label."""
    return ((images > 0) & (images < 0.12)).double().flatten(1).mean(1, keepdim=True).expand(-1, 10)


def scores_under(labels: Tensor, scores: Tensor) -> Tensor:
    """Return the score of each sample under its own label, of scores `(N, C)` under every label."""
    return scores.gather(1, labels[:, None])[:, 0]


def thresholds_of(score: Score, bench: Bench) -> dict[str, Tensor]:
    """Return the decision thresholds of each class, by stated false-positive rate."""
    images, labels = bench.calibration.tensors
    scores = scores_under(labels, score(images))
    return {
        name: class_thresholds(scores, labels, false_positive_rate=rate, num_classes=10) for name, rate in RATES.items()
    }


def mean_auroc(clean: Tensor, perturbed: Tensor, labels: Tensor) -> float:
    """Return the AUROC of perturbed against clean images, averaged over digits."""
    aurocs: list[float] = []
    for digit in range(10):
        both = torch.cat([clean[labels == digit], perturbed[labels == digit]])
        aurocs.append(roc_auc_score(torch.arange(len(both)) >= len(both) // 2, both))
    return sum(aurocs) / 10


def triviality(detected: list[float], counted: list[float]) -> str:
    """Return, over seeds, whether pixel counting detects as much as a discriminator.

    "no"; "trivial" if it does; "neither" if it does and both detect less than half.
    """
    words = []
    for ours, theirs in zip(detected, counted, strict=True):
        as_well = theirs >= ours - TRIVIAL_MARGIN
        words.append("no" if not as_well else "trivial" if max(ours, theirs) >= 0.5 else "neither")
    return (
        words[0] if len(set(words)) == 1 else ", ".join(f"{word} in {words.count(word)}" for word in sorted(set(words)))
    )
