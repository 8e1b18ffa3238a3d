"""The two experiments of paper 000, discriminators against wrong labels and perturbed images: MNIST, with figures.

    python benchmarks/discriminator_confidences_mnist.py --data-root data --results confidences.jsonl --figures figures
    python benchmarks/discriminator_confidences_mnist.py --data-root data --results confidences.jsonl --figures figures
        --mode gan

Smutny, "Dirty and clean-label attack detection using GAN discriminators", 2025, arXiv 2506.01224, sections 4.1 and 4.2.
`--mode gan` trains as in its table 3.2.1, one discriminator per digit against a generator. The default is the scorer's
own default, one discriminator without a generator. Both are trained on 1,000 training images per digit.

1. Wrong labels: discriminator-x scores 500 test images of x and 500 of each other digit. Its confidence is the logit,
   larger if the image resembles an x. The figure has one panel per discriminator with the confidences of the images of
   each digit: quartiles, median and full range.
2. Perturbed images: of 2,000 more training images of x, 1,000 are perturbed with an epsilon of .01, .05, .1, .2 and .3
   and rounded to 8 bits. An image is flagged as poison if its confidence is below a threshold. The paper perturbs
   images with an FGSM tool and names no network; here it is FGSM against a small CNN of the attacker. Thresholds: 0;
   the paper's, the mean confidence of separate clean images of x, here 500; and those that flag 5 % and 1 % of the same
   images. The tables give the rates over all digits and the realized false-positive rate of each threshold; the figure
   gives the counts of each digit: true and false positives, true and false negatives. Positive means poison.

Each rate on perturbed images is compared with that of `PixelCountingScorer` at a threshold of the same kind. If it is
within .02 of the discriminator's, the result is called trivial, or "neither" if both are below .5: MNIST's background
is exactly 0, so that counting detects any change of it.
"""

import functools
import itertools
from pathlib import Path

import torch
from harness.discriminators import PIXELS, RATES, Bench, Score, fit_scorer, scores_under, triviality
from harness.runs import Figures, Results, benchmark_parser, print_table, spread, spread_of, start
from sklearn.metrics import roc_auc_score
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
from lightning_poison.scorers import PixelCountingScorer
from lightning_poison.scorers.discriminator import DiscriminatorScorer, GanSettings
from lightning_poison.statistics import class_thresholds

PER_DIGIT, CLEAN = 500, 1000
EPSILONS = (0.01, 0.05, 0.1, 0.2, 0.3)
OUTCOMES = {"tp": "poison detected", "fn": "poison missed", "fp": "clean flagged", "tn": "clean kept"}
OUTCOME_COLORS = dict(zip(OUTCOMES, (CURVE_COLORS[2], CURVE_COLORS[1], CURVE_COLORS[4], CURVE_COLORS[5]), strict=True))
SCORERS = ("discriminator", "counting")
THRESHOLDS = {"zero": "0", "mean": "the paper's mean", **{rate: f"calibrated {rate}" for rate in RATES}}


def scorer_of(mode: str, epochs: int) -> DiscriminatorScorer:
    return (
        DiscriminatorScorer("gan", gan_settings=GanSettings(epochs=epochs)) if mode == "gan" else DiscriminatorScorer()
    )


def thresholds_of(scores: Tensor) -> dict[str, float]:
    """Return the scores above which an image is flagged, from the scores of clean images of one digit."""
    one_class = torch.zeros(len(scores), dtype=torch.int64)
    cuts = {
        name: class_thresholds(scores, one_class, false_positive_rate=rate, num_classes=1)
        for name, rate in RATES.items()
    }
    return {"zero": 0.0, "mean": float(scores.mean()), **{name: float(cut) for name, cut in cuts.items()}}


def wrong_labels(bench: Bench, score: Score) -> Figures:
    """Return, for each discriminator, its AUROC and the quantiles of its confidences of each digit."""
    chosen = bench.first_test_images(PER_DIGIT)
    scores, labels = score(bench.images[chosen]), bench.labels[chosen]
    points = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=scores.dtype)
    figures: Figures = {"auroc": [], "worst digit": [], "quantiles": []}
    for number in range(10):
        inside = scores[labels == number, number]
        outside = [scores[labels == digit, number] for digit in range(10)]
        pairs = [auroc(inside, other) for digit, other in enumerate(outside) if digit != number]
        figures["auroc"].append(auroc(inside, scores[labels != number, number]))
        figures["worst digit"].append(min(pairs))
        figures["quantiles"].append([(-other).quantile(points).tolist() for other in outside])
    return figures


def perturbed_images(bench: Bench, scorers: dict[str, Score]) -> Figures:
    """Return the outcomes for each scorer, threshold, epsilon and digit."""
    images, labels = bench.tested.tensors
    known, known_labels = bench.calibration.tensors
    positions = torch.arange(len(labels)).view(10, -1)
    clean, attacked = positions[:, :CLEAN].flatten(), positions[:, CLEAN:].flatten()
    perturbed = {epsilon: bench.perturb("fgsm", epsilon, images[attacked], labels[attacked]) for epsilon in EPSILONS}
    figures: Figures = {}
    for name, score in scorers.items():
        known_scores = scores_under(known_labels, score(known)).view(10, -1)
        clean_scores = scores_under(labels[clean], score(images[clean])).view(10, -1)
        cuts = [thresholds_of(scores) for scores in known_scores]
        for epsilon in EPSILONS:
            scores = scores_under(labels[attacked], score(perturbed[epsilon])).view(10, -1)
            for kind in THRESHOLDS:
                cut = torch.tensor([each[kind] for each in cuts], dtype=scores.dtype)[:, None]
                detected, flagged = (scores > cut).sum(1), (clean_scores > cut).sum(1)
                counts = {"tp": detected, "fn": scores.shape[1] - detected, "fp": flagged, "tn": CLEAN - flagged}
                figures[f"{name}, {kind}, {epsilon:g}"] = {each: value.tolist() for each, value in counts.items()}
    return figures


def auroc(inside: Tensor, outside: Tensor) -> float:
    truth = torch.cat([torch.zeros(len(inside)), torch.ones(len(outside))])
    return float(roc_auc_score(truth, torch.cat([inside, outside])))


def measure(root: Path, mode: str, epochs: int, seed: int) -> Figures:
    bench = Bench(root, seed)
    score, seconds = fit_scorer(scorer_of(mode, epochs), bench)
    counting, _ = fit_scorer(PixelCountingScorer(PIXELS), bench)
    changed = perturbed_images(bench, dict(zip(SCORERS, (score, counting), strict=True)))
    return {"fit_cpu_s": seconds, "labels": wrong_labels(bench, score), "changed": changed}


def rate(run: Figures, scorer: str, kind: str, epsilon: float, outcome: str) -> float:
    """Return the share of poison that is detected (`tp`), or of clean images flagged (`fp`), over all digits."""
    counts = run["changed"][f"{scorer}, {kind}, {epsilon:g}"]
    positives, negatives = sum(counts[outcome]), sum(counts[{"tp": "fn", "fp": "tn"}[outcome]])
    return float(positives / (positives + negatives))


def report(runs: list[Figures]) -> None:
    def by_digit(name: str) -> list[str]:
        return [spread([run["labels"][name][digit] for run in runs], ".3f") for digit in range(10)]

    rows = [["all other digits", *by_digit("auroc")], ["the most similar digit", *by_digit("worst digit")]]
    print_table(["AUROC of discriminator-x against", *map(str, range(10))], rows)
    rows = []
    for (kind, name), epsilon in itertools.product(THRESHOLDS.items(), EPSILONS):
        ours, counted = ([rate(run, scorer, kind, epsilon, "tp") for run in runs] for scorer in SCORERS)
        false = [rate(run, "discriminator", kind, epsilon, "fp") for run in runs]
        counting = ["", ""] if kind == "zero" else [spread(counted, ".3f"), triviality(ours, counted)]
        rows.append([name, f"{epsilon:g}", spread(ours, ".3f"), spread(false, ".3f"), *counting])
    columns = ["threshold", "epsilon", "TPR", "realized FPR", "pixel counting, TPR", "counting does as well"]
    print_table(columns, rows)
    mean = [100 * rate(run, "discriminator", "mean", EPSILONS[0], "fp") for run in runs]
    print(f"- the paper's threshold flags {spread(mean, '.1f')} % of clean images")
    print(f"- fit: {spread_of(runs, 'fit_cpu_s', form='.0f')} CPU s for all ten digits\n")


def draw_confidences(path: Path, figures: Figures, title: str) -> None:
    figure = new_figure(12, 5.2, spacing=0.06)
    for number, axes in enumerate(figure.subplots(2, 5, sharex=True).flat):
        for digit, (low, first, middle, third, high) in enumerate(figures["quantiles"][number]):
            color = CLEAN_COLOR if digit == number else POISON_COLOR
            box = {"med": middle, "q1": first, "q3": third, "whislo": low, "whishi": high}
            lines = {"color": color, "linewidth": 1.0}
            axes.bxp([box], positions=[digit], widths=0.6, showfliers=False, boxprops=lines, whiskerprops=lines,
                     capprops=lines, medianprops={**lines, "linewidth": 2.0})  # fmt: skip
        axes.set_xticks(range(10), [str(digit) for digit in range(10)])
        axes.set_title(f"discriminator-{number}", fontsize="medium")
        label_axes(axes, xlabel="digit" if number >= 5 else "", ylabel="confidence (logit)" if number % 5 == 0 else "")
    figure.suptitle(title, fontsize="medium")
    save_figure(without_tex(figure), path)


def draw_outcomes(path: Path, figures: Figures, title: str) -> None:
    """Draw one row of stacked bars per threshold, one panel per digit."""
    figure, positions = new_figure(16, 8, spacing=0.08), range(len(EPSILONS))
    grid = figure.subplots(len(THRESHOLDS), 10, sharex=True, sharey=True)
    for row, (kind, name) in zip(grid, THRESHOLDS.items(), strict=True):
        for digit, axes in enumerate(row):
            bottom = [0] * len(EPSILONS)
            for outcome, label in OUTCOMES.items():
                heights = [figures[f"discriminator, {kind}, {epsilon:g}"][outcome][digit] for epsilon in EPSILONS]
                axes.bar(positions, heights, bottom=bottom, width=0.9, color=OUTCOME_COLORS[outcome], label=label)
                bottom = [sum(pair) for pair in zip(bottom, heights, strict=True)]
            axes.set_xticks(positions, [f"{epsilon:g}" for epsilon in EPSILONS], fontsize="x-small", rotation=90)
            axes.set_title(f"digit {digit}" if kind == "zero" else "", fontsize="medium")
            label_axes(
                axes, xlabel="epsilon" if kind == list(THRESHOLDS)[-1] else "", ylabel=name if digit == 0 else ""
            )
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(title, fontsize="medium")
    save_figure(without_tex(figure), path)


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument(
        "--mode", choices=("mismatch", "gan"), default="mismatch", help="training mode; default: mismatch"
    )
    parser.add_argument("--epochs", type=int, default=GanSettings().epochs, help="epochs of the mode gan")
    parser.add_argument("--figures", type=Path, help="folder for the figures of the first seed")
    args = parser.parse_args()
    epochs = args.epochs if args.mode == "gan" else 0
    setting = f"mode {args.mode}" + (f", {epochs} epochs" if epochs else "")
    start(args, setting=setting)
    measure_seed = functools.partial(measure, args.data_root, args.mode, epochs)
    runs = Results(args.results).over_seeds(range(args.seeds), {"mode": args.mode, "epochs": epochs}, measure_seed)
    report(runs)
    if args.figures is not None:
        name = f"paper_000_{args.mode}" + (f"_{epochs}" if epochs else "")
        draw_confidences(args.figures / f"{name}_labels.png", runs[0]["labels"], f"confidence by digit, {setting}")
        draw_outcomes(args.figures / f"{name}_changed.png", runs[0]["changed"], f"FGSM, thresholds by row, {setting}")


if __name__ == "__main__":
    main()
