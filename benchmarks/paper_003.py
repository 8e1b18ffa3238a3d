"""Paper 003's tables: does adversarial training defend against backdoors? Its figures beside ours, cell by cell.

    python benchmarks/paper_003.py --data-root data --results paper_003.jsonl --figure paper_003_tsne.png

Gopalan, Brar, Kalyani, Nandra, "Adversarial training as a defense against poisoning attacks": MNIST and CIFAR-10,
BadNets and the clean-label backdoor of Turner et al., a small CNN and MobileNet, PGD at epsilon .3 with steps of .01,
40 on MNIST and 5 on CIFAR-10, for 80 epochs. Each row says what stood in for that. What the paper leaves open is ours:

- BadNets: all-to-all, y + 1, a third of the training set, four white pixels in the corner (the pattern of ART);
- clean-label: half of the class 9, perturbed within .3 (16/255 on CIFAR-10) against a small CNN that is trained on the
  same clean images from another seed; white squares in the four corners;
- each at full intensity, and below 2 epsilon: at .5 on MNIST; at 12/255 on CIFAR-10, and there a checkerboard over the
  whole image, since the small CNN does not learn the patches at that amplitude;
- networks: that of Wong, Rice, Kolter 2020 for MNIST; for CIFAR-10 four convolutions in the manner of VGG, and
  MobileNetV2 with a quarter of its channels and a first stride of 1;
- adversarial training: on two cores FGSM with a random start, on MNIST with a radius of .35 and steps of .75 of it, as
  it then withstands PGD-20 at .3 (`adversarial_mnist.py`), on CIFAR-10 with a radius of 8/255; and PGD with seven steps
  for three cells of MNIST. On a GPU (`--device cuda --parts mnist-80 cifar-80 mobilenet-40`) the paper's own PGD and
  epochs, in batches of 2,000 and with a radius that grows over the first eight epochs; on CIFAR-10 PGD-7 at 8/255
  beside it, and the paper's with a random start and without, as it does not say which: five steps of .01 from the image
  itself stay within .05.

"Triggered" is the share of triggered test images that are read as their true label, "success" as the attacker wants;
images whose own label is the wanted one are left out. PGD-20 is the accuracy on 1,000 test images under an attack at
the radius of the data set: a network that fails there was not trained robustly, whatever its name. Features of the last
hidden layer are those of test images: of the true class 8 without and with the trigger; and of the label 8, that is 8s
and triggered 7s. Learning rates, radii and steps were chosen on training images held out, under seed 100.
"""

import functools
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from backdoored_networks import Bench
from common import Figures, Results, arguments, print_goal, print_setting, print_table, spread
from paper_003_cells import CIFAR, FEW_ZEROS, MNIST, PAPER, PARTS, TWO_CORES, Cell, cells_of
from sklearn.manifold import TSNE
from torch import Tensor

from lightning_poison.report.style import (
    CLEAN_COLOR,
    CURVE_COLORS,
    POISON_COLOR,
    finished,
    new_figure,
    plain_axes,
    save_figure,
)

Runs = dict[Cell, list[Figures]]


def percent(runs: Sequence[Figures], *path: str) -> str:
    """Return the median and range of a figure in per cent; nothing where it was not measured."""
    values: list[Any] = [functools.reduce(lambda figures, name: figures.get(name, {}), path, run) for run in runs]
    return spread([100 * value for value in values], ".1f") if values and values[0] != {} else ""


def trigger_of(cell: Cell) -> str:
    if cell.attack == "none":
        return "none"
    size = "full" if cell.amplitude == 1 else ".5" if cell.amplitude == 0.5 else f"{255 * cell.amplitude:.0f}/255"
    return f"{cell.attack}, {'checkerboard, ' if cell.whole else ''}{size}"


def way_of(cell: Cell) -> str:
    return f"{cell.training}, {cell.epochs} epochs, {cell.images:,} images"


def of_paper(cell: Cell) -> tuple[str, str, str]:
    """Return the paper's triggered accuracy, success and clean accuracy; it has full intensity alone."""
    found = PAPER.get((cell.data, cell.network, cell.attack, cell.training != "plain"), ("", "", ""))
    return found if cell.amplitude == 1 else ("", "", "")


def print_attacks(found: Runs, data: str) -> None:
    rows = [
        [cell.network, trigger_of(cell), way_of(cell), str(len(runs))]
        + [entry for paper, name in zip(of_paper(cell), ("right", "asr", "clean"), strict=True)
           for entry in (paper, percent(runs, name))]
        + [percent(runs, "robust"), spread([run["fit_s"] for run in runs], ".0f")]
        for cell, runs in found.items() if cell.data == data and cell.attack != "none"
    ]  # fmt: skip
    print(f"\n{data}")
    columns = ["triggered: paper", "ours", "success: paper", "ours", "clean: paper", "ours", "PGD-20", "s"]
    print_table(["network", "attack, amplitude", "training", "seeds", *columns], rows)


def print_clean(found: Runs) -> None:
    """Print the paper's table without poison; it does not say of which networks its two figures are."""
    rows = [
        [cell.data, way_of(cell), str(len(runs)), of_paper(cell)[2], percent(runs, "clean"), of_paper(cell)[0],
         percent(runs, "robust")]
        for cell, runs in found.items() if cell.attack == "none" and cell.data != FEW_ZEROS
    ]  # fmt: skip
    print("\nNo poison")
    print_table(["data", "training", "seeds", "natural: paper", "ours", "PGD: paper", "ours, PGD-20"], rows)


def print_zeros(found: Runs) -> None:
    """Print the paper's table for 500 zeros and 5,000 of each other digit: clean zeros, and zeros with the trigger."""
    paper = {("none", "plain"): ("97.45", ""), ("clean-label", "plain"): ("98.57", "0")}
    rows = []
    for cell, runs in found.items():
        if cell.data == FEW_ZEROS:
            theirs = paper.get((cell.attack, cell.training), ("94.18", "92.65")) if cell.amplitude == 1 else ("", "")
            ours = [percent(runs, "clean zeros"), percent(runs, "zeros", "right")]
            where = [trigger_of(cell), way_of(cell), str(len(runs))]
            asr, all_clean = percent(runs, "zeros", "asr"), percent(runs, "clean")
            rows.append([*where, theirs[0], ours[0], theirs[1], ours[1], asr, all_clean, percent(runs, "robust")])
    print("\n500 zeros, 5,000 of each other digit")
    columns = ["clean zeros: paper", "ours", "triggered zeros: paper", "ours", "read as 9", "clean", "PGD-20"]
    print_table(["attack, amplitude", "training", "seeds", *columns], rows)


def print_epochs(found: Runs) -> None:
    """Print what triggered images are read as while a network is trained on BadNets at full intensity."""
    rows = []
    for cell, runs in found.items():
        if cell.attack == "BadNets" and cell.amplitude == 1:
            seen = [[*run["history"], run] for run in runs]
            shown = [number for number in (1, 2, 4, 8, 16, 40, 80) if number <= cell.epochs]
            parts = [[each[number - 1] for each in seen] for number in shown]
            told = [
                f"{number}: {percent(part, 'right')}; {percent(part, 'asr')}"
                for number, part in zip(shown, parts, strict=True)
            ]
            rows.append([cell.data, cell.network, way_of(cell), ". ".join(told)])
    print("\nBadNets at full intensity, after so many epochs: triggered images read rightly; as the attacker wants")
    print_table(["data", "network", "training", "epochs"], rows)


def print_features(found: Runs) -> None:
    rows = [
        [trigger_of(cell), way_of(cell), str(len(runs))]
        + [spread([run[of][name] for run in runs], ".2f")
           for of in ("true class", "label") for name in ("silhouette", "probe")]
        for cell, runs in found.items() if "label" in runs[0]
    ]  # fmt: skip
    print("\nFeatures of clean and triggered images: 0 and .5 where they are mixed")
    columns = ["true class 8: silhouette", "probe", "label 8: silhouette", "probe"]
    print_table(["attack, amplitude", "training", "seeds", *columns], rows)


def print_claims(found: Runs) -> None:
    """Print in how many seeds adversarial training leaves the attacker at most 5 %."""
    for cell, runs in found.items():
        if cell.attack != "none" and cell.training != "plain":
            what = f"{cell.data}, {cell.network}, {trigger_of(cell)}, {way_of(cell)}"
            print_goal(f"{what}: success at most 5 %", [run["asr"] <= 0.05 for run in runs])


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
    """Draw the paper's figure 5: t-SNE of the features of class 8, for networks trained plainly and adversarially."""
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
        plain_axes(axes, xlabel="t-SNE 1", ylabel="t-SNE 2")
        axes.set(xticks=[], yticks=[])
        how = "trained plainly" if cell.training == "plain" else cell.training
        axes.set_title(f"{how}, {cell.epochs} epochs, trigger {trigger_of(cell)[9:]}")
    handles = drawn.axes[0].get_legend_handles_labels()
    drawn.legend(*handles, frameon=False, loc="outside upper left", ncols=3, markerscale=3)
    save_figure(finished(drawn), path, dpi=100)


def drawn_cells(parts: Sequence[str]) -> list[Cell]:
    """Return the four cells of the figure, of the longer training where that is among the parts."""
    cells = cells_of("mnist-80" if "mnist-80" in parts else "mnist")
    return [cell for cell in cells if cell.data == MNIST and cell.attack == "BadNets"]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=TWO_CORES)
    parser.add_argument("--device", default="cpu", help="where networks are trained")
    parser.add_argument("--figure", type=Path, help="where the t-SNE of seed 0 goes; trains its networks if need be")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print_setting("paper_003", args)
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
        draw({cell: benches[0].features(cell) for cell in drawn_cells(args.parts)}, args.figure)


if __name__ == "__main__":
    main()
