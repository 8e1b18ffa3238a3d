"""Crafting time and objective of 100 poison frogs, compared with ART's `FeatureCollisionAttack`: MNIST.

    python benchmarks/frogs_against_art.py --data-root data

Both attack the same pairs of base and target on the same network, with at most the same number of gradients and the
same number of threads. For each pair, both are evaluated by

    J(x) = ‖f(x) − f(t)‖² / ‖f(b) − f(t)‖² + β ‖x − b‖²,   β = 8e-3, x in [0, 1].

Ours minimizes J for all pairs at once and is evaluated after rounding to 256 gray levels. It runs with its defaults,
which remove an image from the batch when ten steps gain less than 1 %, and without this stopping rule. ART crafts one
poison after another, is evaluated without rounding, keeps its own default stopping rule, and runs in two variants:

- "as shipped": its loss is the norm, not the squared norm, so that no `similarity_coeff` gives the same minimizer for
  every pair. The closest is β' / 2 ‖x − b‖² added to ‖f(x) − f(t)‖, with β' = c β ‖f(b) − f(t)‖ and c chosen;
- "squared": its attribute `attack_loss` is replaced by the squared norm, and `similarity_coeff` is set so that its
  proximal step is that of β ‖f(b) − f(t)‖² ‖x − b‖². It minimizes J up to a constant factor of the pair.

ART's learning rate and c are the best of a grid, by the lowest median J on other pairs, in units of each pair's
distance. This search is not timed. ART (`adversarial-robustness-toolbox`) is in the dependency group `peers`.
"""

import argparse
import functools
import itertools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from art.attacks.poisoning import FeatureCollisionAttack
from art.estimators.classification import PyTorchClassifier
from harness.datasets import load_mnist
from harness.networks import accuracy_of, conv_network, fit_conv_network
from harness.runs import benchmark_parser, print_table, spread, start, with_seconds
from torch import Tensor, nn

from lightning_poison import PixelRange, Surrogate
from lightning_poison.attacks import RawFeatures
from lightning_poison.contexts import frozen
from lightning_poison_collisions import FeatureDistance, collide, penalized_objective, squared_norm

BETA, LEVELS = 8e-3, 256
TUNING_PAIRS = 3
RATES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
WEIGHTS = (1.0, 2.5, 6.0)


class Network(nn.Module):
    """The network of `conv_network`, split into `body` (64 features) and `head`."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        layers = conv_network(seed)
        self.body, self.head = layers[:-1], layers[-1]

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(inputs))
        return logits


@dataclass
class Pairs:
    """Bases and targets `(P, 1, 28, 28)`, and the squared feature distance between them `(P,)`."""

    bases: Tensor
    targets: Tensor
    initial: Tensor


@dataclass
class Row:
    """Seconds per poison, and the median objective over the pairs that both sides crafted, and over all pairs."""

    wall: float
    cpu: float
    shared: float
    every: float = float("nan")


def draw_pairs(network: Network, images: Tensor, labels: Tensor, count: int, generator: torch.Generator) -> Pairs:
    order = torch.randperm(len(images), generator=generator)[: 4 * count].view(2, -1)
    bases, targets = order[:, labels[order[0]] != labels[order[1]]][:, :count]
    with torch.no_grad():
        initial = squared_norm(network.body(images[bases]) - network.body(images[targets]))
    return Pairs(images[bases], images[targets], initial)


def craft_timed(craft: Callable[[], Tensor]) -> tuple[Tensor, float, float]:
    """Return the crafted images and the wall and CPU seconds per poison."""
    images, wall, cpu = with_seconds(craft)
    return images, wall / len(images), cpu / len(images)


def ours(network: Network, pairs: Pairs, steps: int, tolerance: float = 1e-2) -> Tensor:
    features = RawFeatures(Surrogate(network, "body"), PixelRange(levels=LEVELS))
    with frozen(network):
        distance = FeatureDistance([features], pairs.bases, pairs.targets)
        images = collide(distance, pairs.bases, beta=BETA, steps=steps, tolerance=tolerance)
    return PixelRange(levels=LEVELS).round_raw(images)


def art(network: Network, pairs: Pairs, steps: int, *, squared: bool, rate: float, weight: float) -> Tensor:
    classifier = PyTorchClassifier(
        network, nn.CrossEntropyLoss(), (1, 28, 28), 10, clip_values=(0.0, 1.0), device_type="cpu"
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


def objective(network: Network, images: Tensor, pairs: Pairs) -> Tensor:
    features = RawFeatures(Surrogate(network, "body"), PixelRange(levels=LEVELS))
    with torch.no_grad():
        distance = FeatureDistance([features], pairs.bases, pairs.targets)
        return penalized_objective(distance, images, pairs.bases, beta=BETA)


def tune(network: Network, pairs: Pairs, steps: int, *, squared: bool) -> dict[str, float]:
    """Return the rate and the weight of the grid with the lowest median objective."""
    grid = list(itertools.product(RATES, (1.0,) if squared else WEIGHTS))
    medians = []
    for rate, weight in grid:
        images = art(network, pairs, steps, squared=squared, rate=rate, weight=weight)
        medians.append(float(objective(network, images, pairs).median()))
    rate, weight = grid[int(np.argmin(medians))]
    return {"rate": rate, "weight": weight}


def measure(seed: int, args: argparse.Namespace) -> dict[str, Row]:
    generator = torch.Generator().manual_seed(seed)
    test = load_mnist(args.data_root, train=False)
    begin = time.perf_counter()
    network = Network(seed)
    fit_conv_network(network, *load_mnist(args.data_root, train=True), generator)
    seconds, accuracy = time.perf_counter() - begin, accuracy_of(network, *test)
    print(f"seed {seed}: network trained in {seconds:.0f} s, test accuracy {accuracy:.4f}", flush=True)
    pairs = draw_pairs(network, *test, args.poisons, generator)
    tuning = draw_pairs(network, *test, TUNING_PAIRS, generator)
    few = Pairs(*(part[: args.art_poisons] for part in (pairs.bases, pairs.targets, pairs.initial)))
    ours(network, tuning, 2)
    rows, objectives = {}, {}
    for name, tolerance in (("ours", 1e-2), ("ours, all steps", 0.0)):
        images, wall, cpu = craft_timed(functools.partial(ours, network, pairs, args.steps, tolerance))
        values = objective(network, images, pairs)
        objectives[name] = values[: args.art_poisons]
        rows[name] = Row(wall, cpu, float(objectives[name].median()), float(values.median()))
    for name, squared in (("ART as shipped", False), ("ART squared", True)):
        chosen = tune(network, tuning, args.steps, squared=squared)
        images, wall, cpu = craft_timed(functools.partial(art, network, few, args.steps, squared=squared, **chosen))
        objectives[name] = objective(network, images, few)
        rows[name] = Row(wall, cpu, float(objectives[name].median()))
        lower = int((objectives["ours"] <= objectives[name]).sum())
        print(
            f"  {name}: rate {chosen['rate']:g}, c {chosen['weight']:g}; ours is lower on {lower} of {len(few.bases)}"
        )
    return rows


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--poisons", type=int, default=100)
    parser.add_argument("--art-poisons", type=int, default=100, help="ART crafts only this many of the pairs")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    start(args)
    print(
        f"{args.poisons} poisons at once, ART {args.art_poisons} one by one, {args.steps} iterations, β = {BETA:g}, "
        f"{os.cpu_count()} cores"
    )
    runs = [measure(seed, args) for seed in range(args.seeds)]
    print(f"\nMedian and range of {args.seeds} seeds; J is a median over {args.art_poisons} pairs that both crafted")
    table = []
    for name in runs[0]:
        rows, own = [run[name] for run in runs], [run["ours"] for run in runs]
        cells = [
            spread([1e3 * row.wall for row in rows], ".1f"),
            spread([1e3 * row.cpu for row in rows], ".1f"),
            spread([row.shared for row in rows], ".3f"),
            spread([row.wall / first.wall for row, first in zip(rows, own, strict=True)], ".1f"),
            spread([row.cpu / first.cpu for row, first in zip(rows, own, strict=True)], ".1f"),
        ]
        table.append([name, *cells])
    print_table(["", "wall ms per poison", "CPU ms per poison", "J", "÷ ours, wall", "÷ ours, CPU"], table)
    print(f"J of ours over all {args.poisons} pairs: {spread([run['ours'].every for run in runs], '.3f')}")


if __name__ == "__main__":
    main()
