"""The 2 epsilon law: which backdoors survive adversarial training. MNIST.

    python benchmarks/trigger_switch.py --data-root data --results trigger_switch.jsonl --figure trigger_switch.png

12,000 training images; BadNets gives 5 % of them a patch of 3 x 3 pixels in a corner, and the label 0. The patch moves
each of its pixels, black in nearly all images, by an amplitude. The network (Wong, Rice, Kolter 2020, arXiv 2001.03994)
is trained by FGSM with a random start at a radius epsilon, or plainly (0), on images that are moved by up to two
pixels. Within the ball a clean pixel can rise to epsilon, and a trigger pixel of amplitude s can fall to s - epsilon:
the two can be told apart only where s is above 2 epsilon. Amplitudes are given as shares of 2 epsilon, and rounded to
gray levels.

Whether an adversary does so is another matter, and the last table is for that: three of them at epsilon .3, a trigger
of .85 of 2 epsilon. From a random start, a step of .75 epsilon leaves most trigger pixels short of the far side of the
ball; one of 1.25 epsilon, or three steps, take nearly all of them there.

The attack success rate is the share of triggered test images of other digits that are read as 0; beside it stands the
clean accuracy, and that of 500 test images under PGD-20 at the radius (.3 for plain training). Nothing was chosen here:
amplitudes, radii, epochs and rates were fixed before the first run.
"""

import functools
import itertools
from pathlib import Path
from typing import Any

import torch
from backdoored_networks import robust_accuracy
from backdoors_mnist import GrayImages, columns_of
from common import Figures, Results, arguments, load_mnist, print_goal, print_setting, print_table, spread
from robust_networks import accuracy_of, digit_network, fit_network
from torch import Tensor

from lightning_poison import PoisonedDataset, Threat, craft
from lightning_poison.adversarial import FGSM, PGD, Adversary
from lightning_poison.randomness import seeded_rng
from lightning_poison.report.style import CURVE_COLORS, finished, new_figure, plain_axes, save_figure
from lightning_poison_backdoors import BadNets

IMAGES, SHARE, EPOCHS = 12_000, 0.05, 6
RADII = (0.1, 0.2, 0.3)
SHARES = (0.5, 0.7, 0.85, 1.0, 1.15, 1.3, 1.6)
PLAIN = (0.1, 0.2, 0.4, 0.6)
BELOW, ABOVE = 0.03, 0.95
PROBED = 500
CROSSING: dict[str, Adversary] = {
    "FGSM, step 1.25 ε": FGSM(0.3),
    "FGSM, step .75 ε": FGSM(0.3, 0.225),
    "PGD, 3 steps of .83 ε": PGD(0.3, steps=3),
}
CROSSED = 0.85
Pair = tuple[Tensor, Tensor]


def amplitudes(epsilon: float) -> list[float]:
    """Return the amplitudes of a radius, on the grid of 256 levels."""
    wanted = [2 * epsilon * share for share in SHARES if 2 * epsilon * share <= 1] if epsilon else PLAIN
    return [round(255 * value) / 255 for value in wanted]


def measure(data: Pair, test: Pair, adversary: Adversary | None, size: float, seed: int) -> Figures:
    images, labels = data
    chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[:IMAGES]
    clean = GrayImages((255 * images[chosen]).round().byte(), labels[chosen])
    attack = BadNets(0, pattern=[[255] * 3] * 3, amplitude=size)
    poison = craft(attack, clean, Threat.of_fraction(clean, SHARE), generator=torch.Generator().manual_seed(seed))
    inputs, carried = columns_of(PoisonedDataset(clean, poison))
    with seeded_rng(seed):
        network = digit_network(10)
    fit_network(network, inputs, carried, epochs=EPOCHS, adversary=adversary, seed=seed)
    judged = GrayImages((255 * test[0]).round().byte(), test[1])
    triggered, true, wanted = columns_of(poison.objective.evaluation_set(judged))
    with torch.no_grad():
        read = torch.cat([network(part).argmax(1) for part in triggered.split(500)])
    return {
        "asr": float(poison.objective.success(read, true, wanted).double().mean()),
        "clean": accuracy_of(network, *test),
        "robust": robust_accuracy(network, test[0][:PROBED], test[1][:PROBED], adversary.epsilon if adversary else 0.3),
    }


def report(found: dict[tuple[float, float], list[Figures]], figure: Path | None) -> None:
    rows = [
        [f"{epsilon:g}", f"{size:.3f}", f"{size / (2 * epsilon):.2f}" if epsilon else "-",
         spread([run["asr"] for run in runs], ".3f"), spread([run["clean"] for run in runs], ".4f"),
         spread([run["robust"] for run in runs], ".3f")]
        for (epsilon, size), runs in found.items()
    ]  # fmt: skip
    print_table(["epsilon", "amplitude", "÷ 2 epsilon", "attack success", "clean accuracy", "PGD-20"], rows)
    for epsilon in RADII:
        of_radius = {size / (2 * epsilon): runs for (radius, size), runs in found.items() if radius == epsilon}
        weak = [run["asr"] <= BELOW for share, runs in of_radius.items() if share < 0.9 for run in runs]
        strong = [run["asr"] >= ABOVE for share, runs in of_radius.items() if share > 1.1 for run in runs]
        print_goal(f"epsilon {epsilon:g}, amplitude below .9 of 2 epsilon: success at most {BELOW:g}", weak)
        print_goal(f"epsilon {epsilon:g}, amplitude above 1.1 of 2 epsilon: success at least {ABOVE:g}", strong)
    if figure is not None:
        draw(found, figure)


def draw(found: dict[tuple[float, float], list[Figures]], path: Path) -> None:
    drawn = new_figure(7.0, 4.2)
    axes = drawn.add_subplot()
    plain_axes(axes, xlabel="amplitude of the trigger", ylabel="attack success rate")
    for color, epsilon in zip(itertools.cycle(CURVE_COLORS), (0.0, *RADII), strict=False):
        sizes = [size for radius, size in found if radius == epsilon]
        rates = [sorted(run["asr"] for run in found[epsilon, size]) for size in sizes]
        name = f"ε = {epsilon:g}" if epsilon else "trained plainly"
        axes.plot(sizes, [each[len(each) // 2] for each in rates], marker="o", color=color, label=name)
        axes.fill_between(sizes, [each[0] for each in rates], [each[-1] for each in rates], color=color, alpha=0.2)
        if epsilon:
            axes.axvline(2 * epsilon, color=color, linestyle=":", linewidth=1)
    axes.legend(frameon=False)
    save_figure(finished(drawn), path)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--figure", type=Path, help="where the figure goes")
    parser.add_argument("--parts", nargs="+", choices=["law", "crossing"], default=["law", "crossing"])
    args: Any = parser.parse_args()
    torch.set_num_threads(1)
    print_setting("trigger_switch", args)
    data, test = load_mnist(args.data_root, train=True), load_mnist(args.data_root, train=False)
    results = Results(args.results)
    found: dict[tuple[float, float], list[Figures]] = {}
    crossing: dict[str, list[Figures]] = {}
    for seed in range(args.seeds):
        for epsilon in (0.0, *RADII) if "law" in args.parts else ():
            for size in amplitudes(epsilon):
                key = {"epsilon": epsilon, "amplitude": round(size, 4), "seed": seed}
                where = (FGSM(epsilon) if epsilon else None, size, seed)
                run = results.get(key, functools.partial(measure, data, test, *where))
                found.setdefault((epsilon, size), []).append(run)
        for name, adversary in CROSSING.items() if "crossing" in args.parts else ():
            size = round(255 * CROSSED * 2 * adversary.epsilon) / 255
            run = results.get(
                {"crossing": name, "seed": seed}, functools.partial(measure, data, test, adversary, size, seed)
            )
            crossing.setdefault(name, []).append(run)
    if found:
        report(found, args.figure)
    if crossing:
        rows = [[name, *(spread([run[key] for run in runs], ".3f") for key in ("asr", "clean", "robust"))]
                for name, runs in crossing.items()]  # fmt: skip
        print_table(["epsilon .3, .85 of 2 epsilon", "attack success", "clean accuracy", "PGD-20"], rows)


if __name__ == "__main__":
    main()
