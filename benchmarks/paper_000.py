"""The two experiments of paper 000: discriminators against wrong labels and against changed images, on MNIST.

    python benchmarks/paper_000.py --data-root data --results paper_000.jsonl --figures figures
    python benchmarks/paper_000.py --data-root data --results paper_000.jsonl --figures figures --mode gan

Smutny, "Dirty and clean-label attack detection using GAN discriminators", 2025, arXiv 2506.01224, sections 4.1 and 4.2.
`--mode gan` trains as its table 3.2.1 says, a discriminator for each digit against a generator; the default is the
scorer's own default, one discriminator without a generator. Each is trained on 1,000 training images a digit.

1. Wrong labels: discriminator-x is shown 500 test images of x and 500 of each other digit. Its confidence is the logit,
   larger for what it takes for an x. The figure has a panel for each discriminator, and in it the confidences of the
   images of each digit: quartiles, median, and the whole range.
2. Changed images: of 2,000 more training images of x, 1,000 are changed at an epsilon of .01, .05, .1, .2 and .3 and
   rounded to 8 bits, and an image is called poison where its confidence is below a threshold. The paper changes images
   with an FGSM tool and names no network; here it is FGSM against a small CNN of the attacker's own. Thresholds: 0; the
   paper's, the mean confidence of separate clean images of x, here 500; and those that call 5 % and 1 % of the same
   images poison. Tables give the rates over all digits, with the false-positive rate that each threshold really has;
   the figure gives the counts of each digit: true and false positives, true and false negatives. Positive is poison.

Beside each rate on changed images stands that of `PixelCountingScorer` at a threshold of the same kind. Where it comes
within .02 of the discriminator's, the result is called trivial, or "neither" where both are below .5: MNIST's
background is exactly 0, and a change of it is found by counting.
"""

import functools
import itertools
from pathlib import Path

import torch
from common import Figures, Results, arguments, print_setting, print_table, spread
from discriminator_bench import PIXELS, RATES, Bench, Score, fitted, said_of
from sklearn.metrics import roc_auc_score
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
from lightning_poison.scorers import PixelCountingScorer
from lightning_poison.scorers.discriminator import DiscriminatorScorer, GanSettings
from lightning_poison.statistics import class_thresholds

EACH, CLEAN = 500, 1000
EPSILONS = (0.01, 0.05, 0.1, 0.2, 0.3)
OUTCOMES = {"tp": "poison found", "fn": "poison missed", "fp": "clean called poison", "tn": "clean kept"}
OUTCOME_COLORS = dict(zip(OUTCOMES, (CURVE_COLORS[2], CURVE_COLORS[1], CURVE_COLORS[4], CURVE_COLORS[5]), strict=True))
JUDGES = ("discriminator", "counting")
THRESHOLDS = {"zero": "0", "mean": "the paper's mean", **{rate: f"calibrated {rate}" for rate in RATES}}


def scorer_of(mode: str, epochs: int) -> DiscriminatorScorer:
    return (
        DiscriminatorScorer("gan", gan_settings=GanSettings(epochs=epochs)) if mode == "gan" else DiscriminatorScorer()
    )


def thresholds_of(scores: Tensor) -> dict[str, float]:
    """Return the scores above which an image is poison, of those of clean images of one digit."""
    one_class = torch.zeros(len(scores), dtype=torch.int64)
    cuts = {
        name: class_thresholds(scores, one_class, false_positive_rate=rate, num_classes=1)
        for name, rate in RATES.items()
    }
    return {"zero": 0.0, "mean": float(scores.mean()), **{name: float(cut) for name, cut in cuts.items()}}


def wrong_labels(bench: Bench, score: Score) -> Figures:
    """Return for each discriminator its AUROC, and how the confidences of each digit lie."""
    chosen = bench.first_of_each(EACH)
    scores, labels = score(bench.images[chosen]), bench.labels[chosen]
    points = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=scores.dtype)
    figures: Figures = {"auroc": [], "worst digit": [], "quantiles": []}
    for judge in range(10):
        inside = scores[labels == judge, judge]
        outside = [scores[labels == digit, judge] for digit in range(10)]
        pairs = [auroc(inside, other) for digit, other in enumerate(outside) if digit != judge]
        figures["auroc"].append(auroc(inside, scores[labels != judge, judge]))
        figures["worst digit"].append(min(pairs))
        figures["quantiles"].append([(-other).quantile(points).tolist() for other in outside])
    return figures


def changed_images(bench: Bench, judges: dict[str, Score]) -> Figures:
    """Return the outcomes for each judge, threshold, epsilon and digit."""
    images, labels = bench.tested.tensors
    known, known_labels = bench.calibration.tensors
    places = torch.arange(len(labels)).view(10, -1)
    clean, touched = places[:, :CLEAN].flatten(), places[:, CLEAN:].flatten()
    changed = {epsilon: bench.changed("fgsm", epsilon, images[touched], labels[touched]) for epsilon in EPSILONS}
    figures: Figures = {}
    for name, score in judges.items():
        own = [score(part).gather(1, carried[:, None])[:, 0].view(10, -1)
               for part, carried in ((known, known_labels), (images[clean], labels[clean]))]  # fmt: skip
        cuts = [thresholds_of(scores) for scores in own[0]]
        for epsilon in EPSILONS:
            scores = score(changed[epsilon]).gather(1, labels[touched][:, None])[:, 0].view(10, -1)
            for kind in THRESHOLDS:
                cut = torch.tensor([each[kind] for each in cuts], dtype=scores.dtype)[:, None]
                found, called = (scores > cut).sum(1), (own[1] > cut).sum(1)
                counts = {"tp": found, "fn": scores.shape[1] - found, "fp": called, "tn": CLEAN - called}
                figures[f"{name}, {kind}, {epsilon:g}"] = {each: value.tolist() for each, value in counts.items()}
    return figures


def auroc(inside: Tensor, outside: Tensor) -> float:
    truth = torch.cat([torch.zeros(len(inside)), torch.ones(len(outside))])
    return float(roc_auc_score(truth, torch.cat([inside, outside])))


def measure(root: Path, mode: str, epochs: int, seed: int) -> Figures:
    bench = Bench(root, seed)
    score, seconds = fitted(scorer_of(mode, epochs), bench)
    counting, _ = fitted(PixelCountingScorer(PIXELS), bench)
    changed = changed_images(bench, dict(zip(JUDGES, (score, counting), strict=True)))
    return {"fit_cpu_s": seconds, "labels": wrong_labels(bench, score), "changed": changed}


def rate(run: Figures, judge: str, kind: str, epsilon: float, outcome: str) -> float:
    """Return the share of poison that is found (`tp`), or of clean images called poison (`fp`), over all digits."""
    counts = run["changed"][f"{judge}, {kind}, {epsilon:g}"]
    other = {"tp": "fn", "fp": "tn"}[outcome]
    return sum(counts[outcome]) / (sum(counts[outcome]) + sum(counts[other]))


def report(runs: list[Figures]) -> None:
    def by_digit(name: str) -> list[str]:
        return [spread([run["labels"][name][digit] for run in runs], ".3f") for digit in range(10)]

    rows = [["all other digits", *by_digit("auroc")], ["the digit it confuses most", *by_digit("worst digit")]]
    print_table(["AUROC of discriminator-x against", *map(str, range(10))], rows)
    rows = []
    for (kind, name), epsilon in itertools.product(THRESHOLDS.items(), EPSILONS):
        ours, theirs = ([rate(run, judge, kind, epsilon, "tp") for run in runs] for judge in JUDGES)
        false = [rate(run, "discriminator", kind, epsilon, "fp") for run in runs]
        beside = ["", ""] if kind == "zero" else [spread(theirs, ".3f"), said_of(ours, theirs)]
        rows.append([name, f"{epsilon:g}", spread(ours, ".3f"), spread(false, ".3f"), *beside])
    columns = ["threshold", "epsilon", "TPR", "realised FPR", "pixel counting, TPR", "counting does as well"]
    print_table(columns, rows)
    mean = [rate(run, "discriminator", "mean", EPSILONS[0], "fp") for run in runs]
    print(f"- the paper's threshold calls {spread([100 * share for share in mean], '.1f')} % of clean images poison")
    print(f"- fit: {spread([run['fit_cpu_s'] for run in runs], '.0f')} CPU s for all ten digits\n")


def draw_confidences(path: Path, figures: Figures, title: str) -> None:
    figure = new_figure(12, 5.2, spacing=0.06)
    for judge, axes in enumerate(figure.subplots(2, 5, sharex=True).flat):
        for digit, (low, first, middle, third, high) in enumerate(figures["quantiles"][judge]):
            color = CLEAN_COLOR if digit == judge else POISON_COLOR
            box = {"med": middle, "q1": first, "q3": third, "whislo": low, "whishi": high}
            lines = {"color": color, "linewidth": 1.0}
            axes.bxp([box], positions=[digit], widths=0.6, showfliers=False, boxprops=lines, whiskerprops=lines,
                     capprops=lines, medianprops={**lines, "linewidth": 2.0})  # fmt: skip
        axes.set_xticks(range(10), [str(digit) for digit in range(10)])
        axes.set_title(f"discriminator-{judge}", fontsize="medium")
        plain_axes(axes, xlabel="digit" if judge >= 5 else "", ylabel="confidence (logit)" if judge % 5 == 0 else "")
    figure.suptitle(title, fontsize="medium")
    save_figure(finished(figure), path)


def draw_outcomes(path: Path, figures: Figures, title: str) -> None:
    """Draw a row of stack plots for each threshold, one for each digit."""
    figure, places = new_figure(16, 8, spacing=0.08), range(len(EPSILONS))
    grid = figure.subplots(len(THRESHOLDS), 10, sharex=True, sharey=True)
    for row, (kind, name) in zip(grid, THRESHOLDS.items(), strict=True):
        for digit, axes in enumerate(row):
            bottom = [0] * len(EPSILONS)
            for outcome, label in OUTCOMES.items():
                heights = [figures[f"discriminator, {kind}, {epsilon:g}"][outcome][digit] for epsilon in EPSILONS]
                axes.bar(places, heights, bottom=bottom, width=0.9, color=OUTCOME_COLORS[outcome], label=label)
                bottom = [sum(pair) for pair in zip(bottom, heights, strict=True)]
            axes.set_xticks(places, [f"{epsilon:g}" for epsilon in EPSILONS], fontsize="x-small", rotation=90)
            axes.set_title(f"digit {digit}" if kind == "zero" else "", fontsize="medium")
            plain_axes(
                axes, xlabel="epsilon" if kind == list(THRESHOLDS)[-1] else "", ylabel=name if digit == 0 else ""
            )
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(title, fontsize="medium")
    save_figure(finished(figure), path)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument(
        "--mode", choices=("mismatch", "gan"), default="mismatch", help="how the discriminators are trained"
    )
    parser.add_argument("--epochs", type=int, default=GanSettings().epochs, help="of the mode gan")
    parser.add_argument("--figures", type=Path, help="folder for the figures of the first seed")
    args = parser.parse_args()
    torch.set_num_threads(1)
    epochs = args.epochs if args.mode == "gan" else 0
    setting = f"mode {args.mode}" + (f", {epochs} epochs" if epochs else "")
    print_setting(f"paper_000, {setting}", args)
    results, runs = Results(args.results), []
    for seed in range(args.seeds):
        key = {"mode": args.mode, "epochs": epochs, "seed": seed}
        runs.append(results.get(key, functools.partial(measure, args.data_root, args.mode, epochs, seed)))
    report(runs)
    if args.figures is not None:
        name = f"paper_000_{args.mode}" + (f"_{epochs}" if epochs else "")
        draw_confidences(args.figures / f"{name}_labels.png", runs[0]["labels"], f"confidence by digit, {setting}")
        draw_outcomes(args.figures / f"{name}_changed.png", runs[0]["changed"], f"FGSM, thresholds by row, {setting}")


if __name__ == "__main__":
    main()
