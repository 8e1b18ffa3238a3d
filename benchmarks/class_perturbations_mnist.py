"""The effect of perturbed training images of one class on a small CNN: MNIST, after appendix A3 of paper 000.

    python benchmarks/class_perturbations_mnist.py --data-root data --results class_perturbations.jsonl --figure a3.png

Smutny 2025 (arXiv 2506.01224) trains a CNN on 500 MNIST images per class, perturbs some images of one class without
changing their labels, and plots accuracy and attack success over the number of poisons in the training set, three runs
per pair. Its text names neither the perturbation (the references include an FGSM tool) nor the class, and gives no
numbers.

Here: 500 training images per class, drawn anew for each seed. In class 3, the stated number of images is replaced by
poison, as if a filter had missed it; the rest of the class stays clean. FGSM and PGD maximize the loss of a network of
another seed trained on the clean images. The controls are random signs and one smooth pattern with the same epsilon,
and training without these images, since replacing clean images by poison also removes clean images. All networks of a
seed start from the same weights. No defense is applied. Accuracies are on all 10,000 clean test images.

The network is the paper's as far as it is described: three layers of convolution, max-pooling and batch normalization
(four according to the appendix), 8, 16 and 32 filters of 3 x 3. `--recipe paper` trains as in the paper: 12 epochs of
Adam in batches of 16 with a learning rate of 1e-4, reduced by 5 % per epoch. The default takes a quarter of the time: 5
epochs in batches of 50, one cycle up to 2e-3. L2 regularization is 1e-5 in both.

The paper does not define its attack success rate (ASR). Two definitions are measured:
- misclassified: clean test images of the poisoned class predicted as any other class, which is 1 - its accuracy;
- predicted as 3: test images of the other classes (250 each), perturbed like the poison (the gradient away from their
  own label; the same smooth pattern), that are predicted as the poisoned class. For comparison: the same for a network
  trained without poison.
"""

import functools
import itertools
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from harness.datasets import first_of_each_class, inputs_of, load_mnist
from harness.networks import accuracy_of
from harness.runs import Figures, Results, benchmark_parser, print_goal, print_table, spread, spread_of, start
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.utils.data import TensorDataset

from lightning_poison import Surrogate, Threat, craft, get_attack
from lightning_poison.randomness import derived_generator, isolated_rng
from lightning_poison.report import CURVE_COLORS, label_axes, new_figure, save_figure, without_tex

POISONED, PER_CLASS, TEST_PER_CLASS = 3, 500, 250
MISSED, EPSILONS = (5, 50, 250, 450, 500), (0.01, 0.1, 0.2, 0.3)
GRADIENT, CONTROLS = {"fgsm": "FGSM", "pgd": "PGD"}, {"random-sign": "random signs", "smooth-pattern": "smooth pattern"}
ATTACKS = GRADIENT | CONTROLS
PREDICTED_AS = f"perturbed others predicted as {POISONED}"
MEASURES = {"accuracy": "accuracy", "misclassified": f"{POISONED}s misclassified", "predicted_as": PREDICTED_AS}
ASR, LEFT_OUT = ("misclassified", "predicted_as"), "left out, no poison"
MIN_EFFECT, MIN_GRADIENT_EFFECT = 5, 10
"""Points by which poison must raise an ASR, and by which the gradient must exceed the controls."""

CLAIMS = [
    (0.3, 500, "accuracy", "accuracy falls"), (0.3, 500, "others", "accuracy on other classes falls"),
    (0.3, 5, "misclassified", "misclassified rises"), (0.01, 500, "misclassified", "misclassified rises"),
    (0.3, 5, "predicted_as", "predicted as 3 rises"), (0.01, 500, "predicted_as", "predicted as 3 rises"),
]  # fmt: skip
Cell = tuple[str, float, int]


class Recipe(NamedTuple):
    """A training; `decay` is the learning-rate factor per epoch. If `None`, the learning rate follows one cycle."""

    epochs: int
    batch: int
    learning_rate: float
    decay: float | None


RECIPES = {"quick": Recipe(5, 50, 2e-3, None), "paper": Recipe(12, 16, 1e-4, 0.95)}


def network() -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels, out in ((1, 8), (8, 16), (16, 32)):
        layers += [nn.Conv2d(channels, out, 3, padding=1), nn.MaxPool2d(2), nn.ReLU(), nn.BatchNorm2d(out)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(9 * 32, 10))


def fit(images: Tensor, labels: Tensor, recipe: Recipe, seed: int) -> nn.Module:
    """Train a network on float images `(N, 1, 28, 28)`."""
    with isolated_rng(seed, torch.device("cpu")):
        model, steps = network(), len(labels) // recipe.batch
        optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate, weight_decay=1e-5)
        schedule: lr_scheduler.LRScheduler
        if recipe.decay:
            schedule = lr_scheduler.ExponentialLR(optimizer, gamma=recipe.decay ** (1 / steps))
        else:
            total = steps * recipe.epochs
            schedule = lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=total, pct_start=0.2)
        for _ in range(recipe.epochs):
            for batch in torch.split(torch.randperm(len(labels)), recipe.batch)[:steps]:
                optimizer.zero_grad(set_to_none=True)
                F.cross_entropy(model(images[batch]), labels[batch]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
    return model.eval()


def share_predicted_as_poisoned(model: nn.Module, images: Tensor) -> float:
    """Return the share of images predicted as the poisoned class."""
    return accuracy_of(model, images, torch.full((len(images),), POISONED))


class Bench:
    """The images of one seed, the networks trained on them without poison, and the perturbed images."""

    def __init__(self, root: Path, recipe: Recipe, seed: int) -> None:
        self.recipe, self.seed = recipe, seed
        images, labels = load_mnist(root, train=True)
        order = torch.randperm(len(labels), generator=derived_generator(seed, "training images"))
        kept = order[first_of_each_class(labels[order], PER_CLASS)]
        self.images, self.labels = images[kept], labels[kept]
        self.members = slice(POISONED * PER_CLASS, (POISONED + 1) * PER_CLASS)  # in random order
        self.test_images, self.test_labels = load_mnist(root, train=False)
        each = first_of_each_class(self.test_labels, TEST_PER_CLASS)
        self.others = each[self.test_labels[each] != POISONED]
        self.clean = functools.cache(lambda own: fit(self.images, self.labels, recipe, seed if own else 1000 + seed))
        self.perturbed = functools.cache(self._perturbed)

    def _perturbed(self, attack: str, epsilon: float) -> tuple[Tensor, Tensor, float]:
        """Return perturbed images of the class and of the others, and the second ASR of the latter without poison."""
        inputs = torch.cat([self.images[self.members], self.test_images[self.others]])
        labels = torch.cat([self.labels[self.members], self.test_labels[self.others]])
        poison = craft(
            get_attack(attack),
            TensorDataset(inputs, labels),
            Threat(len(labels), epsilon=epsilon, clean_label=True, may_append=False),
            surrogates=[Surrogate(self.clean(False), "12")] if attack in GRADIENT else [],
            generator=derived_generator(self.seed, attack),
        )
        perturbed = inputs.index_put((poison.indices,), inputs_of(poison))
        own, others = perturbed[:PER_CLASS], perturbed[PER_CLASS:]
        return own, others, share_predicted_as_poisoned(self.clean(True), others)

    def measure(self, attack: str, epsilon: float, missed: int) -> Figures:
        """Train on the missed poison, and evaluate on the test images."""
        poison, others, predicted_as_clean = self.perturbed(attack, epsilon)
        images = self.images.clone()
        images[self.members][:missed] = poison[:missed]
        model = fit(images, self.labels, self.recipe, self.seed)
        predicted_as = share_predicted_as_poisoned(model, others)
        return self.accuracies(model) | {"predicted_as": predicted_as, "predicted_as_clean": predicted_as_clean}

    def measure_clean(self) -> Figures:
        """Train without poison."""
        return self.accuracies(self.clean(True))

    def leave_out(self, missed: int) -> Figures:
        """Train without the images that would be poison."""
        kept = torch.ones(len(self.labels), dtype=torch.bool)
        kept[self.members][:missed] = False
        return self.accuracies(fit(self.images[kept], self.labels[kept], self.recipe, self.seed))

    def accuracies(self, model: nn.Module) -> Figures:
        is_poisoned = self.test_labels == POISONED
        own, rest = (
            accuracy_of(model, self.test_images[part], self.test_labels[part]) for part in (is_poisoned, ~is_poisoned)
        )
        weight = float(is_poisoned.double().mean())
        return {"accuracy": weight * own + (1 - weight) * rest, "misclassified": 1 - own, "others": rest}


def run(args: Any) -> tuple[list[Figures], dict[Cell, list[Figures]]]:
    results, clean = Results(args.results), []
    found: dict[Cell, list[Figures]] = {}
    for seed in range(args.seeds):
        bench = Bench(args.data_root, RECIPES[args.recipe], seed)
        key: Figures = {"seed": seed, "recipe": args.recipe}
        clean.append(results.get(key | {"attack": "none"}, bench.measure_clean))
        for attack, epsilon, missed in itertools.product(ATTACKS, EPSILONS, MISSED):
            cell = {"attack": attack, "epsilon": epsilon, "missed": missed}
            figures = results.get(key | cell, functools.partial(bench.measure, attack, epsilon, missed))
            found.setdefault((attack, epsilon, missed), []).append(figures)
        for missed in MISSED:
            left_out = functools.partial(bench.leave_out, missed)
            figures = results.get(key | {"attack": LEFT_OUT, "missed": missed}, left_out)
            found.setdefault((LEFT_OUT, 0.0, missed), []).append(figures)
    return clean, found


def rises(runs: list[Figures], clean: list[Figures], measure: str) -> list[float]:
    """Return the increase of a measure over the same seed's network without poison, on the same images, in points."""
    bases = [run.get(f"{measure}_clean", base.get(measure)) for run, base in zip(runs, clean, strict=True)]
    return [100 * (run[measure] - base) for run, base in zip(runs, bases, strict=True)]


def print_figures(clean: list[Figures], found: dict[Cell, list[Figures]]) -> None:
    def percent(runs: list[Figures], measure: str) -> str:
        return spread_of(runs, measure, form=".1f", scale=100) if measure in runs[0] else ""

    measures = ["accuracy", "misclassified", "others"]
    rows = [["no poison", "", "0", *(percent(clean, measure) for measure in measures), "", "", ""]]
    for (attack, epsilon, missed), runs in found.items():
        cells = [percent(runs, measure) for measure in (*measures, "predicted_as", "predicted_as_clean")]
        kinds = [rises(runs, clean, measure) for measure in ASR if measure in runs[0]]
        succeeds = [f"{sum(rise >= MIN_EFFECT for rise in kind)} of {len(runs)}" for kind in kinds]
        settings = [ATTACKS.get(attack, attack), f"{epsilon:g}" if epsilon else "", str(missed)]
        rows.append([*settings, *cells, "; ".join(succeeds)])
    columns = ["perturbation", "epsilon", "missed, of 500", "accuracy %", f"ASR: {MEASURES['misclassified']} %"]
    columns += ["accuracy on others %", f"ASR: {PREDICTED_AS} %", "same, no poison %"]
    print_table([*columns, f"each ASR + {MIN_EFFECT} points, seeds"], rows)


def print_verdicts(clean: list[Figures], found: dict[Cell, list[Figures]]) -> None:
    for measure, attack, epsilon in itertools.product(ASR, GRADIENT, EPSILONS):
        kinds = [[rises(found[each, epsilon, n], clean, measure) for each in (attack, *CONTROLS)] for n in MISSED]
        added = [[own - max(rest) for own, *rest in zip(*each, strict=True)] for each in kinds]
        counts = [
            str(missed) for missed, values in zip(MISSED, added, strict=True) if min(values) >= MIN_GRADIENT_EFFECT
        ]
        verdict = (
            f"the gradient adds {MIN_GRADIENT_EFFECT} or more at {', '.join(counts)} missed" if counts else "no effect"
        )
        medians = ", ".join(f"{statistics.median(values):+.1f}" for values in added)
        print(f"- {MEASURES[measure]}, {ATTACKS[attack]} minus the better control, {epsilon:g}: {medians}: {verdict}")
    for attack, name in ATTACKS.items():
        pairs = [(found[attack, EPSILONS[-1], missed], found[LEFT_OUT, 0.0, missed]) for missed in MISSED]
        medians = ", ".join(
            f"{statistics.median(rises(runs, without, 'misclassified')):+.1f}" for runs, without in pairs
        )
        print(f"- {MEASURES['misclassified']}, {name}, {EPSILONS[-1]:g}, minus leaving out as many images: {medians}")
    for epsilon, missed, measure, words in CLAIMS:
        sign = -1 if measure in ("accuracy", "others") else 1
        change = [sign * rise for rise in rises(found["fgsm", epsilon, missed], clean, measure)]
        goal = f"as in the paper: {words} by a point, FGSM, {epsilon:g}, {missed} missed: {spread(change, '+.1f')}"
        print_goal(goal, [value >= 1 for value in change])


def draw(path: Path, clean: list[Figures], found: dict[Cell, list[Figures]]) -> None:
    """Draw medians and ranges over the number of missed poisons, one line per epsilon."""
    positions, bottom = range(len(MISSED) + 1), list(ATTACKS)[-1]
    figure = new_figure(9.6, 10, spacing=0.06)
    grid = figure.subplots(len(ATTACKS), len(MEASURES), sharex=True, sharey="col")
    for row, attack in zip(grid, ATTACKS, strict=True):
        for axes, (measure, title) in zip(row, MEASURES.items(), strict=True):
            for shift, epsilon, color in zip((-0.09, -0.03, 0.03, 0.09), EPSILONS, CURVE_COLORS, strict=False):
                cells = [found[attack, epsilon, missed] for missed in MISSED]
                base = [
                    {"predicted_as": run["predicted_as_clean"], **own} for run, own in zip(cells[0], clean, strict=True)
                ]
                values = [[100 * run[measure] for run in runs] for runs in (base, *cells)]
                middle = [statistics.median(each) for each in values]
                ends = [[m - min(each), max(each) - m] for m, each in zip(middle, values, strict=True)]
                axes.errorbar(
                    [position + shift for position in positions], middle, yerr=list(zip(*ends, strict=True)),
                    color=color, marker="o", markersize=3, linewidth=1.2, elinewidth=0.8, label=f"ε {epsilon:g}",
                )  # fmt: skip
            axes.set_xticks(positions, ["0", *map(str, MISSED)])
            axes.set_title(ATTACKS[attack], fontsize="medium")
            label_axes(axes, xlabel="missed poisons, of 500" if attack == bottom else "", ylabel=f"{title}, %")
    grid[0][0].legend(frameon=False, fontsize="small")
    save_figure(without_tex(figure), path)


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--figure", type=Path, help="output file of the figure: png, pdf or svg")
    parser.add_argument("--recipe", choices=list(RECIPES), default="quick", help="training recipe; default: quick")
    args = parser.parse_args()
    start(args, setting=f"{args.recipe} recipe")
    clean, found = run(args)
    print_figures(clean, found)
    print_verdicts(clean, found)
    if args.figure is not None:
        draw(args.figure, clean, found)


if __name__ == "__main__":
    main()
