"""Paper 001's own settings: features in two dimensions, CIFAR-10, and "LGM makes poison harder to craft".

    python benchmarks/paper_001.py --data-root data --results paper.jsonl --output figures

Yaseen, Aadil, Sargsyan 2020 (arXiv 2003.00798). From the paper: MNIST with 2 features, CIFAR-10, base networks trained
on the training set, poison made of test images, pairs of base and target drawn at random, β = 8e-3, identity
covariances (sections 2.2, 4.1 to 4.3). Not stated there, and so ours: margin 1, likelihood weight 1, the optimizer.
Different, for the time that it takes: the library's `SmallConvNet` in place of the paper's network and of VGG-19, with
20,000 training images, 50 poisons in place of 100, at most 120 steps in place of 1,000 (by a faster method). CIFAR-10
is the JPEG form (q75), so no figure compares with one from the original; the network has 32 features there.

For each twin, LGM and cross-entropy, on the same pairs, of test images that both read rightly (else a network that
misreads the target counts as harder to attack), rounded to 256 gray levels:

- eq. 1 as printed, β = 8e-3 against ‖f(x) − f(t)‖². What it asks for depends on the scale of the features;
- the same with the feature term in units of ‖f(b) − f(t)‖², and β = 8e-3;
- the change that is needed: for each pair the smallest L2 of those among five β, and the smallest of five L∞ radii, at
  which it collides; infinite where it never does. This depends neither on β nor on the scale.

A poison collides where the nearest mean of the training images' features is that of the target's class. AUROC is
that of the claimed label's score, −log N(f; μ_y, I) or −log p(y|x) of the twin, against the clean test images.

Figures 1 to 5 (and 8) of the paper are drawn for the first seed where `--output` is given. With 32 features on MNIST
the comparison stands in `likelihood_mnist.py`.
"""

import logging
import math
import statistics
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from common import Figures, Results, arguments, load_mnist, print_setting, print_table, spread
from networks import LGMClassifier, Moved, SoftmaxClassifier, accuracy, train
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from lightning_poison import PixelRange, Surrogate
from lightning_poison.attacks import RawFeatures
from lightning_poison.contexts import frozen
from lightning_poison.models import SmallConvNet
from lightning_poison.randomness import seeded_rng
from lightning_poison.report import plot_features, plot_likelihood_histogram, plot_poison_beside_base, plot_roc
from lightning_poison.report.style import save_figure
from lightning_poison_collisions.bounded import collide_within
from lightning_poison_collisions.distance import Distance, FeatureDistance, squared_norm
from lightning_poison_collisions.splitting import collide

BETA, BETAS, RADII = 8e-3, (5e-4, 2e-3, 8e-3, 3.2e-2, 0.128), (0.025, 0.05, 0.1, 0.2, 0.3)
TRAINING, TEST, POISONS, STEPS, BOUNDED_STEPS = 20_000, 10_000, 50, 120, 30
SHOWN_POISONS, SHOWN_IMAGES = 20, 3_000
TWINS = {"LGM": LGMClassifier, "cross-entropy": SoftmaxClassifier}


@dataclass
class Setting:
    """A data set, how many features, and how it is trained on."""

    name: str
    features: int
    epochs: int
    mirror: bool


SETTINGS = (Setting("MNIST", 2, 4, mirror=False), Setting("CIFAR-10 (JPEG q75)", 32, 4, mirror=True))


@dataclass
class Data:
    """Training and test images `(N, C, H, W)` in [0, 1] with labels."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor


class Unscaled:
    """‖f(x) − f(t)‖², as eq. 1 of the paper has it."""

    def __init__(self, relative: Distance, initial: Tensor) -> None:
        self.relative, self.initial = relative, initial

    def __call__(self, images: Tensor) -> Tensor:
        return self.initial * self.relative(images)

    def select(self, rows: Tensor) -> Self:
        return type(self)(self.relative.select(rows), self.initial[rows])


def load(root: Path, setting: Setting, seed: int) -> Data:
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for train_part, count in ((True, TRAINING), (False, TEST)):
        if setting.name == "MNIST":
            images, labels = load_mnist(root, train=train_part)
            chosen = torch.randperm(len(labels), generator=generator)[:count]
            parts += [images[chosen], labels[chosen]]
        else:
            transform = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
            folder = ImageFolder(root / "cifar10" / ("train" if train_part else "test"), transform)
            chosen = torch.randperm(len(folder), generator=generator)[:count]
            samples = [folder[index] for index in chosen.tolist()]
            parts += [torch.stack([image for image, _ in samples]), torch.tensor([label for _, label in samples])]
    return Data(*parts)


def draw_pairs(allowed: Tensor, labels: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return positions of bases and of targets, of different classes, among the allowed ones."""
    order = torch.randperm(len(allowed), generator=torch.Generator().manual_seed(seed))[: 4 * count]
    order = allowed[order].view(2, -1)
    bases, targets = order[:, labels[order[0]] != labels[order[1]]][:, :count]
    return bases, targets


@torch.no_grad()
def features(module: Any, images: Tensor) -> Tensor:
    return torch.cat([module.body(batch).float() for batch in images.split(500)])


@torch.no_grad()
def suspicion(module: Any, images: Tensor, labels: Tensor) -> Tensor:
    """Return −log N(f; μ_y, I), or −log p(y|x) of a twin without a head that could say it."""
    if isinstance(module, LGMClassifier):
        pairs = zip(images.split(500), labels.split(500), strict=True)
        return -torch.cat([module.log_likelihood(batch) for batch in pairs])
    logits = torch.cat([module(batch) for batch in images.split(500)])
    return torch.nn.functional.cross_entropy(logits, labels, reduction="none")


class Attacker:
    """Crafts poison on one model and looks at how far it got."""

    def __init__(self, module: Any, data: Data) -> None:
        self.module = module
        points = features(module, data.images)
        self.means = torch.stack([points[data.labels == number].mean(0) for number in range(10)])

    def aim(self, data: Data, bases: Tensor, targets: Tensor) -> None:
        """Take pairs to attack, positions among the test images."""
        self.bases, self.targets = data.test_images[bases], data.test_images[targets]
        self.claimed, self.target_labels = data.test_labels[bases], data.test_labels[targets]
        maps = [RawFeatures(Surrogate(self.module, "body"), PixelRange())]
        self.relative = FeatureDistance(maps, self.bases, self.targets)
        self.initial = squared_norm(features(self.module, self.bases) - features(self.module, self.targets))

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
        return torch.cdist(features(self.module, images), self.means).argmin(1)

    def collides(self, images: Tensor) -> Tensor:
        return self.nearest(images) == self.target_labels

    def summary(self, images: Tensor, clean: Tensor) -> Figures:
        """Return how many collide, how much was changed, and how well the score ranks them above clean images."""
        change = (images - self.bases).flatten(1)
        scores = torch.cat([clean, suspicion(self.module, images, self.claimed)])
        return {
            "collide": float(self.collides(images).double().mean()),
            "l2": float(change.norm(dim=1).median()),
            "linf": float(change.abs().amax(1).median()),
            "auroc": roc_auc_score(torch.arange(len(scores)) >= len(clean), scores),
        }


def needed(collided: list[Tensor], sizes: list[Tensor]) -> float:
    """Return the median over pairs of the smallest size at which they collide."""
    found = [torch.where(hit, size.double(), math.inf) for hit, size in zip(collided, sizes, strict=True)]
    return statistics.median(torch.stack(found).amin(0).tolist())


def attacker_on(kind: type[Any], setting: Setting, data: Data, seed: int) -> Attacker:
    """Train one of the twins."""
    with seeded_rng(seed):
        body = SmallConvNet(data.images.shape[1:], setting.features)
        module = kind(body, setting.features, learning_rate=5e-3)
    shift = 1 if setting.name == "MNIST" else 2
    moved = Moved(data.images, data.labels, shift=shift, mirror=setting.mirror)
    train(module, moved, epochs=setting.epochs, seed=seed)
    return Attacker(module, data)


def measure(setting: Setting, data: Data, seed: int, output: Path | None) -> Figures:
    attackers = {name: attacker_on(kind, setting, data, seed) for name, kind in TWINS.items()}
    read = [attacker.nearest(data.test_images) == data.test_labels for attacker in attackers.values()]
    pairs = draw_pairs(torch.stack(read).all(0).nonzero().flatten(), data.test_labels, POISONS, seed)
    figures: Figures = {}
    drawn = {}
    for name, attacker in attackers.items():
        attacker.aim(data, *pairs)
        clean = suspicion(attacker.module, data.test_images, data.test_labels)
        grid = [attacker.unbounded(beta) for beta in BETAS]
        balls = [attacker.bounded(radius) for radius in RADII]
        lengths = [(images - attacker.bases).flatten(1).norm(dim=1) for images in grid]
        radii = [torch.full((POISONS,), radius) for radius in RADII]
        figures[name] = {
            "accuracy": accuracy(attacker.module, data.test_images, data.test_labels),
            "as printed": attacker.summary(attacker.unbounded(BETA, scaled=False), clean),
            "scaled": attacker.summary(grid[BETAS.index(BETA)], clean),
            "L∞ 0.1": attacker.summary(balls[RADII.index(0.1)], clean),
            "needed L2": needed([attacker.collides(images) for images in grid], lengths),
            "needed L∞": needed([attacker.collides(images) for images in balls], radii),
        }
        drawn[name] = (attacker, grid[BETAS.index(BETA)], clean)
    if output is not None:
        draw(setting, data, drawn, output)
    return figures


def draw(setting: Setting, data: Data, drawn: dict[str, Any], output: Path) -> None:
    """Draw the paper's figures."""
    curves = {}
    for name, (attacker, poison, clean) in drawn.items():
        stem = f"{setting.name.split()[0].lower()}-{name}"
        scores = torch.cat([clean, suspicion(attacker.module, poison, attacker.claimed)])
        is_poison = torch.arange(len(scores)) >= len(clean)
        curves[name] = (scores, is_poison)
        what = "negative log-likelihood" if name == "LGM" else "negative log-probability"
        save_figure(plot_likelihood_histogram(scores, is_poison, score_name=what), output / f"{stem}-histogram.png")
        known, seen = features(attacker.module, data.images[:SHOWN_IMAGES]), data.labels[:SHOWN_IMAGES]
        save_figure(plot_features(known, seen), output / f"{stem}-training-features.png")
        few = features(attacker.module, poison[:SHOWN_POISONS])
        points = torch.cat([features(attacker.module, data.test_images[:SHOWN_IMAGES]), few])
        labels = torch.cat([data.test_labels[:SHOWN_IMAGES], attacker.claimed[:SHOWN_POISONS]])
        marked = torch.arange(len(points)) >= SHOWN_IMAGES
        save_figure(plot_features(points, labels, marked), output / f"{stem}-poisoned-features.png")
        picture = plot_poison_beside_base(poison, attacker.bases, attacker.targets)
        save_figure(picture, output / f"{stem}-poison.png")
    save_figure(plot_roc(curves), output / f"{setting.name.split()[0].lower()}-roc.png")


def report(setting: Setting, runs: list[Figures]) -> None:
    def column(twin: str, *path: str, form: str) -> str:
        values: list[Any] = [run[twin] for run in runs]
        for part in path:
            values = [value[part] for value in values]
        return spread(values, form)

    rows = []
    for twin in TWINS:
        for attack in ("as printed", "scaled", "L∞ 0.1"):
            figures = [column(twin, attack, figure, form=".3f") for figure in ("collide", "l2", "linf", "auroc")]
            rows.append([attack, twin, *figures])
    print(f"\n{setting.name}, {setting.features} features, {POISONS} poisons a run")
    print_table(["attack", "crafted on", "collide", "L2 (median)", "L∞ (median)", "AUROC"], sorted(rows))
    print_table(
        ["trained with", "test accuracy", "L2 needed", "L∞ needed"],
        [
            [
                twin,
                column(twin, "accuracy", form=".4f"),
                column(twin, "needed L2", form=".2f"),
                column(twin, "needed L∞", form=".3f"),
            ]
            for twin in TWINS
        ],
    )
    print(f'"LGM makes poison harder to craft", {setting.name}: {verdict(runs)}', flush=True)


def verdict(runs: list[Figures]) -> str:
    """Say in words what the needed changes say, seed by seed."""
    words = []
    for figure in ("needed L2", "needed L∞"):
        pairs = [(run["LGM"][figure], run["cross-entropy"][figure]) for run in runs]
        more, less = sum(ours > theirs for ours, theirs in pairs), sum(ours < theirs for ours, theirs in pairs)
        words.append(f"{figure} is larger with LGM in {more}, smaller in {less} of {len(runs)} seeds")
        if more == len(runs):
            words[-1] += " (harder)"
        elif not more:
            words[-1] += " (not harder)"
    return "; ".join(words) + "."


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--output", type=Path, help="folder for the figures of the first seed")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    print_setting("paper_001", args)
    results = Results(args.results)
    found: dict[str, list[Figures]] = {setting.name: [] for setting in SETTINGS}
    for seed in range(args.seeds):
        for setting in SETTINGS:
            output = args.output if seed == 0 else None
            key = {"data": setting.name, "features": setting.features, "pairs": "read rightly", "seed": seed}
            found[setting.name].append(
                results.get(
                    key,
                    lambda setting=setting, seed=seed, output=output: measure(
                        setting, load(args.data_root, setting, seed), seed, output
                    ),
                )
            )
    for setting in SETTINGS:
        report(setting, found[setting.name])


if __name__ == "__main__":
    main()
