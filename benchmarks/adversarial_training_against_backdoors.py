"""Adversarial training as a defense against backdoors: paper 003's tables, compared cell by cell. MNIST and CIFAR-10.

    python benchmarks/adversarial_training_against_backdoors.py --data-root data --results paper_003.jsonl
        --figure paper_003_tsne.png

Gopalan, Brar, Kalyani, Nandra, "Adversarial training as a defense against poisoning attacks": MNIST and CIFAR-10,
BadNets and the clean-label backdoor of Turner et al., a small CNN and MobileNet, PGD with epsilon .3 and steps of .01,
40 steps on MNIST and 5 on CIFAR-10, for 80 epochs. Each row states the training used here instead. Chosen here, since
the paper does not specify them:

- BadNets: all-to-all, y + 1, a third of the training set, four white pixels in the corner (the pattern of ART);
- clean-label: half of the class 9, perturbed within .3 (16/255 on CIFAR-10) against a small CNN trained on the same
  clean images with another seed; white squares in the four corners;
- both at full intensity, and below 2 epsilon: at .5 on MNIST; at 12/255 on CIFAR-10, there as a checkerboard over the
  whole image, since the small CNN does not learn the patches at that amplitude;
- networks: that of Wong, Rice, Kolter 2020 for MNIST; for CIFAR-10 four VGG-style convolutions, and MobileNetV2 with a
  quarter of its channels and a first stride of 1;
- adversarial training: on two cores, FGSM with a random start; on MNIST with a radius of .35 and steps of .75 times the
  radius, which makes it robust to PGD-20 at .3 (`adversarial_training_mnist.py`), on CIFAR-10 with a radius of 8/255;
  and PGD with seven steps for three cells of MNIST. On a GPU (`--device cuda --parts mnist-80 cifar-80 mobilenet-40`),
  the paper's own PGD and epochs, in batches of 2,000, with a radius that grows over the first eight epochs; on CIFAR-10
  also PGD-7 at 8/255, and the paper's PGD with and without a random start, which it does not specify: five steps of .01
  from the image itself stay within .05.

"Triggered" is the share of triggered test images predicted as their true label, "success" the share predicted as the
attacker wants; images whose own label is the wanted one are left out. PGD-20 is the accuracy on 1,000 test images under
an attack with the radius of the data set; a network that fails there is not robust. Features of the last hidden layer
are those of test images: of the true class 8 without and with the trigger; and of the label 8, that is, of 8s and of
triggered 7s. Learning rates, radii and steps were chosen on held-out training images with seed 100.
"""

import functools
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness.backdoor_cells import CIFAR, CPU_PARTS, FEW_ZEROS, MNIST, PAPER, PARTS, Cell, cells_of
from harness.backdoored_networks import Bench
from harness.runs import Figures, Results, benchmark_parser, print_goal, print_table, spread, spread_of, start
from sklearn.manifold import TSNE
from torch import Tensor

from lightning_poison.report import (
    CLEAN_COLOR,
    CURVE_COLORS,
    POISON_COLOR,
    label_axes,
    new_figure,
    save_figure,
    without_tex,
)

Runs = dict[Cell, list[Figures]]


def percent(runs: Sequence[Figures], *path: str) -> str:
    """Return the median and range of a measure in percent, or an empty string if it was not measured."""
    values: list[Any] = [functools.reduce(lambda figures, name: figures.get(name, {}), path, run) for run in runs]
    return spread([100 * value for value in values], ".1f") if values and values[0] != {} else ""


def trigger_text(cell: Cell) -> str:
    if cell.attack == "none":
        return "none"
    size = "full" if cell.amplitude == 1 else ".5" if cell.amplitude == 0.5 else f"{255 * cell.amplitude:.0f}/255"
    return f"{cell.attack}, {'checkerboard, ' if cell.whole else ''}{size}"


def training_text(cell: Cell) -> str:
    return f"{cell.training}, {cell.epochs} epochs, {cell.images:,} images"


def paper_numbers(cell: Cell) -> tuple[str, str, str]:
    """Return the paper's triggered accuracy, success and clean accuracy, reported for full intensity only."""
    found = PAPER.get((cell.data, cell.network, cell.attack, cell.training != "plain"), ("", "", ""))
    return found if cell.amplitude == 1 else ("", "", "")


def print_attacks(found: Runs, data: str) -> None:
    rows = [
        [cell.network, trigger_text(cell), training_text(cell), str(len(runs))]
        + [entry for paper, name in zip(paper_numbers(cell), ("correct", "asr", "clean"), strict=True)
           for entry in (paper, percent(runs, name))]
        + [percent(runs, "robust"), spread_of(runs, "fit_s", form=".0f")]
        for cell, runs in found.items() if cell.data == data and cell.attack != "none"
    ]  # fmt: skip
    print(f"\n{data}")
    columns = ["triggered: paper", "ours", "success: paper", "ours", "clean: paper", "ours", "PGD-20", "s"]
    print_table(["network", "attack, amplitude", "training", "seeds", *columns], rows)


def print_clean(found: Runs) -> None:
    """Print the paper's table without poison; it does not specify the networks of its two numbers."""
    rows = [
        [cell.data, training_text(cell), str(len(runs)), paper_numbers(cell)[2], percent(runs, "clean"),
         paper_numbers(cell)[0], percent(runs, "robust")]
        for cell, runs in found.items() if cell.attack == "none" and cell.data != FEW_ZEROS
    ]  # fmt: skip
    print("\nNo poison")
    print_table(["data", "training", "seeds", "natural: paper", "ours", "PGD: paper", "ours, PGD-20"], rows)


def print_zeros(found: Runs) -> None:
    """Print the paper's table for 500 zeros and 5,000 of each other digit: clean and triggered zeros."""
    paper = {("none", "plain"): ("97.45", ""), ("clean-label", "plain"): ("98.57", "0")}
    rows = []
    for cell, runs in found.items():
        if cell.data == FEW_ZEROS:
            theirs = paper.get((cell.attack, cell.training), ("94.18", "92.65")) if cell.amplitude == 1 else ("", "")
            ours = [percent(runs, "clean zeros"), percent(runs, "zeros", "correct")]
            where = [trigger_text(cell), training_text(cell), str(len(runs))]
            asr, all_clean = percent(runs, "zeros", "asr"), percent(runs, "clean")
            rows.append([*where, theirs[0], ours[0], theirs[1], ours[1], asr, all_clean, percent(runs, "robust")])
    print("\n500 zeros, 5,000 of each other digit")
    columns = ["clean zeros: paper", "ours", "triggered zeros: paper", "ours", "predicted as 9", "clean", "PGD-20"]
    print_table(["attack, amplitude", "training", "seeds", *columns], rows)


def print_epochs(found: Runs) -> None:
    """Print the predictions of triggered images during training on BadNets at full intensity."""
    rows = []
    for cell, runs in found.items():
        if cell.attack == "BadNets" and cell.amplitude == 1:
            histories = [[*run["history"], run] for run in runs]
            numbers = [number for number in (1, 2, 4, 8, 16, 40, 80) if number <= cell.epochs]
            parts = [[history[number - 1] for history in histories] for number in numbers]
            entries = [
                f"{number}: {percent(part, 'correct')}; {percent(part, 'asr')}"
                for number, part in zip(numbers, parts, strict=True)
            ]
            rows.append([cell.data, cell.network, training_text(cell), ". ".join(entries)])
    print("\nBadNets at full intensity, by epoch: triggered images predicted correctly; as the attacker wants")
    print_table(["data", "network", "training", "epochs"], rows)


def print_features(found: Runs) -> None:
    rows = [
        [trigger_text(cell), training_text(cell), str(len(runs))]
        + [spread_of(runs, of, name, form=".2f")
           for of in ("true class", "label") for name in ("silhouette", "probe")]
        for cell, runs in found.items() if "label" in runs[0]
    ]  # fmt: skip
    print("\nFeatures of clean and triggered images: 0 and .5 if they are mixed")
    columns = ["true class 8: silhouette", "probe", "label 8: silhouette", "probe"]
    print_table(["attack, amplitude", "training", "seeds", *columns], rows)


def print_claims(found: Runs) -> None:
    """Print in how many seeds adversarial training reduces the attack success to at most 5 %."""
    for cell, runs in found.items():
        if cell.attack != "none" and cell.training != "plain":
            setting = f"{cell.data}, {cell.network}, {trigger_text(cell)}, {training_text(cell)}"
            print_goal(f"{setting}: success at most 5 %", [run["asr"] <= 0.05 for run in runs])


def report(found: Runs) -> None:
    print_clean(found)
    for data in (MNIST, CIFAR):
        if any(cell.data == data for cell in found):
            print_attacks(found, data)
    if any(cell.data == FEW_ZEROS for cell in found):
        print_zeros(found)
    print_epochs(found)
    print_features(found)
    print_claims(found)


def draw(features: dict[Cell, list[Tensor]], path: Path) -> None:
    """Draw the paper's figure 5: t-SNE of the features of class 8, after plain and adversarial training."""
    drawn = new_figure(8.0, 8.0)
    for (cell, parts), axes in zip(features.items(), drawn.subplots(2, 2).flat, strict=True):
        points = TSNE(2, random_state=0).fit_transform(torch.cat(parts).numpy())
        for part, color, name in zip(
            np.split(points, np.cumsum([len(part) for part in parts])[:-1]),
            (CLEAN_COLOR, POISON_COLOR, CURVE_COLORS[2]),
            ("clean 8s", "8s with the trigger", "7s with the trigger, labeled 8"),
            strict=True,
        ):
            axes.scatter(part[:, 0], part[:, 1], s=5, color=color, alpha=0.6, linewidths=0, label=name)
        label_axes(axes, xlabel="t-SNE 1", ylabel="t-SNE 2")
        axes.set(xticks=[], yticks=[])
        how = "trained plainly" if cell.training == "plain" else cell.training
        axes.set_title(f"{how}, {cell.epochs} epochs, trigger {trigger_text(cell)[9:]}")
    handles = drawn.axes[0].get_legend_handles_labels()
    drawn.legend(*handles, frameon=False, loc="outside upper left", ncols=3, markerscale=3)
    save_figure(without_tex(drawn), path, dpi=100)


def plotted_cells(parts: Sequence[str]) -> list[Cell]:
    """Return the four cells of the figure, with the longer training if it is among the parts."""
    cells = cells_of("mnist-80" if "mnist-80" in parts else "mnist")
    return [cell for cell in cells if cell.data == MNIST and cell.attack == "BadNets"]


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=CPU_PARTS, help="default: all that need no GPU")
    parser.add_argument("--device", default="cpu", help="device for training; default: cpu")
    parser.add_argument("--figure", type=Path, help="output file of the t-SNE of seed 0, whose networks are trained")
    args = parser.parse_args()
    start(args)
    results = Results(args.results)
    benches = [Bench(args.data_root, seed, args.device) for seed in range(args.seeds)]
    found: Runs = {}
    for part in args.parts:
        for bench in benches[: None if PARTS[part] else 1]:
            for cell in cells_of(part):
                key = {**asdict(cell), "seed": bench.seed}
                found.setdefault(cell, []).append(results.get(key, functools.partial(bench.measure, cell)))
    report(found)
    if args.figure:
        draw({cell: benches[0].features(cell) for cell in plotted_cells(args.parts)}, args.figure)


if __name__ == "__main__":
    main()
