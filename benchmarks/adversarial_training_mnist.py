"""Adversarial training on MNIST in a Trainer: the overhead of the callback, and the accuracy of each recipe.

    python benchmarks/adversarial_training_mnist.py --data-root data --results adversarial_training.jsonl

1. `overhead`: an epoch of 20,000 images with `AdversarialTraining`, divided by the same epoch with the attack inline
   in `training_step` of the same module, and by an epoch of a bare loop without a Trainer; PGD with three steps,
   and FGSM with a random start, epsilon .3. CPU time of one thread, measured in alternation, the median of three turns.
2. `recipes`, on all 60,000 images: equal epochs, learning rate and batches for FGSM and PGD-7; also FGSM with a larger
   radius, TRADES, and `Free` with twice the epochs, since one of its epochs costs as much as a plain one. Accuracy on
   the 10,000 test images, clean and under PGD-20 (steps of .03, a random start) at epsilon .3; CPU seconds of the fit.
3. `choice`, on request: the selection of the settings of `recipes`. Candidates are trained on the first 55,000 training
   images with a seed of their own and evaluated on the other 5,000, under PGD-20 on 1,000 of these. No test image is
   used.

A step of .75 epsilon is shorter than the authors' 1.25: their start may leave the pixel range, ours is clamped to it.
Most pixels of MNIST are 0, and half of these start at 0, where a step of epsilon or more ends in a corner of the ball.

The network is that of Wong, Rice, Kolter 2020 (arXiv 2001.03994) for MNIST, with Adam and a one-cycle schedule. On a
busy machine, the C library's allocator can take as long as the arithmetic. `MALLOC_TRIM_THRESHOLD_=1000000000
MALLOC_MMAP_THRESHOLD_=1000000000` prevents this: freed memory is kept.
"""

import statistics
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from harness.datasets import LabeledImages, load_mnist
from harness.lightning_digits import BATCH, LEARNING_RATE, DigitClassifier, fit
from harness.networks import accuracy_of
from harness.runs import (
    Figures,
    Results,
    benchmark_parser,
    print_goal,
    print_table,
    silence_lightning,
    spread,
    spread_of,
    start,
    with_cpu_seconds,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_poison import AdversarialTraining
from lightning_poison.adversarial import FGSM, PGD, TRADES, Adversary, Free, Recipe, perturb_against
from lightning_poison.contexts import evaluating

EPSILON, EPOCHS = 0.3, 6
TURNS, OVERHEAD_IMAGES, VALIDATION, VALIDATION_PGD, CHOICE_SEED = 3, 20_000, 5_000, 1_000, 100
OVERHEAD: dict[str, tuple[Adversary, int, float]] = {
    "PGD-3": (PGD(EPSILON, EPSILON / 3, steps=3), 3, EPSILON / 3),
    "FGSM": (FGSM(EPSILON), 1, 1.25 * EPSILON),
}


class Plan(NamedTuple):
    """The settings of a training."""

    adversary: Adversary
    recipe: Recipe | None = None
    epochs: int = EPOCHS
    rate: float = LEARNING_RATE


SINGLE, WIDER = FGSM(EPSILON, 0.75 * EPSILON), FGSM(0.35, 0.75 * 0.35)
SEVEN = PGD(EPSILON, 2.5 * EPSILON / 7, steps=7)
RECIPES = {
    "FGSM": Plan(SINGLE),
    "FGSM, ε .35": Plan(WIDER),
    "PGD-7": Plan(SEVEN),
    "free, 4 replays": Plan(FGSM(EPSILON), Free(replays=4), 2 * EPOCHS),
    "TRADES, PGD-3": Plan(PGD(EPSILON, EPSILON / 2, steps=3), TRADES(beta=6)),
}
CANDIDATES = {
    "FGSM, step 1.25 ε": Plan(FGSM(EPSILON)),
    "FGSM, step ε": Plan(FGSM(EPSILON, EPSILON)),
    "FGSM, step .75 ε": Plan(SINGLE),
    "FGSM, step .5 ε": Plan(FGSM(EPSILON, 0.5 * EPSILON)),
    "FGSM, step .75 ε, rate .002": Plan(SINGLE, rate=2e-3),
    "FGSM, step .75 ε, 10 epochs": Plan(SINGLE, epochs=10),
    "FGSM, step .75 ε, ε .35": Plan(WIDER),
    "PGD-7": Plan(SEVEN),
    "free, 4 replays": Plan(FGSM(EPSILON), Free(replays=4)),
    "free, 4 replays, 12 epochs": Plan(FGSM(EPSILON), Free(replays=4), 12),
    "free, 8 replays, 12 epochs": Plan(FGSM(EPSILON), Free(replays=8), 12),
}


class InlineAttack(DigitClassifier):
    """The same classifier with the attack inline in its training step."""

    def __init__(self, seed: int, steps: int, attack_steps: int, step_size: float) -> None:
        super().__init__(seed, steps)
        self.attack_steps, self.step_size = attack_steps, step_size

    def training_step(self, batch: LabeledImages) -> Tensor:
        return super().training_step((pgd(self, *batch, self.attack_steps, self.step_size), batch[1]))


def pgd(model: nn.Module, images: Tensor, labels: Tensor, steps: int, step_size: float) -> Tensor:
    """Return images perturbed by PGD from a random start, in evaluation mode."""
    with evaluating(model):
        perturbed = (images + EPSILON * (2 * torch.rand_like(images) - 1)).clamp(0, 1)
        for _ in range(steps):
            perturbed.requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(model(perturbed), labels), perturbed)
            perturbed = perturbed.detach() + step_size * gradient.sign()
            perturbed = torch.minimum(torch.maximum(perturbed, images - EPSILON), images + EPSILON).clamp(0, 1)
    return perturbed.detach()


def fit_in_bare_loop(model: DigitClassifier, data: TensorDataset, steps: int, step_size: float, *, seed: int) -> float:
    """Train for one epoch without a Trainer and return the CPU seconds."""
    loader = DataLoader(data, BATCH, shuffle=True, drop_last=True, generator=torch.Generator().manual_seed(seed))
    configured = model.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    model.train()

    def train() -> None:
        for images, labels in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(pgd(model, images, labels, steps, step_size)), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()

    return with_cpu_seconds(train)[1]


def measure_overhead(images: Tensor, labels: Tensor, name: str, seed: int) -> Figures:
    data = TensorDataset(images[:OVERHEAD_IMAGES], labels[:OVERHEAD_IMAGES])
    adversary, steps, step_size = OVERHEAD[name]
    total = OVERHEAD_IMAGES // BATCH

    def with_callback() -> float:
        return fit(DigitClassifier(seed, total), data, 1, AdversarialTraining(adversary, seed=seed), seed=seed)

    ways: dict[str, Callable[[], float]] = {
        "callback": with_callback,
        "inline": lambda: fit(InlineAttack(seed, total, steps, step_size), data, 1, seed=seed),
        "bare loop": lambda: fit_in_bare_loop(DigitClassifier(seed, total), data, steps, step_size, seed=seed),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(TURNS):
        order = list(ways)[turn:] + list(ways)[:turn]
        for way in order:
            seconds[way].append(ways[way]())
    return {way: statistics.median(each) for way, each in seconds.items()}


def measure_plan(train: LabeledImages, test: LabeledImages, attacked: int, plan: Plan, seed: int) -> Figures:
    """Train, and return the accuracy on all test images and under attack on the first `attacked` of them."""
    model = DigitClassifier(seed, plan.epochs * (len(train[1]) // BATCH), plan.rate)
    callback = AdversarialTraining(plan.adversary, recipe=plan.recipe, warm_up_epochs=1.0, seed=seed)
    seconds = fit(model, TensorDataset(*train), plan.epochs, callback, seed=seed)
    model.eval()
    images, labels = (part[:attacked] for part in test)
    perturbed = [
        perturb_against(
            model, part, own, epsilon=EPSILON, steps=20, step_size=0.03, generator=torch.Generator().manual_seed(index)
        )
        for index, (part, own) in enumerate(zip(torch.split(images, 500), torch.split(labels, 500), strict=True))
    ]
    clean, robust = accuracy_of(model, *test), accuracy_of(model, torch.cat(perturbed), labels)
    return {"clean": clean, "robust": robust, "cpu": seconds, "collapsed": float(callback.state_dict()["collapsed"])}


def measure_candidate(images: Tensor, labels: Tensor, name: str) -> Figures:
    kept = (images[:-VALIDATION], labels[:-VALIDATION])
    validation = (images[-VALIDATION:], labels[-VALIDATION:])
    return measure_plan(kept, validation, VALIDATION_PGD, CANDIDATES[name], CHOICE_SEED)


def report_overhead(overhead: dict[str, list[Figures]]) -> None:
    rows, ratios = [], {}
    for name, runs in overhead.items():
        ratios[name] = [run["callback"] / run["inline"] for run in runs]
        to_bare_loop = [run["callback"] / run["bare loop"] for run in runs]
        cells = [spread_of(runs, way, form=".1f") for way in ("callback", "inline", "bare loop")]
        rows.append([name, *cells, spread(ratios[name], ".3f"), spread(to_bare_loop, ".3f")])
    print_table(["adversary", "callback, CPU s", "inline", "bare loop", "÷ inline", "÷ bare loop"], rows)
    for name, each in ratios.items():
        print_goal(f"{name}: an epoch with the callback ÷ inline at most 1.05", [ratio <= 1.05 for ratio in each])


def print_accuracies(kind: str, measured: dict[str, list[Figures]]) -> None:
    columns = {"clean": ".4f", "robust": ".3f", "cpu": ".0f", "collapsed": ".0f"}
    rows = [
        [name, *(spread_of(runs, key, form=form) for key, form in columns.items())] for name, runs in measured.items()
    ]
    print_table([kind, "clean", "PGD-20", "CPU s", "collapsed"], rows)


def report_recipes(recipes: dict[str, list[Figures]]) -> None:
    print_accuracies("recipe", recipes)
    fast, slow = recipes["FGSM"], recipes["PGD-7"]
    quicker = [one["cpu"] / other["cpu"] for one, other in zip(fast, slow, strict=True)]
    print_goal(f"FGSM ÷ PGD-7, time {spread(quicker, '.2f')}, at most .35", [ratio <= 0.35 for ratio in quicker])
    better = [one["robust"] >= other["robust"] for one, other in zip(fast, slow, strict=True)]
    print_goal("FGSM's PGD-20 accuracy at least PGD-7's", better)
    for name, runs in recipes.items():
        print_goal(f"{name}: clean at least .98", [run["clean"] >= 0.98 for run in runs])
        print_goal(f"{name}: PGD-20 at least .88", [run["robust"] >= 0.88 for run in runs])
        print_goal(f"{name}: at most 180 s", [run["cpu"] <= 180 for run in runs])


def main() -> None:
    parser = benchmark_parser(__doc__)
    parts = ["overhead", "recipes", "choice"]
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts[:2], help="default: overhead recipes")
    args = parser.parse_args()
    silence_lightning()
    warnings.simplefilter("ignore")
    start(args)
    train, test = load_mnist(args.data_root, train=True), load_mnist(args.data_root, train=False)
    results, seeds = Results(args.results), range(args.seeds)

    def over_seeds(part: str, names: Iterable[str], measure: Callable[[str, int], Figures]) -> dict[str, list[Figures]]:
        measured: dict[str, list[Figures]] = {name: [] for name in names}
        for seed in seeds:
            for name, runs in measured.items():
                runs.append(results.get({part: name, "seed": seed}, partial(measure, name, seed)))
        return measured

    if "choice" in args.parts:
        measured = {
            name: [results.get({"candidate": name}, partial(measure_candidate, *train, name))] for name in CANDIDATES
        }
        print_accuracies("candidate", measured)
    if "overhead" in args.parts:
        report_overhead(over_seeds("overhead", OVERHEAD, partial(measure_overhead, *train)))
    if "recipes" in args.parts:
        measure = partial(measure_plan, train, test, len(test[1]))
        report_recipes(over_seeds("recipe", RECIPES, lambda name, seed: measure(RECIPES[name], seed)))


if __name__ == "__main__":
    main()
