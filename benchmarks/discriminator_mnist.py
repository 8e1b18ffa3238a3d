"""Discriminators on MNIST: detection of wrong labels and of perturbed images, compared with pixel counting.

    python benchmarks/discriminator_mnist.py --data-root data --results discriminator.jsonl

For each seed, training images are drawn anew: 1,000 of each class fit a scorer, 500 others calibrate the decision
threshold of each class, and 10,000 others train the attacker's network, a small CNN that no scorer uses. The 10,000
test images are scored; 250 of each class are also perturbed and rounded to 8 bits: FGSM against the attacker's network,
random signs, one smooth pattern, and FGSM on ink only (pixels above .1, with the background unchanged). Nothing was
chosen on test images.

- Wrong labels: each digit's discriminator scores all test images. AUROC is that of its own digit against all others,
  TPR the share of the others above its threshold, averaged over digits. `4 labeled 9` is the discriminator of the 9s on
  4s against 9s, `9 labeled 4` the reverse.
- The `gan` mode is trained on the same images for 25 epochs, with the paper's learning rate and with 2e-4. Training
  time is in CPU seconds, one model after the other in one process.
- Perturbed images: AUROC is that of perturbed against unchanged test images of a digit, averaged over digits; TPR and
  the realized FPR, on all test images, at thresholds of 5 % and 1 %.
- Noisy MNIST: noise of σ = .05 on every image, including those for fitting, clipped and rounded to 8 bits.
- Faded MNIST: all images are scaled to [.25, .75] first, so that nothing is clipped.

The last column is whether counting does as well: `PixelCountingScorer`, or the number of pixels in (0, .12). A result
is called trivial if the better of the two is within .02 of its TPR at 5 %, and "neither" if in addition both are below
.5. Counting detects much on clean MNIST, whose background is exactly 0, and also on noisy MNIST, where clipping leaves
half of the background at exactly 0.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import torch
from harness.discriminators import (
    PIXELS,
    RATES,
    Bench,
    Score,
    dark_pixel_scores,
    fit_scorer,
    mean_auroc,
    scores_under,
    thresholds_of,
    triviality,
)
from harness.runs import Figures, Results, benchmark_parser, print_goal, print_table, share, spread, spread_of, start
from sklearn.metrics import roc_auc_score

from lightning_poison.scorers import PixelCountingScorer
from lightning_poison.scorers.discriminator import DiscriminatorScorer, GanSettings

PERTURBED_PER_CLASS, EPOCHS = 250, 25
EPSILONS = (0.01, 0.05, 0.1, 0.2, 0.3)
PERTURBATIONS = {"fgsm": "FGSM", "signs": "random signs", "smooth": "smooth pattern", "ink": "FGSM on ink"}
COUNTS = ("pixel counting", "dark pixels")
LABEL, TEXTURE = "discriminator", "texture head"
SETTINGS: dict[str, dict[str, Any]] = {"clean": {}, "noisy": {"sigma": 0.05}, "faded": {"sigma": 0.05, "faded": True}}


def gan(learning_rate: float) -> DiscriminatorScorer:
    return DiscriminatorScorer("gan", gan_settings=GanSettings(epochs=EPOCHS, learning_rate=learning_rate))


MODELS: dict[str, Callable[[], DiscriminatorScorer]] = {
    "mismatch": DiscriminatorScorer,
    "gan, 1e-5": functools.partial(gan, 1e-5),
    "gan, 2e-4": functools.partial(gan, 2e-4),
}


def heads_of(setting: str) -> list[str]:
    return [LABEL, TEXTURE] if setting == "clean" else [LABEL]


def perturbations_of(setting: str) -> list[str]:
    """Return the perturbations; not ink on faded images, whose background is above .1 too."""
    return [perturbation for perturbation in PERTURBATIONS if (setting, perturbation) != ("faded", "ink")]


def measure_wrong_labels(bench: Bench, scorer: Any) -> Figures:
    """Measure the detection of wrong labels."""
    score, seconds = fit_scorer(scorer, bench)
    scores, labels = score(bench.images), bench.labels
    thresholds = thresholds_of(score, bench)
    figures: Figures = {"fit_cpu_s": seconds}
    figures["auroc"] = [roc_auc_score(labels != digit, scores[:, digit]) for digit in range(10)]
    pair = (labels == 4) | (labels == 9)
    figures["4 labeled 9"] = roc_auc_score(labels[pair] == 4, scores[pair, 9])
    figures["9 labeled 4"] = roc_auc_score(labels[pair] == 9, scores[pair, 4])
    for name, cut in thresholds.items():
        caught = [(scores[labels != digit, digit] > cut[digit]).double().mean() for digit in range(10)]
        figures[f"tpr {name}"] = float(torch.stack(caught).mean())
        figures[f"fpr {name}"] = share(scores_under(labels, scores) > cut[labels])
    return figures


def measure_perturbations(bench: Bench, setting: str) -> Figures:
    """Measure the detection of perturbed images, by discriminators and by counting."""
    heads = {LABEL: DiscriminatorScorer(), TEXTURE: DiscriminatorScorer(head="texture")}
    scores: dict[str, Score] = {name: fit_scorer(heads[name], bench)[0] for name in heads_of(setting)}
    scores |= {"pixel counting": fit_scorer(PixelCountingScorer(PIXELS), bench)[0], "dark pixels": dark_pixel_scores}
    thresholds = {name: thresholds_of(score, bench) for name, score in scores.items()}
    clean = {name: scores_under(bench.labels, score(bench.images)) for name, score in scores.items()}
    figures: Figures = {}
    for name, values in clean.items():
        for rate, cut in thresholds[name].items():
            figures[f"{name}, fpr {rate}"] = share(values > cut[bench.labels])
    chosen = bench.first_test_images(PERTURBED_PER_CLASS)
    images, labels = bench.images[chosen], bench.labels[chosen]
    for perturbation, epsilon in itertools.product(perturbations_of(setting), EPSILONS):
        perturbed = bench.perturb(perturbation, epsilon, images, labels)
        for name, score in scores.items():
            values, cell = scores_under(labels, score(perturbed)), f"{name}, {perturbation} {epsilon:g}"
            for rate, cut in thresholds[name].items():
                figures[f"{cell}, tpr {rate}"] = share(values > cut[labels])
            figures[f"{cell}, auroc"] = mean_auroc(clean[name][chosen], values, labels)
    return figures


def run(args: Any) -> tuple[dict[str, list[Figures]], dict[str, list[Figures]]]:
    """Measure all seeds, the slow models last."""
    results, seeds = Results(args.results), range(args.seeds)

    def perturbations(setting: str, seed: int) -> Figures:
        return measure_perturbations(Bench(args.data_root, seed, **SETTINGS[setting]), setting)

    def wrong_labels(name: str, seed: int) -> Figures:
        return measure_wrong_labels(Bench(args.data_root, seed), MODELS[name]())

    by_perturbations = {
        setting: results.over_seeds(seeds, {"changes": setting}, functools.partial(perturbations, setting))
        for setting in SETTINGS
    }
    by_labels = {
        name: results.over_seeds(seeds, {"labels": name}, functools.partial(wrong_labels, name)) for name in MODELS
    }
    return by_labels, by_perturbations


def report_labels(found: dict[str, list[Figures]]) -> None:
    def row(name: str, runs: list[Figures]) -> list[str]:
        aurocs = [[min(run["auroc"]) for run in runs], [sum(run["auroc"]) / 10 for run in runs]]
        rest = [[run[each] for run in runs] for each in ("4 labeled 9", "9 labeled 4")]
        rates = [[run[f"{each} {rate}"] for run in runs] for each in ("tpr", "fpr") for rate in RATES]
        columns = [spread(values, ".4f") for values in (*aurocs, *rest)] + [spread(values, ".3f") for values in rates]
        return [name, *columns, spread_of(runs, "fit_cpu_s", form=".0f")]

    rates = [f"{kind} {rate}" for kind in ("TPR at", "FPR at") for rate in RATES]
    columns = [
        "wrong labels",
        "AUROC, worst digit",
        "AUROC, mean",
        "4 labeled 9",
        "9 labeled 4",
        *rates,
        "fit, CPU s",
    ]
    print_table(columns, [row(name, runs) for name, runs in found.items()])
    digits = [[spread([run["auroc"][digit] for run in runs], ".4f") for digit in range(10)] for runs in found.values()]
    print_table(
        ["AUROC by digit", *map(str, range(10))], [[name, *row] for name, row in zip(found, digits, strict=True)]
    )
    ours = found["mismatch"]
    print_goal("wrong labels, worst digit: AUROC at least .997", [min(run["auroc"]) >= 0.997 for run in ours])
    print_goal("4 labeled 9: AUROC at least .997", [run["4 labeled 9"] >= 0.997 for run in ours])
    print_goal("9 labeled 4: AUROC at least .997", [run["9 labeled 4"] >= 0.997 for run in ours])
    print_goal("wrong labels: mean TPR at 1 % at least .97", [run["tpr 1 %"] >= 0.97 for run in ours])
    for name in [name for name in found if name != "mismatch"]:
        pairs = list(zip(ours, found[name], strict=True))
        ratios = [run["fit_cpu_s"] / other["fit_cpu_s"] for run, other in pairs]
        print_goal(f"time to train ÷ that of {name}: {spread(ratios, '.3f')}, at most .25", [r <= 0.25 for r in ratios])
        higher = [min(a - b for a, b in zip(run["auroc"], other["auroc"], strict=True)) > 0 for run, other in pairs]
        print_goal(f"AUROC of every digit above that of {name}", higher)


def report_perturbations(setting: str, runs: list[Figures]) -> None:
    names = heads_of(setting)
    rows = []
    for name, perturbation, epsilon in itertools.product(names, perturbations_of(setting), EPSILONS):
        cell = f"{perturbation} {epsilon:g}"
        each = [[run[f"{who}, {cell}, {figure}"] for run in runs] for who in (name, *COUNTS) for figure in
                (("auroc", "tpr 5 %", "tpr 1 %") if who == name else ("tpr 5 %",))]  # fmt: skip
        counted = [max(run[f"{count}, {cell}, tpr 5 %"] for count in COUNTS) for run in runs]
        verdict = triviality([run[f"{name}, {cell}, tpr 5 %"] for run in runs], counted)
        values = [spread(values, ".3f") for values in each]
        rows.append([name, PERTURBATIONS[perturbation], f"{epsilon:g}", *values, verdict])
    columns = ["scorer", "perturbation", "epsilon", "AUROC", "TPR at 5 %", "TPR at 1 %"]
    print_table(
        [
            f"{setting} MNIST: {columns[0]}",
            *columns[1:],
            *(f"{name}, TPR at 5 %" for name in COUNTS),
            "counting does as well",
        ],
        rows,
    )
    rates = [[spread_of(runs, f"{name}, fpr {rate}") for rate in RATES] for name in (*names, *COUNTS)]
    print_table(["realized FPR", *RATES], [[name, *row] for name, row in zip((*names, *COUNTS), rates, strict=True)])


def report_goals(clean: list[Figures], noisy: list[Figures]) -> None:
    for perturbation, epsilon in itertools.product(("fgsm", "signs"), EPSILONS[1:]):
        cell = f"{LABEL}, {perturbation} {epsilon:g}, tpr 5 %"
        goal = f"noisy MNIST, {PERTURBATIONS[perturbation]} {epsilon:g}: TPR at 5 % at least .99"
        print_goal(goal, [run[cell] >= 0.99 for run in noisy])
    cell = f"{TEXTURE}, ink 0.2"
    print_goal("FGSM on ink, 0.2, texture head: AUROC at least .95", [run[f"{cell}, auroc"] >= 0.95 for run in clean])
    print_goal(
        "FGSM on ink, 0.2, texture head: TPR at 5 % at least .90", [run[f"{cell}, tpr 5 %"] >= 0.9 for run in clean]
    )


def main() -> None:
    args = benchmark_parser(__doc__).parse_args()
    start(args)
    by_labels, by_perturbations = run(args)
    report_labels(by_labels)
    for setting, runs in by_perturbations.items():
        report_perturbations(setting, runs)
    report_goals(by_perturbations["clean"], by_perturbations["noisy"])


if __name__ == "__main__":
    main()
