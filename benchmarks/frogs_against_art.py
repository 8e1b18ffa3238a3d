"""Time and objective of 100 poison frogs, against ART's `FeatureCollisionAttack`, on MNIST.

    python benchmarks/frogs_against_art.py --data-root data

Both attack the same pairs of base and target on the same net, with at most the same number of gradients and the same
number of threads, and are judged by one formula for each pair,

    J(x) = ‖f(x) − f(t)‖² / ‖f(b) − f(t)‖² + β ‖x − b‖²,   β = 8e-3, x in [0, 1].

Ours minimizes it for all pairs at once, and is judged after rounding to 256 gray levels; it comes with its defaults,
by which an image leaves the batch where ten steps gain less than 1 %, and without that. ART crafts one poison after
another, is judged unrounded, keeps its own default stopping rule, and comes in two forms:

- "as it is": its loss is the norm and not its square, so no `similarity_coeff` gives it the same minimizer for every
  pair. β' / 2 ‖x − b‖² beside ‖f(x) − f(t)‖ comes nearest, with β' = c β ‖f(b) − f(t)‖ and c chosen;
- "squared": its attribute `attack_loss` is replaced by the squared norm, and `similarity_coeff` set so that its
  proximal step is that of β ‖f(b) − f(t)‖² ‖x − b‖²: it minimizes J times a constant of the pair.

ART's learning rate, and c, are those of a grid that give the lowest median J on other pairs, in units that follow from
each pair's distance. That search is not part of its time. ART (`adversarial-robustness-toolbox`) is in the dependency
group `peers`.
"""

import argparse
import itertools
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torchvision
from art.attacks.poisoning import FeatureCollisionAttack
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from lightning_poison import PixelRange, Surrogate
from lightning_poison.attacks import RawFeatures
from lightning_poison.contexts import frozen
from lightning_poison_collisions.distance import FeatureDistance, squared_norm
from lightning_poison_collisions.splitting import collide, penalized_objective

BETA, LEVELS = 8e-3, 256
TRAINING_IMAGES, EPOCHS = 20_000, 2
TUNING_PAIRS = 3
RATES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
WEIGHTS = (1.0, 2.5, 6.0)


class Net(nn.Module):
    """Two convolutions and 64 features."""

    def __init__(self) -> None:
        super().__init__()
        convolutions = [nn.Conv2d(1, 16, 5, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 5, stride=2), nn.ReLU()]
        self.body = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(512, 64), nn.ReLU())
        self.head = nn.Linear(64, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.body(inputs))


@dataclass
class Pairs:
    """Bases and targets `(P, 1, 28, 28)`, and the squared feature distance between them `(P,)`."""

    bases: Tensor
    targets: Tensor
    initial: Tensor


@dataclass
class Result:
    """Crafted images and what they cost, a poison."""

    images: Tensor
    wall: float
    cpu: float


@dataclass
class Row:
    """Seconds a poison, and the median objective over the pairs that both crafted, and over all."""

    wall: float
    cpu: float
    shared: float
    every: float = float("nan")


def load(root: Path, *, train: bool) -> tuple[Tensor, Tensor]:
    data = torchvision.datasets.MNIST(root, train=train)
    return data.data[:, None].float() / 255, data.targets


def train_net(images: Tensor, labels: Tensor, generator: torch.Generator) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(generator.initial_seed())
        net = Net()
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(images), generator=generator)[:TRAINING_IMAGES].split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images[batch]), labels[batch]).backward()
            optimizer.step()
    return net.eval()


def draw_pairs(net: Net, images: Tensor, labels: Tensor, count: int, generator: torch.Generator) -> Pairs:
    order = torch.randperm(len(images), generator=generator)[: 4 * count].view(2, -1)
    bases, targets = order[:, labels[order[0]] != labels[order[1]]][:, :count]
    with torch.no_grad():
        initial = squared_norm(net.body(images[bases]) - net.body(images[targets]))
    return Pairs(images[bases], images[targets], initial)


def timed(craft: Callable[[], Tensor]) -> Result:
    wall, cpu = time.perf_counter(), time.process_time()
    images = craft()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Result(images, wall / len(images), cpu / len(images))


def ours(net: Net, pairs: Pairs, steps: int, tolerance: float = 1e-2) -> Tensor:
    features = RawFeatures(Surrogate(net, "body"), PixelRange(levels=LEVELS))
    with frozen(net):
        distance = FeatureDistance([features], pairs.bases, pairs.targets)
        images = collide(distance, pairs.bases, beta=BETA, steps=steps, tolerance=tolerance)
    return PixelRange(levels=LEVELS).round_raw(images)


def art(net: Net, pairs: Pairs, steps: int, *, squared: bool, rate: float, weight: float) -> Tensor:
    classifier = PyTorchClassifier(
        net, nn.CrossEntropyLoss(), (1, 28, 28), 10, clip_values=(0.0, 1.0), device_type="cpu"
    )
    size_ratio = (28 * 28 / 64) ** 2
    crafted = []
    for base, target, initial in zip(pairs.bases, pairs.targets, pairs.initial.tolist(), strict=True):
        proximal = 2 * BETA * initial if squared else weight * BETA * initial**0.5
        attack = FeatureCollisionAttack(
            classifier,
            target[None].numpy(),
            "body",
            learning_rate=rate / (initial if squared else initial**0.5),
            similarity_coeff=proximal * size_ratio,
            max_iter=steps,
            verbose=False,
        )
        if squared:
            attack.attack_loss = lambda difference, p: difference.norm(p=p) ** 2
        images, _ = attack.poison(base[None].numpy())
        crafted.append(torch.from_numpy(np.asarray(images, dtype=np.float32)))
    return torch.cat(crafted)


def objective(net: Net, images: Tensor, pairs: Pairs) -> Tensor:
    features = RawFeatures(Surrogate(net, "body"), PixelRange(levels=LEVELS))
    with torch.no_grad():
        distance = FeatureDistance([features], pairs.bases, pairs.targets)
        return penalized_objective(distance, images, pairs.bases, beta=BETA)


def tune(net: Net, pairs: Pairs, steps: int, *, squared: bool) -> dict[str, float]:
    """Return the rate and the weight of the grid with the lowest median objective."""
    grid = list(itertools.product(RATES, (1.0,) if squared else WEIGHTS))
    medians = []
    for rate, weight in grid:
        images = art(net, pairs, steps, squared=squared, rate=rate, weight=weight)
        medians.append(float(objective(net, images, pairs).median()))
    rate, weight = grid[int(np.argmin(medians))]
    return {"rate": rate, "weight": weight}


def measure(seed: int, args: argparse.Namespace) -> dict[str, Row]:
    generator = torch.Generator().manual_seed(seed)
    test_images, test_labels = load(args.data_root, train=False)
    start = time.perf_counter()
    net = train_net(*load(args.data_root, train=True), generator)
    with torch.no_grad():
        accuracy = float((net(test_images).argmax(1) == test_labels).float().mean())
    print(f"seed {seed}: net trained in {time.perf_counter() - start:.0f} s, test accuracy {accuracy:.4f}", flush=True)
    pairs = draw_pairs(net, test_images, test_labels, args.poisons, generator)
    tuning = draw_pairs(net, test_images, test_labels, TUNING_PAIRS, generator)
    few = Pairs(*(part[: args.art_poisons] for part in (pairs.bases, pairs.targets, pairs.initial)))
    ours(net, tuning, 2)
    rows, reached = {}, {}
    for name, tolerance in (("ours", 1e-2), ("ours, all steps", 0.0)):
        result = timed(lambda tolerance=tolerance: ours(net, pairs, args.steps, tolerance))
        values = objective(net, result.images, pairs)
        reached[name] = values[: args.art_poisons]
        rows[name] = Row(result.wall, result.cpu, float(reached[name].median()), float(values.median()))
    for name, squared in (("ART as it is", False), ("ART squared", True)):
        chosen = tune(net, tuning, args.steps, squared=squared)
        result = timed(lambda squared=squared, chosen=chosen: art(net, few, args.steps, squared=squared, **chosen))
        reached[name] = objective(net, result.images, few)
        rows[name] = Row(result.wall, result.cpu, float(reached[name].median()))
        lower = int((reached["ours"] <= reached[name]).sum())
        print(
            f"  {name}: rate {chosen['rate']:g}, c {chosen['weight']:g}; ours is lower on {lower} of {len(few.bases)}"
        )
    return rows


def spread(values: list[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-root", type=Path, required=True, help="folder that holds MNIST in torchvision's layout")
    parser.add_argument("--poisons", type=int, default=100)
    parser.add_argument("--art-poisons", type=int, default=100, help="ART crafts these first ones of the pairs only")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(
        f"{args.poisons} poisons at once, ART {args.art_poisons} one by one, {args.steps} iterations, β = {BETA:g}, "
        f"{args.threads} thread(s) of {os.cpu_count()} cores, torch {torch.__version__}"
    )
    runs = [measure(seed, args) for seed in range(args.seeds)]
    print(f"\nmedian (range) of {args.seeds} seeds; J is a median over {args.art_poisons} pairs that both crafted")
    columns = ("wall ms a poison", "CPU ms a poison", "J", "÷ ours, wall", "÷ ours, CPU")
    print(f"{'':16}" + "".join(f"{column:>24}" for column in columns))
    for name in runs[0]:
        rows, own = [run[name] for run in runs], [run["ours"] for run in runs]
        cells = [
            spread([1e3 * row.wall for row in rows], ".1f"),
            spread([1e3 * row.cpu for row in rows], ".1f"),
            spread([row.shared for row in rows], ".3f"),
            spread([row.wall / ref.wall for row, ref in zip(rows, own, strict=True)], ".1f"),
            spread([row.cpu / ref.cpu for row, ref in zip(rows, own, strict=True)], ".1f"),
        ]
        print(f"{name:16}" + "".join(f"{cell:>24}" for cell in cells))
    print(f"J of ours over all {args.poisons} pairs: {spread([run['ours'].every for run in runs], '.3f')}")


if __name__ == "__main__":
    main()
