"""What missed poison does to a small CNN: appendix A3 of paper 000, and whether the gradient has a part in it.

    python benchmarks/paper_000_a3.py --data-root data --results a3.jsonl --figure a3.png

Smutny 2025 (arXiv 2506.01224) trains a CNN on 500 MNIST images a class, changes some images of one class, labels kept,
and plots accuracy and attack success over how many poisons are trained on, three runs a pair. Its text names neither
the perturbation (the references hold an FGSM tool) nor the class, and gives no figure in numbers.

Here: 500 training images a class, drawn anew for each seed. Of class 3, as many as stated are poison in the place of
their originals: what a filter has missed; the rest of the class stays clean. FGSM and PGD climb the loss of a network
of another seed that was trained on the clean images; beside them stand random signs and one smooth pattern at the same
epsilon, and training without those images: poison in the place of clean images also takes these away. All networks of
a seed start alike. Nothing is defended. Accuracies are on all 10,000 clean test images.

The network is the paper's as far as it is given: three layers of convolution, max-pooling and batch normalization (the
appendix says four), 8, 16 and 32 filters of 3 x 3. `--recipe paper` trains as the paper does: 12 epochs of Adam in
batches of 16 at 1e-4, 5 % less an epoch. The default takes a quarter of the time: 5 epochs in batches of 50, one cycle
up to 2e-3. L2 is 1e-5 in both.

The paper does not say what its attack success rate (ASR) is the rate of. Two readings are measured:
- misread: clean test images of the poisoned class that are read as anything else, which is 1 - its accuracy;
- read as 3: test images of the other classes (250 each), changed as the poison was (the gradient's away from their own
  label, the same smooth pattern), that are read as the poisoned class. Beside it: a network trained without poison.
"""

import functools
import itertools
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from common import Figures, Results, arguments, load_mnist, print_goal, print_setting, print_table, spread
from robust_networks import accuracy_of
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.utils.data import TensorDataset

from lightning_poison import Surrogate, Threat, craft, get_attack
from lightning_poison.randomness import derived_generator, isolated_rng
from lightning_poison.report.style import CURVE_COLORS, finished, new_figure, plain_axes, save_figure

POISONED, EACH, EACH_TEST = 3, 500, 250
MISSED, EPSILONS = (5, 50, 250, 450, 500), (0.01, 0.1, 0.2, 0.3)
GRADIENT, CONTROLS = {"fgsm": "FGSM", "pgd": "PGD"}, {"random-sign": "random signs", "smooth-pattern": "smooth pattern"}
ATTACKS = GRADIENT | CONTROLS
READ_AS = f"changed others read as {POISONED}"
MEASURES = {"accuracy": "accuracy", "misread": f"{POISONED}s misread", "read_as": READ_AS}
ASR, LEFT_OUT = ("misread", "read_as"), "left out, no poison"
TAKES, MORE = 5, 10  # points: what poison must add to an ASR, and what the gradient must add to the controls
CLAIMS = [
    (0.3, 500, "accuracy", "accuracy falls"), (0.3, 500, "others", "accuracy on other classes falls"),
    (0.3, 5, "misread", "misread rises"), (0.01, 500, "misread", "misread rises"),
    (0.3, 5, "read_as", "read as 3 rises"), (0.01, 500, "read_as", "read as 3 rises"),
]  # fmt: skip
Cell = tuple[str, float, int]


class Recipe(NamedTuple):
    epochs: int
    batch: int
    learning_rate: float
    decay: float | None  # factor an epoch; without it the learning rate goes through one cycle


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
        cycle = {"max_lr": recipe.learning_rate, "total_steps": steps * recipe.epochs, "pct_start": 0.2}
        decay = {"gamma": (recipe.decay or 1) ** (1 / steps)}
        kind, settings = (lr_scheduler.ExponentialLR, decay) if recipe.decay else (lr_scheduler.OneCycleLR, cycle)
        schedule: Any = kind(optimizer, **settings)
        for _ in range(recipe.epochs):
            for batch in torch.randperm(len(labels)).split(recipe.batch)[:steps]:
                optimizer.zero_grad(set_to_none=True)
                F.cross_entropy(model(images[batch]), labels[batch]).backward()
                optimizer.step()
                schedule.step()
    return model.eval()


def read_as_ours(model: nn.Module, images: Tensor) -> float:
    """Return the share of images that is read as the poisoned class."""
    return accuracy_of(model, images, torch.full((len(images),), POISONED))


class Bench:
    """The images of one seed, the networks that were trained on them clean, and what each change makes of them."""

    def __init__(self, root: Path, recipe: Recipe, seed: int) -> None:
        self.recipe, self.seed = recipe, seed
        images, labels = load_mnist(root, train=True)
        order = torch.randperm(len(labels), generator=derived_generator(seed, "training images"))
        kept = torch.cat([order[labels[order] == label][:EACH] for label in range(10)])
        self.images, self.labels = images[kept], labels[kept]
        self.members = slice(POISONED * EACH, (POISONED + 1) * EACH)  # in random order
        self.test_images, self.test_labels = load_mnist(root, train=False)
        others = [(self.test_labels == label).nonzero().flatten()[:EACH_TEST] for label in range(10)]
        self.others = torch.cat([part for label, part in enumerate(others) if label != POISONED])
        self.clean = functools.cache(lambda own: fit(self.images, self.labels, recipe, seed if own else 1000 + seed))
        self.changed = functools.cache(self._changed)

    def _changed(self, attack: str, epsilon: float) -> tuple[Tensor, Tensor, float]:
        """Return changed images of the class and of the others, and the share of these read as it without poison."""
        inputs = torch.cat([self.images[self.members], self.test_images[self.others]])
        labels = torch.cat([self.labels[self.members], self.test_labels[self.others]])
        poison = craft(
            get_attack(attack),
            TensorDataset(inputs, labels),
            Threat(len(labels), epsilon=epsilon, clean_label=True, may_append=False),
            surrogates=[Surrogate(self.clean(False), "12")] if attack in GRADIENT else [],
            generator=derived_generator(self.seed, attack),
        )
        changed = inputs.index_put((poison.indices,), poison.inputs)
        return changed[:EACH], changed[EACH:], read_as_ours(self.clean(True), changed[EACH:])

    def measure(self, attack: str, epsilon: float, missed: int) -> Figures:
        """Train on the poison that was missed, and look at the test images."""
        poison, others, read_as_clean = self.changed(attack, epsilon)
        images = self.images.clone()
        images[self.members][:missed] = poison[:missed]
        model = fit(images, self.labels, self.recipe, self.seed)
        return self.judge(model) | {"read_as": read_as_ours(model, others), "read_as_clean": read_as_clean}

    def leave_out(self, missed: int) -> Figures:
        """Train without the images that would have been poison."""
        kept = torch.ones(len(self.labels), dtype=torch.bool)
        kept[self.members][:missed] = False
        return self.judge(fit(self.images[kept], self.labels[kept], self.recipe, self.seed))

    def judge(self, model: nn.Module) -> Figures:
        ours = self.test_labels == POISONED
        own, rest = (accuracy_of(model, self.test_images[part], self.test_labels[part]) for part in (ours, ~ours))
        weight = float(ours.double().mean())
        return {"accuracy": weight * own + (1 - weight) * rest, "misread": 1 - own, "others": rest}


def run(args: Any) -> tuple[list[Figures], dict[Cell, list[Figures]]]:
    results, clean, found = Results(args.results), [], {}
    for seed in range(args.seeds):
        bench, key = Bench(args.data_root, RECIPES[args.recipe], seed), {"seed": seed, "recipe": args.recipe}
        clean.append(results.get(key | {"attack": "none"}, lambda bench=bench: bench.judge(bench.clean(True))))
        for attack, epsilon, missed in itertools.product(ATTACKS, EPSILONS, MISSED):
            cell = {"attack": attack, "epsilon": epsilon, "missed": missed}
            figures = results.get(key | cell, functools.partial(bench.measure, **cell))
            found.setdefault((attack, epsilon, missed), []).append(figures)
        for missed in MISSED:
            left_out = functools.partial(bench.leave_out, missed)
            figures = results.get(key | {"attack": LEFT_OUT, "missed": missed}, left_out)
            found.setdefault((LEFT_OUT, 0.0, missed), []).append(figures)
    return clean, found


def rises(runs: list[Figures], clean: list[Figures], measure: str) -> list[float]:
    """Return by how many points a figure exceeds that of the same seed's network without poison, on the same images."""
    bases = [run.get(f"{measure}_clean", base.get(measure)) for run, base in zip(runs, clean, strict=True)]
    return [100 * (run[measure] - base) for run, base in zip(runs, bases, strict=True)]


def print_figures(clean: list[Figures], found: dict[Cell, list[Figures]]) -> None:
    def percent(runs: list[Figures], measure: str) -> str:
        return spread([100 * figures[measure] for figures in runs], ".1f") if measure in runs[0] else ""

    measures = ["accuracy", "misread", "others"]
    rows = [["no poison", "", "0", *(percent(clean, measure) for measure in measures), "", "", ""]]
    for (attack, epsilon, missed), runs in found.items():
        cells = [percent(runs, measure) for measure in (*measures, "read_as", "read_as_clean")]
        kinds = [rises(runs, clean, measure) for measure in ASR if measure in runs[0]]
        takes = [f"{sum(rise >= TAKES for rise in kind)} of {len(runs)}" for kind in kinds]
        settings = [ATTACKS.get(attack, attack), f"{epsilon:g}" if epsilon else "", str(missed)]
        rows.append([*settings, *cells, "; ".join(takes)])
    columns = ["change", "epsilon", "missed, of 500", "accuracy %", f"ASR: {POISONED}s misread %", "others right %"]
    print_table([*columns, f"ASR: {READ_AS} %", "same, no poison %", f"each ASR + {TAKES} points, seeds"], rows)


def print_verdicts(clean: list[Figures], found: dict[Cell, list[Figures]]) -> None:
    for measure, attack, epsilon in itertools.product(ASR, GRADIENT, EPSILONS):
        kinds = [[rises(found[each, epsilon, n], clean, measure) for each in (attack, *CONTROLS)] for n in MISSED]
        added = [[own - max(rest) for own, *rest in zip(*each, strict=True)] for each in kinds]
        credit = [str(missed) for missed, values in zip(MISSED, added, strict=True) if min(values) >= MORE]
        verdict = f"the gradient adds {MORE} or more at {', '.join(credit)} missed" if credit else "no credit to it"
        shown = ", ".join(f"{statistics.median(values):+.1f}" for values in added)
        print(f"- {MEASURES[measure]}, {ATTACKS[attack]} less the better control, {epsilon:g}: {shown}: {verdict}")
    for attack, name in ATTACKS.items():
        pairs = [(found[attack, EPSILONS[-1], missed], found[LEFT_OUT, 0.0, missed]) for missed in MISSED]
        shown = ", ".join(f"{statistics.median(rises(runs, without, 'misread')):+.1f}" for runs, without in pairs)
        print(f"- poison or loss: {MEASURES['misread']}, {name}, {EPSILONS[-1]:g}, less as many left out: {shown}")
    for epsilon, missed, measure, words in CLAIMS:
        sign = -1 if measure in ("accuracy", "others") else 1
        change = [sign * rise for rise in rises(found["fgsm", epsilon, missed], clean, measure)]
        told = f"as in the paper: {words} by a point, FGSM, {epsilon:g}, {missed} missed: {spread(change, '+.1f')}"
        print_goal(told, [value >= 1 for value in change])


def draw(path: Path, clean: list[Figures], found: dict[Cell, list[Figures]]) -> None:
    """Draw medians and ranges over the number of missed poisons, a line an epsilon."""
    places, bottom = range(len(MISSED) + 1), list(ATTACKS)[-1]
    figure = new_figure(9.6, 10, spacing=0.06)
    grid = figure.subplots(len(ATTACKS), len(MEASURES), sharex=True, sharey="col")
    for row, attack in zip(grid, ATTACKS, strict=True):
        for axes, (measure, title) in zip(row, MEASURES.items(), strict=True):
            for shift, epsilon, color in zip((-0.09, -0.03, 0.03, 0.09), EPSILONS, CURVE_COLORS, strict=False):
                cells = [found[attack, epsilon, missed] for missed in MISSED]
                base = [{"read_as": run["read_as_clean"], **own} for run, own in zip(cells[0], clean, strict=True)]
                values = [[100 * run[measure] for run in runs] for runs in (base, *cells)]
                middle = [statistics.median(each) for each in values]
                ends = [[m - min(each), max(each) - m] for m, each in zip(middle, values, strict=True)]
                axes.errorbar(
                    [place + shift for place in places], middle, yerr=list(zip(*ends, strict=True)),
                    color=color, marker="o", markersize=3, linewidth=1.2, elinewidth=0.8, label=f"ε {epsilon:g}",
                )  # fmt: skip
            axes.set_xticks(places, ["0", *map(str, MISSED)])
            axes.set_title(ATTACKS[attack], fontsize="medium")
            plain_axes(axes, xlabel="missed poisons, of 500" if attack == bottom else "", ylabel=f"{title}, %")
    grid[0][0].legend(frameon=False, fontsize="small")
    save_figure(finished(figure), path)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--figure", type=Path, help="where the figure is written; png, pdf or svg")
    parser.add_argument("--recipe", choices=list(RECIPES), default="quick", help="how the networks are trained")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print_setting(f"paper_000_a3, {args.recipe} recipe", args)
    clean, found = run(args)
    print_figures(clean, found)
    print_verdicts(clean, found)
    if args.figure is not None:
        draw(args.figure, clean, found)


if __name__ == "__main__":
    main()
