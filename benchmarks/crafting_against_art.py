"""Crafting time and objective of attacks, compared with ART on the same images: MNIST, a small network.

    python benchmarks/crafting_against_art.py --data-root data --results crafting.jsonl

Both sides perturb the same images (for the clean-label backdoor: images of the same class) with the same number of
steps and radius, on the same network, with one thread. They run in alternation, each turn in another order. The time is
CPU time, including worker processes. "Before" is the objective of the base images. "Ours" is an attack's `craft`, which
draws the poison, reads and checks the samples, and rounds the result to 256 gray levels; ART receives arrays and does
not round. "With checks" is `lightning_poison.craft`, the function that users call: it also hashes up to 4,096 samples
of each data set before and after. Poison frogs have their own benchmark, `frogs_against_art.py`.

- FGSM, PGD-10: the objective is the mean cross-entropy; larger is better. ART's log line counts its successes.
- Bullseye polytope: the objective is the median over targets of ‖mean of φ(poisons) − φ(target)‖ / ‖φ(target)‖. Ours
  also searches for its bases, the nearest of 1,000; ART receives them. "As shipped", ART 1.20.1 never uses its target:
  it compares each poison with its own base and averages over features; with `endtoend=False` it raises, and with a list
  of one layer it returned NaN on a fresh network. "Repaired" gives its loop the paper's loss, with a classifier that
  returns the target's features in place of the bases', and the poisons' features as one block.
- Gradient matching: the objective is the median over targets of 1 − cos of the summed gradients. One start each. ART
  starts a worker process in each epoch; "no worker" runs without. Its own schedule is compressed to the number of
  steps.
- Clean-label backdoor: the objective is the mean cross-entropy of the images with the patch. ART draws its images with
  replacement, so that some are poisoned twice; it perturbs as many as ours does. It maximizes the loss of the predicted
  class, ours that of the label.
- BadNets, blended: the objective is the share of images equal to ours within one gray level. ART blends PIL images one
  by one.

The step length of ART's bullseye polytope and gradient matching is the best of a grid on other targets; ours is the
attacks' default. This search is not timed. `harness/art_attacks.py` contains ART's attacks. ART
(`adversarial-robustness-toolbox`) is in the dependency group `peers`.
"""

import contextlib
import functools
import io
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from harness import art_attacks
from harness.art_attacks import LAYER, ArtAttack, CraftingTask, groups_by_target
from harness.datasets import RawDataset, inputs_of, load_mnist, targets_of
from harness.networks import conv_network, fit_conv_network
from harness.runs import Figures, Results, benchmark_parser, print_table, spread, spread_of, start
from torch import Tensor
from torch.utils.data import TensorDataset

from lightning_poison import Poison, Surrogate, Threat, craft
from lightning_poison.randomness import seeded_rng
from lightning_poison_backdoors import BadNets, Blended, CleanLabelBackdoor
from lightning_poison_collisions import BullseyePolytope, GradientMatching
from lightning_poison_perturbations import FGSM, PGD

GRAY = 1 / 255
IMAGES, TEST_IMAGES, CLASS = 6_000, 2_000, 3
RATES = (0.01, 0.03, 0.1, 0.3, 1.0)
PATCH = [[0, 0, 255], [0, 255, 0], [255, 0, 255]]
KEY = torch.randint(256, (28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@dataclass(frozen=True)
class Row:
    """Our attack, its variants in ART, the objective of images `(P, ...)`, and step lengths for ART to choose from."""

    attack: Any
    budget: int
    art: Mapping[str, ArtAttack]
    objective: Callable[[CraftingTask, Poison, Tensor], float]
    turns: int = 5
    rates: tuple[float, ...] = ()

    def ours(self, task: CraftingTask, seed: int, *, checks: bool = False) -> Poison:
        raw = isinstance(self.attack, BadNets | Blended | CleanLabelBackdoor)
        dataset = (RawDataset.from_floats if raw else TensorDataset)(task.images, task.labels)
        options: dict[str, Any] = {
            "surrogates": [Surrogate(task.network, LAYER)],
            "holdout": task.holdout,
            "generator": torch.Generator().manual_seed(seed),
        }
        if checks:
            return craft(self.attack, dataset, Threat(self.budget), **options)
        poison: Poison = self.attack.craft(dataset, Threat(self.budget), **options)
        return poison


def images_of(poison: Poison) -> Tensor:
    """Return the crafted images in [0, 1]."""
    return inputs_of(poison) / 255 if poison.domain == "raw" else inputs_of(poison)


@torch.no_grad()
def cross_entropy(task: CraftingTask, poison: Poison, images: Tensor) -> float:
    """Return the mean cross-entropy, for poison of one class."""
    return float(F.cross_entropy(task.network(images), poison.labels[: len(images)]))


@torch.no_grad()
def mean_distance(task: CraftingTask, poison: Poison, images: Tensor) -> float:
    """Return the relative distance of the mean features to the target's, the median over targets."""
    features, targets = (task.network[: int(LAYER) + 1](inputs) for inputs in (images, targets_of(poison).inputs))
    means = features.unflatten(0, (len(targets), -1)).mean(1)
    return float(((means - targets).norm(dim=1) / targets.norm(dim=1)).median())


def misalignment(task: CraftingTask, poison: Poison, images: Tensor) -> float:
    """Return 1 − cos of the gradients of the poison and of the target, the median over targets."""

    def gradient(inputs: Tensor, labels: Tensor) -> Tensor:
        loss = F.cross_entropy(task.network(inputs), labels, reduction="sum")
        return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(task.network.parameters()))])

    targets, distances = targets_of(poison), []
    for group, one in groups_by_target(poison):
        of_poison = gradient(images[group], poison.labels[group])
        of_target = gradient(targets.inputs[one], targets.wanted[one])
        distances.append(1 - float(F.cosine_similarity(of_poison, of_target, dim=0)))
    return statistics.median(distances)


def share_equal(_: CraftingTask, poison: Poison, images: Tensor) -> float:
    """Return the share of images equal to ours within one gray level."""
    difference = (images - images_of(poison)).abs().flatten(1).amax(1)
    return float((difference < 1.01 * GRAY).double().mean())


BULLSEYE: dict[str, ArtAttack] = {
    "as shipped": functools.partial(art_attacks.bullseye, repaired=False),
    "repaired": functools.partial(art_attacks.bullseye, repaired=True),
}
MATCHING: dict[str, ArtAttack] = {
    "as shipped": functools.partial(art_attacks.gradient_matching, workers=True),
    "no worker": functools.partial(art_attacks.gradient_matching, workers=False),
}
ROWS = {
    "FGSM": Row(
        FGSM(source_class=CLASS, epsilon=25 * GRAY), 500, {"as shipped": art_attacks.fast_gradient}, cross_entropy
    ),
    "PGD-10": Row(
        PGD(source_class=CLASS, epsilon=25 * GRAY), 500, {"as shipped": art_attacks.projected_gradients}, cross_entropy
    ),
    "bullseye polytope": Row(
        BullseyePolytope(epsilon=25 * GRAY, steps=100), 50, BULLSEYE, mean_distance, turns=3, rates=RATES
    ),
    "gradient matching": Row(
        GradientMatching(epsilon=32 * GRAY, targets=2, steps=50), 80, MATCHING, misalignment, turns=3, rates=RATES
    ),
    "clean-label backdoor": Row(
        CleanLabelBackdoor(CLASS, epsilon=76 * GRAY, corners=1, pattern=PATCH),
        200,
        {"as shipped": art_attacks.clean_label},
        cross_entropy,
        turns=3,
    ),
    "BadNets": Row(BadNets(pattern=PATCH), 500, {"as shipped": art_attacks.badnets}, share_equal),
    "blended": Row(Blended(key=KEY, amplitude=0.2), 500, {"as shipped": art_attacks.blended}, share_equal),
}


def seconds() -> tuple[float, float]:
    """Return wall-clock seconds, and the CPU seconds of this process and of its finished child processes."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter(), time.process_time() + children.ru_utime + children.ru_stime


def run_art(attack: ArtAttack, task: CraftingTask, poison: Poison, rate: float) -> Tensor:
    with seeded_rng(task.seed), contextlib.redirect_stderr(io.StringIO()):
        return torch.as_tensor(attack(task, poison, rate), dtype=torch.float32)


def measure(row: Row, task: CraftingTask) -> Figures:
    """Return the objective and the median CPU and wall seconds of each side, and ART's step length."""
    poison, tuning = (row.ours(task, seed) for seed in (task.seed, 1000 + task.seed))
    last = list(row.art.values())[-1]
    values = [row.objective(task, tuning, run_art(last, task, tuning, rate)) for rate in row.rates]
    rate = row.rates[int(np.argmin(values))] if values else 0.0
    sides: dict[str, Callable[[], Any]] = {
        "ours": lambda: row.ours(task, task.seed),
        "with checks": lambda: row.ours(task, task.seed, checks=True),
    }
    sides |= {name: functools.partial(run_art, attack, task, poison, rate) for name, attack in row.art.items()}
    times: dict[str, list[list[float]]] = {name: [] for name in sides}
    crafted: dict[str, Any] = {}
    for turn in range(-1, row.turns):
        shift = turn % len(sides)
        for name in [*sides, *sides][shift : shift + len(sides)]:
            begin = seconds()
            crafted[name] = sides[name]()
            if turn >= 0:
                times[name].append([after - before for before, after in zip(begin, seconds(), strict=True)])
    figures: Figures = {"rate": rate, "before": row.objective(task, poison, torch.from_numpy(task.bases(poison)))}
    for name, spent in times.items():
        images = crafted[name] if name in row.art else images_of(crafted[name])
        wall, cpu = (statistics.median(each) for each in zip(*spent, strict=True))
        figures[name] = {"reached": row.objective(task, poison, images), "wall": wall, "cpu": cpu}
    return figures


@functools.cache
def task_of(root: Path, seed: int) -> CraftingTask:
    (images, labels), (others, other_labels) = (load_mnist(root, train=train) for train in (True, False))
    network = conv_network(seed)
    fit_conv_network(network, images, labels, torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(labels), generator=generator)[:IMAGES]
    held_out = torch.randperm(len(other_labels), generator=generator)[:TEST_IMAGES]
    holdout = TensorDataset(others[held_out], other_labels[held_out])
    return CraftingTask(network, images[chosen], labels[chosen], holdout, seed)


def main() -> None:
    args = benchmark_parser(__doc__).parse_args()
    start(args)
    results, table = Results(args.results), []
    for name, row in ROWS.items():

        def measure_row(seed: int, row: Row = row) -> Figures:
            return measure(row, task_of(args.data_root, seed))

        runs = results.over_seeds(range(args.seeds), {"attack": name}, measure_row)
        for variant in row.art:
            cells = [spread_of(runs, side, "cpu", form=".1f", scale=1e3) for side in ("ours", variant)]
            for side, clock in (("ours", "cpu"), ("with checks", "cpu"), ("ours", "wall")):
                cells.append(spread([run[side][clock] / run[variant][clock] for run in runs], ".2f"))
            cells.append(spread_of(runs, "before", form=".3f"))
            cells += [spread_of(runs, side, "reached", form=".3f") for side in ("ours", variant)]
            table.append([f"{name}, {row.budget}", variant, *cells])
    columns = ["attack, poisons", "ART", "ours, CPU ms", "ART, CPU ms", "ours ÷ ART, CPU", "with checks ÷ ART, CPU"]
    print_table([*columns, "ours ÷ ART, wall", "objective before", "objective: ours", "objective: ART"], table)


if __name__ == "__main__":
    main()
