"""What crafting costs, and what it reaches, against the attacks that ART has too: MNIST, a small network.

    python benchmarks/crafting_against_art.py --data-root data --results crafting.jsonl

Both sides change the same images (the clean-label backdoor: images of the same class), by the same number of steps
within the same radius, on the same network, with one thread. They take turns, each turn in another order. The time is
that of the CPU, worker processes included; "before" is what the images that both start from reach. "Ours" is an
attack's `craft`, which draws the poison, reads and checks the samples, and rounds what it made to 256 gray levels; ART
gets arrays and rounds nothing. "With the door" is what a user calls, `lightning_poison.craft`: it also digests up
to 4,096 samples of each data set before and after. Poison frogs have a benchmark of their own, `frogs_against_art.py`.

- FGSM, PGD-10: reached is the mean cross-entropy, which shall be large. ART's log line counts its successes.
- bullseye polytope: reached is the median over targets of ‖mean of φ(poisons) − φ(target)‖ / ‖φ(target)‖. Ours also
  looks for its bases, the nearest among 1,000; ART is given them. "As it is", ART 1.20.1 never uses its target: it
  measures each poison against its own base, and averages over features; with `endtoend=False` it raises, and with a
  list of one layer it returned NaN on a fresh network. "Repaired" gives its loop the paper's loss, through a classifier
  that returns the target's features where ART asks for those of the bases, and those of the poisons as one block.
- gradient matching: reached is the median over targets of 1 − cos of the gradients' sums. One start each. ART starts a
  worker process for each epoch; "no worker" takes that out. Its own schedule is squeezed into the number of steps.
- clean-label backdoor: reached is the mean cross-entropy of what carries the patch. ART draws its images with
  replacement, so that some are poisoned twice; as many are perturbed as ours are. It climbs the loss of what the
  network reads, ours that of the label.
- BadNets, blended: reached is the share of images that equal ours to one gray level. ART blends PIL images one by one.

The step length of ART's bullseye polytope and gradient matching is the one of a grid that reaches most on other
targets; ours is the attacks' default. That search is not part of the time. ART's forms stand in `art_rivals.py`; it
(`adversarial-robustness-toolbox`) is in the dependency group `peers`.
"""

import contextlib
import functools
import io
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import art_rivals
import numpy as np
import torch
import torch.nn.functional as F
from art_rivals import LAYER, Rival, Scene, parts
from backdoors_mnist import GrayImages
from common import Figures, Results, arguments, load_mnist, print_setting, print_table, spread
from pgd_against_torchattacks import trained
from torch import Tensor
from torch.utils.data import TensorDataset

from lightning_poison import Poison, Surrogate, Threat, craft
from lightning_poison.randomness import seeded_rng
from lightning_poison_backdoors import BadNets, Blended, CleanLabelBackdoor
from lightning_poison_collisions import BullseyePolytope, GradientMatching
from lightning_poison_perturbations import fgsm, pgd

GRAY = 1 / 255
IMAGES, TEST_IMAGES, CLASS = 6_000, 2_000, 3
RATES = (0.01, 0.03, 0.1, 0.3, 1.0)
PATCH = [[0, 0, 255], [0, 255, 0], [255, 0, 255]]
KEY = torch.randint(256, (28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@dataclass(frozen=True)
class Row:
    """Our attack, ART's forms of it, what images `(P, ...)` reach, and step lengths for ART to choose from."""

    attack: Any
    budget: int
    rivals: dict[str, Rival]
    judge: Callable[[Scene, Poison, Tensor], float]
    turns: int = 5
    rates: tuple[float, ...] = ()

    def ours(self, scene: Scene, seed: int, *, door: bool = False) -> Poison:
        raw = isinstance(self.attack, BadNets | Blended | CleanLabelBackdoor)
        images = (255 * scene.images).round().byte() if raw else scene.images
        given = ((GrayImages if raw else TensorDataset)(images, scene.labels), Threat(self.budget))
        others = {
            "surrogates": [Surrogate(scene.net, LAYER)],
            "holdout": scene.held,
            "generator": torch.Generator().manual_seed(seed),
        }
        return craft(self.attack, *given, **others) if door else self.attack.craft(*given, **others)


def images_of(poison: Poison) -> Tensor:
    return poison.inputs / 255 if poison.domain == "raw" else poison.inputs


@torch.no_grad()
def cross_entropy(scene: Scene, poison: Poison, images: Tensor) -> float:
    """For poison of one class."""
    return float(F.cross_entropy(scene.net(images), poison.labels[: len(images)]))


@torch.no_grad()
def mean_distance(scene: Scene, poison: Poison, images: Tensor) -> float:
    features, goals = (scene.net[: int(LAYER) + 1](inputs) for inputs in (images, poison.objective.inputs))
    means = features.unflatten(0, (len(goals), -1)).mean(1)
    return float(((means - goals).norm(dim=1) / goals.norm(dim=1)).median())


def misalignment(scene: Scene, poison: Poison, images: Tensor) -> float:
    def gradient(inputs: Tensor, labels: Tensor) -> Tensor:
        loss = F.cross_entropy(scene.net(inputs), labels, reduction="sum")
        return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(scene.net.parameters()))])

    goal, found = poison.objective, []
    for group, one in parts(poison):
        pulls = (gradient(images[group], poison.labels[group]), gradient(goal.inputs[one], goal.wanted[one]))
        found.append(1 - float(F.cosine_similarity(*pulls, dim=0)))
    return statistics.median(found)


def equal(_: Scene, poison: Poison, images: Tensor) -> float:
    difference = (images - images_of(poison)).abs().flatten(1).amax(1)
    return float((difference < 1.01 * GRAY).double().mean())


BULLSEYE = {
    "as it is": functools.partial(art_rivals.bullseye, repaired=False),
    "repaired": functools.partial(art_rivals.bullseye, repaired=True),
}
MATCHING = {
    "as it is": functools.partial(art_rivals.gradient_matching, workers=True),
    "no worker": functools.partial(art_rivals.gradient_matching, workers=False),
}
ROWS = {
    "FGSM": Row(
        fgsm(source_class=CLASS, epsilon=25 * GRAY), 500, {"as it is": art_rivals.fast_gradient}, cross_entropy
    ),
    "PGD-10": Row(
        pgd(source_class=CLASS, epsilon=25 * GRAY), 500, {"as it is": art_rivals.projected_gradients}, cross_entropy
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
        {"as it is": art_rivals.clean_label},
        cross_entropy,
        turns=3,
    ),
    "BadNets": Row(BadNets(pattern=PATCH), 500, {"as it is": art_rivals.stamp}, equal),
    "blended": Row(Blended(key=KEY, amplitude=0.2), 500, {"as it is": art_rivals.blend}, equal),
}


def seconds() -> tuple[float, float]:
    """Return the clock, and the CPU time of this process and of those that it started and that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter(), time.process_time() + children.ru_utime + children.ru_stime


def quietly(rival: Rival, scene: Scene, poison: Poison, rate: float) -> Tensor:
    with seeded_rng(scene.seed), contextlib.redirect_stderr(io.StringIO()):
        return torch.as_tensor(rival(scene, poison, rate), dtype=torch.float32)


def measure(row: Row, scene: Scene) -> Figures:
    """Return what each side reached, its median CPU and wall seconds, and ART's step length."""
    poison, tuning = (row.ours(scene, seed) for seed in (scene.seed, 1000 + scene.seed))
    last = list(row.rivals.values())[-1]
    values = [row.judge(scene, tuning, quietly(last, scene, tuning, rate)) for rate in row.rates]
    rate = row.rates[int(np.argmin(values))] if values else 0.0
    sides: dict[str, Callable[[], Any]] = {
        "ours": lambda: row.ours(scene, scene.seed),
        "with the door": lambda: row.ours(scene, scene.seed, door=True),
    }
    sides |= {name: functools.partial(quietly, rival, scene, poison, rate) for name, rival in row.rivals.items()}
    times: dict[str, list[list[float]]] = {name: [] for name in sides}
    crafted: dict[str, Any] = {}
    for turn in range(-1, row.turns):
        shift = turn % len(sides)
        for name in [*sides, *sides][shift : shift + len(sides)]:
            start = seconds()
            crafted[name] = sides[name]()
            if turn >= 0:
                times[name].append([end - begin for begin, end in zip(start, seconds(), strict=True)])
    found: Figures = {"rate": rate, "before": row.judge(scene, poison, torch.from_numpy(scene.bases(poison)))}
    for name, spent in times.items():
        images = crafted[name] if name in row.rivals else images_of(crafted[name])
        wall, cpu = (statistics.median(each) for each in zip(*spent, strict=True))
        found[name] = {"reached": row.judge(scene, poison, images), "wall": wall, "cpu": cpu}
    return found


@functools.cache
def scene_of(root: Path, seed: int) -> Scene:
    (images, labels), (others, other_labels) = (load_mnist(root, train=train) for train in (True, False))
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(labels), generator=generator)[:IMAGES]
    held = torch.randperm(len(other_labels), generator=generator)[:TEST_IMAGES]
    aims = TensorDataset(others[held], other_labels[held])
    return Scene(trained(images, labels, seed), images[chosen], labels[chosen], aims, seed)


def main() -> None:
    args = arguments(__doc__).parse_args()
    torch.set_num_threads(1)
    print_setting("crafting_against_art", args)
    results, table = Results(args.results), []
    for name, row in ROWS.items():
        runs = [
            results.get(
                {"attack": name, "seed": seed},
                lambda row=row, seed=seed: measure(row, scene_of(args.data_root, seed)),
            )
            for seed in range(args.seeds)
        ]
        for form in row.rivals:
            cells = [spread([1e3 * run[side]["cpu"] for run in runs], ".1f") for side in ("ours", form)]
            for side, kind in (("ours", "cpu"), ("with the door", "cpu"), ("ours", "wall")):
                cells.append(spread([run[side][kind] / run[form][kind] for run in runs], ".2f"))
            cells.append(spread([run["before"] for run in runs], ".3f"))
            cells += [spread([run[side]["reached"] for run in runs], ".3f") for side in ("ours", form)]
            table.append([f"{name}, {row.budget}", form, *cells])
    columns = ["attack, poisons", "ART", "ours, CPU ms", "ART, CPU ms", "ours ÷ ART, CPU", "with the door ÷ ART, CPU"]
    print_table([*columns, "ours ÷ ART, wall", "before", "reached: ours", "reached: ART"], table)


if __name__ == "__main__":
    main()
