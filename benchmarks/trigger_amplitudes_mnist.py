"""Attack success over the amplitude of a backdoor's trigger, under adversarial training (the 2 epsilon law): MNIST.

    python benchmarks/trigger_amplitudes_mnist.py --data-root data --results trigger_amplitudes.jsonl
        --figure trigger_switch.png

12,000 training images; BadNets gives 5 % of them a patch of 3 x 3 pixels in a corner, and the label 0. The patch moves
each of its pixels, black in nearly all images, by an amplitude. The network (Wong, Rice, Kolter 2020, arXiv 2001.03994)
is trained by FGSM with a random start and radius epsilon, or plainly (0), on images shifted by up to two pixels. Within
the ball, a clean pixel can rise to epsilon, and a trigger pixel of amplitude s can fall to s - epsilon: the two are
distinguishable only if s is above 2 epsilon. Amplitudes are given as shares of 2 epsilon and rounded to gray levels.

Not every adversary reaches the other side of the ball. The last table compares three at epsilon .3, with a trigger of
.85 of 2 epsilon. From a random start, a step of .75 epsilon leaves most trigger pixels short of the far side of the
ball; one of 1.25 epsilon, or three steps, move nearly all of them there.

The attack success rate is the share of triggered test images of other digits predicted as 0. The table also has the
clean accuracy, and the accuracy of 500 test images under PGD-20 with the radius (.3 for plain training). Nothing was
tuned: amplitudes, radii, epochs and rates were fixed before the first run.
"""

import functools
import itertools
from pathlib import Path

import torch
from harness.datasets import LabeledImages, RawDataset, columns_of, load_mnist
from harness.networks import accuracy_of, digit_network, fit_network, predict, robust_accuracy
from harness.runs import Figures, Results, benchmark_parser, print_goal, print_table, share, spread_of, start

from lightning_poison import PoisonedDataset, Threat, craft
from lightning_poison.adversarial import FGSM, PGD, Adversary
from lightning_poison.randomness import seeded_rng
from lightning_poison.report import CURVE_COLORS, label_axes, new_figure, save_figure, without_tex
from lightning_poison_backdoors import BadNets

IMAGES, POISON_FRACTION, EPOCHS = 12_000, 0.05, 6
RADII = (0.1, 0.2, 0.3)
SHARES = (0.5, 0.7, 0.85, 1.0, 1.15, 1.3, 1.6)
PLAIN = (0.1, 0.2, 0.4, 0.6)
BELOW, ABOVE = 0.03, 0.95
ROBUST_IMAGES = 500
CROSSING: dict[str, Adversary] = {
    "FGSM, step 1.25 ε": FGSM(0.3),
    "FGSM, step .75 ε": FGSM(0.3, 0.225),
    "PGD, 3 steps of .83 ε": PGD(0.3, steps=3),
}
CROSSING_SHARE = 0.85


def amplitudes(epsilon: float) -> list[float]:
    """Return the amplitudes of a radius, on the grid of 256 levels."""
    wanted = [2 * epsilon * share for share in SHARES if 2 * epsilon * share <= 1] if epsilon else PLAIN
    return [round(255 * value) / 255 for value in wanted]


def measure(data: LabeledImages, test: LabeledImages, adversary: Adversary | None, size: float, seed: int) -> Figures:
    images, labels = data
    chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[:IMAGES]
    clean = RawDataset.from_floats(images[chosen], labels[chosen])
    attack, threat = BadNets(0, pattern=[[255] * 3] * 3, amplitude=size), Threat.of_fraction(clean, POISON_FRACTION)
    poison = craft(attack, clean, threat, generator=torch.Generator().manual_seed(seed))
    inputs, carried = columns_of(PoisonedDataset(clean, poison))
    with seeded_rng(seed):
        network = digit_network(10)
    fit_network(network, inputs, carried, epochs=EPOCHS, adversary=adversary, seed=seed)
    triggered, true, wanted = columns_of(poison.objective.evaluation_set(RawDataset.from_floats(*test)))
    few = test[0][:ROBUST_IMAGES], test[1][:ROBUST_IMAGES]
    return {
        "asr": share(poison.objective.success(predict(network, triggered), true, wanted)),
        "clean": accuracy_of(network, *test),
        "robust": robust_accuracy(network, *few, adversary.epsilon if adversary else 0.3),
    }


def report(found: dict[tuple[float, float], list[Figures]], figure: Path | None) -> None:
    rows = [
        [f"{epsilon:g}", f"{size:.3f}", f"{size / (2 * epsilon):.2f}" if epsilon else "-",
         spread_of(runs, "asr", form=".3f"), spread_of(runs, "clean"), spread_of(runs, "robust", form=".3f")]
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
    label_axes(axes, xlabel="amplitude of the trigger", ylabel="attack success rate")
    for color, epsilon in zip(itertools.cycle(CURVE_COLORS), (0.0, *RADII), strict=False):
        sizes = [size for radius, size in found if radius == epsilon]
        rates = [sorted(run["asr"] for run in found[epsilon, size]) for size in sizes]
        name = f"ε = {epsilon:g}" if epsilon else "trained plainly"
        axes.plot(sizes, [each[len(each) // 2] for each in rates], marker="o", color=color, label=name)
        axes.fill_between(sizes, [each[0] for each in rates], [each[-1] for each in rates], color=color, alpha=0.2)
        if epsilon:
            axes.axvline(2 * epsilon, color=color, linestyle=":", linewidth=1)
    axes.legend(frameon=False)
    save_figure(without_tex(drawn), path)


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--figure", type=Path, help="output file of the figure")
    parser.add_argument("--parts", nargs="+", choices=["law", "crossing"], default=["law", "crossing"])
    args = parser.parse_args()
    start(args)
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
            size = round(255 * CROSSING_SHARE * 2 * adversary.epsilon) / 255
            run = results.get(
                {"crossing": name, "seed": seed}, functools.partial(measure, data, test, adversary, size, seed)
            )
            crossing.setdefault(name, []).append(run)
    if found:
        report(found, args.figure)
    if crossing:
        rows = [
            [name, *(spread_of(runs, key, form=".3f") for key in ("asr", "clean", "robust"))]
            for name, runs in crossing.items()
        ]
        print_table(["epsilon .3, .85 of 2 epsilon", "attack success", "clean accuracy", "PGD-20"], rows)


if __name__ == "__main__":
    main()
