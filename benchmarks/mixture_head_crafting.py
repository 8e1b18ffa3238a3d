"""Paper 001's claim that an LGM head makes poison harder to craft, in the paper's settings: MNIST and CIFAR-10.

    python benchmarks/mixture_head_crafting.py --data-root data --results mixture_head.jsonl --output figures

Yaseen, Aadil, Sargsyan 2020 (arXiv 2003.00798). From the paper: MNIST with 2 features, CIFAR-10, base networks trained
on the training set, poison made from test images, random pairs of base and target, β = 8e-3, identity covariances
(sections 2.2, 4.1 to 4.3). Not stated there and chosen here: margin 1, likelihood weight 1, the optimizer. Different,
to save time: the library's `SmallConvNet` instead of the paper's network and of VGG-19, 20,000 training images, 50
poisons instead of 100, at most 120 steps instead of 1,000 (with a faster method). CIFAR-10 is in JPEG form (q75), so
the numbers are not comparable with those on the original; its network has 32 features.

For each twin, LGM and cross-entropy, on the same pairs of test images that both classify correctly (otherwise a network
that misclassifies the target would count as harder to attack), rounded to 256 gray levels:

- eq. 1 as printed, β = 8e-3 against ‖f(x) − f(t)‖². This depends on the scale of the features;
- the same with the feature term in units of ‖f(b) − f(t)‖², and β = 8e-3;
- the required perturbation: for each pair, the smallest L2 norm over five β, and the smallest of five L∞ radii, for
  which it collides; infinite if it never does. This depends neither on β nor on the scale.

A poison collides if the nearest class mean of the training images' features is that of the target's class. AUROC is
that of the claimed label's score, −log N(f; μ_y, I) or −log p(y|x) of the twin, against the clean test images.

With `--output`, figures 1 to 5 (and 8) of the paper are drawn for the first seed. `likelihood_mnist.py` has the
comparison with 32 features on MNIST.
"""

import functools
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from harness.datasets import TO_FLOAT, ShiftedDataset, TrainTestImages, load_mnist
from harness.lgm_twins import LGMClassifier, SoftmaxClassifier, class_means, features_of, train
from harness.networks import accuracy_of, outputs_of
from harness.runs import Figures, Results, benchmark_parser, print_table, share, silence_lightning, spread_of, start
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torchvision.datasets import ImageFolder

from lightning_poison import PixelRange, Surrogate
from lightning_poison.attacks import RawFeatures
from lightning_poison.contexts import frozen
from lightning_poison.models import SmallConvNet
from lightning_poison.randomness import seeded_rng
from lightning_poison.report import (
    plot_features,
    plot_likelihood_histogram,
    plot_poison_beside_base,
    plot_roc,
    save_figure,
)
from lightning_poison_collisions import FeatureDistance, collide, collide_within, squared_norm

BETA, BETAS, RADII = 8e-3, (5e-4, 2e-3, 8e-3, 3.2e-2, 0.128), (0.025, 0.05, 0.1, 0.2, 0.3)
TRAINING, TEST, POISONS, STEPS, BOUNDED_STEPS = 20_000, 10_000, 50, 120, 30
PLOTTED_POISONS, PLOTTED_IMAGES = 20, 3_000
TWINS = {"LGM": LGMClassifier, "cross-entropy": SoftmaxClassifier}


@dataclass
class Setting:
    """A data set, the number of features, the settings of the training, and numbers of images."""

    name: str
    features: int
    epochs: int
    mirror: bool
    training: int = TRAINING
    test: int = TEST
    poisons: int = POISONS


SETTINGS = (Setting("MNIST", 2, 4, mirror=False), Setting("CIFAR-10 (JPEG q75)", 32, 4, mirror=True))


class Unscaled:
    """‖f(x) − f(t)‖², as in eq. 1 of the paper."""

    def __init__(self, relative: FeatureDistance, initial: Tensor) -> None:
        self.relative, self.initial = relative, initial

    def __call__(self, images: Tensor) -> Tensor:
        return self.initial * self.relative(images)

    def select(self, rows: Tensor) -> Self:
        return type(self)(self.relative.select(rows), self.initial[rows])


def load(root: Path, setting: Setting, seed: int) -> TrainTestImages:
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for train_part, count in ((True, setting.training), (False, setting.test)):
        if setting.name == "MNIST":
            images, labels = load_mnist(root, train=train_part)
            chosen = torch.randperm(len(labels), generator=generator)[:count]
            parts += [images[chosen], labels[chosen]]
        else:
            folder = ImageFolder(root / "cifar10" / ("train" if train_part else "test"), TO_FLOAT)
            chosen = torch.randperm(len(folder), generator=generator)[:count]
            samples = [folder[index] for index in chosen.tolist()]
            parts += [torch.stack([image for image, _ in samples]), torch.tensor([label for _, label in samples])]
    return TrainTestImages(*parts)


def draw_pairs(allowed: Tensor, labels: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return positions of bases and of targets, of different classes, among the allowed ones."""
    order = torch.randperm(len(allowed), generator=torch.Generator().manual_seed(seed))[: 4 * count]
    order = allowed[order].view(2, -1)
    bases, targets = order[:, labels[order[0]] != labels[order[1]]][:, :count]
    return bases, targets


@torch.no_grad()
def label_scores(module: Any, images: Tensor, labels: Tensor) -> Tensor:
    """Return −log N(f; μ_y, I) of an LGM classifier, or −log p(y|x) of its twin."""
    if isinstance(module, LGMClassifier):
        pairs = zip(torch.split(images, 500), torch.split(labels, 500), strict=True)
        return -torch.cat([module.log_likelihood(batch) for batch in pairs])
    return torch.nn.functional.cross_entropy(outputs_of(module, images), labels, reduction="none")


class Attacker:
    """Crafts poison on one model and measures the result."""

    def __init__(self, module: Any, data: TrainTestImages) -> None:
        self.module = module
        self.means = class_means(module, data.images, data.labels)

    def set_pairs(self, data: TrainTestImages, bases: Tensor, targets: Tensor) -> None:
        """Set the pairs to attack, as positions in the test set."""
        self.bases, self.targets = data.test_images[bases], data.test_images[targets]
        self.claimed, self.target_labels = data.test_labels[bases], data.test_labels[targets]
        maps = [RawFeatures(Surrogate(self.module, "body"), PixelRange())]
        self.relative = FeatureDistance(maps, self.bases, self.targets)
        self.initial = squared_norm(features_of(self.module, self.bases) - features_of(self.module, self.targets))

    def unbounded(self, beta: float, *, scaled: bool = True) -> Tensor:
        distance = self.relative if scaled else Unscaled(self.relative, self.initial)
        with frozen(self.module):
            images = collide(distance, self.bases, beta=beta, steps=STEPS, learning_rate=10.0 if scaled else 0.1)
        return PixelRange().round_raw(images)

    def bounded(self, epsilon: float) -> Tensor:
        with frozen(self.module):
            images = collide_within(self.relative, self.bases, epsilon=epsilon, steps=BOUNDED_STEPS)
        return PixelRange().round_raw(images, around=self.bases, epsilon=epsilon)

    def nearest(self, images: Tensor) -> Tensor:
        """Return the class of the nearest mean."""
        return torch.cdist(features_of(self.module, images), self.means).argmin(1)

    def collides(self, images: Tensor) -> Tensor:
        return self.nearest(images) == self.target_labels

    def summary(self, images: Tensor, clean: Tensor) -> Figures:
        """Return the share that collides, the size of the perturbation, and the AUROC against clean images."""
        change = (images - self.bases).flatten(1)
        scores = torch.cat([clean, label_scores(self.module, images, self.claimed)])
        return {
            "collide": share(self.collides(images)),
            "l2": float(change.norm(dim=1).median()),
            "linf": float(change.abs().amax(1).median()),
            "auroc": roc_auc_score(torch.arange(len(scores)) >= len(clean), scores),
        }


def required(collided: list[Tensor], sizes: list[Tensor]) -> float:
    """Return the median over pairs of the smallest size at which they collide."""
    candidates = [torch.where(hit, size.double(), math.inf) for hit, size in zip(collided, sizes, strict=True)]
    smallest: list[float] = torch.stack(candidates).amin(0).tolist()
    return statistics.median(smallest)


def attacker_on(kind: type[Any], setting: Setting, data: TrainTestImages, seed: int) -> Attacker:
    """Train one of the twins."""
    with seeded_rng(seed):
        body = SmallConvNet(data.images.shape[1:], setting.features)
        module = kind(body, setting.features, learning_rate=5e-3)
    shift = 1 if setting.name == "MNIST" else 2
    shifted = ShiftedDataset(data.images, data.labels, shift=shift, mirror=setting.mirror)
    train(module, shifted, epochs=setting.epochs, seed=seed)
    return Attacker(module, data)


def measure(root: Path, setting: Setting, output: Path | None, seed: int) -> Figures:
    data = load(root, setting, seed)
    attackers = {name: attacker_on(kind, setting, data, seed) for name, kind in TWINS.items()}
    correct = [attacker.nearest(data.test_images) == data.test_labels for attacker in attackers.values()]
    pairs = draw_pairs(torch.stack(correct).all(0).nonzero().flatten(), data.test_labels, setting.poisons, seed)
    figures: Figures = {}
    drawn = {}
    for name, attacker in attackers.items():
        attacker.set_pairs(data, *pairs)
        clean = label_scores(attacker.module, data.test_images, data.test_labels)
        grid = [attacker.unbounded(beta) for beta in BETAS]
        balls = [attacker.bounded(radius) for radius in RADII]
        lengths = [(images - attacker.bases).flatten(1).norm(dim=1) for images in grid]
        radii = [torch.full((len(attacker.bases),), radius) for radius in RADII]
        figures[name] = {
            "accuracy": accuracy_of(attacker.module, data.test_images, data.test_labels),
            "as printed": attacker.summary(attacker.unbounded(BETA, scaled=False), clean),
            "scaled": attacker.summary(grid[BETAS.index(BETA)], clean),
            "L∞ 0.1": attacker.summary(balls[RADII.index(0.1)], clean),
            "needed L2": required([attacker.collides(images) for images in grid], lengths),
            "needed L∞": required([attacker.collides(images) for images in balls], radii),
        }
        drawn[name] = (attacker, grid[BETAS.index(BETA)], clean)
    if output is not None:
        draw(setting, data, drawn, output)
    return figures


def draw(setting: Setting, data: TrainTestImages, drawn: dict[str, Any], output: Path) -> None:
    """Draw the paper's figures."""
    curves = {}
    for name, (attacker, poison, clean) in drawn.items():
        stem = f"{setting.name.split()[0].lower()}-{name}"
        scores = torch.cat([clean, label_scores(attacker.module, poison, attacker.claimed)])
        is_poison = torch.arange(len(scores)) >= len(clean)
        curves[name] = (scores, is_poison)
        score_name = "negative log-likelihood" if name == "LGM" else "negative log-probability"
        histogram = plot_likelihood_histogram(scores, is_poison, score_name=score_name)
        save_figure(histogram, output / f"{stem}-histogram.png")
        training = features_of(attacker.module, data.images[:PLOTTED_IMAGES])
        save_figure(plot_features(training, data.labels[:PLOTTED_IMAGES]), output / f"{stem}-training-features.png")
        few = features_of(attacker.module, poison[:PLOTTED_POISONS])
        points = torch.cat([features_of(attacker.module, data.test_images[:PLOTTED_IMAGES]), few])
        labels = torch.cat([data.test_labels[:PLOTTED_IMAGES], attacker.claimed[:PLOTTED_POISONS]])
        marked = torch.arange(len(points)) >= PLOTTED_IMAGES
        save_figure(plot_features(points, labels, marked), output / f"{stem}-poisoned-features.png")
        picture = plot_poison_beside_base(poison, attacker.bases, attacker.targets)
        save_figure(picture, output / f"{stem}-poison.png")
    save_figure(plot_roc(curves), output / f"{setting.name.split()[0].lower()}-roc.png")


def report(setting: Setting, runs: list[Figures]) -> None:
    rows = []
    for twin in TWINS:
        for attack in ("as printed", "scaled", "L∞ 0.1"):
            figures = [spread_of(runs, twin, attack, name, form=".3f") for name in ("collide", "l2", "linf", "auroc")]
            rows.append([attack, twin, *figures])
    print(f"\n{setting.name}, {setting.features} features, {POISONS} poisons per run")
    print_table(["attack", "crafted on", "collide", "L2 (median)", "L∞ (median)", "AUROC"], sorted(rows))
    print_table(
        ["trained with", "test accuracy", "required L2", "required L∞"],
        [
            [
                twin,
                spread_of(runs, twin, "accuracy"),
                spread_of(runs, twin, "needed L2", form=".2f"),
                spread_of(runs, twin, "needed L∞", form=".3f"),
            ]
            for twin in TWINS
        ],
    )
    print(f'"LGM makes poison harder to craft", {setting.name}: {verdict(runs)}', flush=True)


def verdict(runs: list[Figures]) -> str:
    """Return a comparison of the required perturbations, over seeds."""
    words = []
    for figure in ("needed L2", "needed L∞"):
        pairs = [(run["LGM"][figure], run["cross-entropy"][figure]) for run in runs]
        more, less = sum(ours > theirs for ours, theirs in pairs), sum(ours < theirs for ours, theirs in pairs)
        name = figure.replace("needed", "required")
        words.append(f"{name} is larger with LGM in {more}, smaller in {less} of {len(runs)} seeds")
        if more == len(runs):
            words[-1] += " (harder)"
        elif not more:
            words[-1] += " (not harder)"
    return "; ".join(words) + "."


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--output", type=Path, help="folder for the figures of the first seed")
    args = parser.parse_args()
    silence_lightning()
    start(args)
    results = Results(args.results)
    found: dict[str, list[Figures]] = {setting.name: [] for setting in SETTINGS}
    for seed in range(args.seeds):
        for setting in SETTINGS:
            output = args.output if seed == 0 else None
            key = {"data": setting.name, "features": setting.features, "pairs": "classified correctly", "seed": seed}
            run = functools.partial(measure, args.data_root, setting, output, seed)
            found[setting.name].append(results.get(key, run))
    for setting in SETTINGS:
        report(setting, found[setting.name])


if __name__ == "__main__":
    main()
