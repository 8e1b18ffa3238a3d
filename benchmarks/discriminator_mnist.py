"""What the discriminators find on MNIST: wrong labels, and changed images, with pixel counting beside them.

    python benchmarks/discriminator_mnist.py --data-root data --results discriminator.jsonl

Of the training images, drawn anew for each seed, 1,000 of each class fit a scorer, 500 others set the thresholds of
each class, and 10,000 others train the attacker's network, a small CNN that no scorer knows. Judged are the 10,000 test
images; 250 of each class are also changed, and rounded to 8 bits: FGSM against the attacker's network, random signs,
one smooth pattern, and FGSM on ink alone (pixels above .1, so that the background stays as it is). Nothing was chosen
on test images.

- Wrong labels: each digit's discriminator judges all test images. AUROC is that of its own digit against all others,
  and TPR the share of others above its threshold, averaged over digits. `4 labeled 9` is the discriminator of the 9s
  on 4s against 9s, `9 labeled 4` the other way round.
- The `gan` mode is trained on the same images for 25 epochs, at the paper's learning rate and at 2e-4. Training is
  timed in CPU seconds, one after the other in one process.
- Changed images: AUROC is the mean over digits of changed against unchanged test images of the digit; TPR and the
  realised FPR, on all test images, at thresholds of 5 % and 1 %.
- Noisy MNIST: noise of σ = .05 on every image, those that fit among them, clipped, and rounded to 8 bits.
- Faded MNIST: all images are drawn together to [.25, .75] first, so that nothing is clipped there.

Beside each result on changed images stands whether counting does as well: `PixelCountingScorer`, and one line that
counts the pixels in (0, .12). A result is called trivial where the better of the two comes within .02 of its TPR at
5 %, and "neither" where that is so and both are below .5. Counting finds much on clean MNIST, whose background is
exactly 0, and on noisy MNIST too, where clipping leaves half of the background at exactly 0.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import torch
from common import Figures, Results, arguments, print_goal, print_setting, print_table, spread
from discriminator_bench import (
    PIXELS,
    RATES,
    Bench,
    Score,
    dark_pixels,
    fitted,
    mean_auroc,
    own,
    said_of,
    thresholds_of,
)
from sklearn.metrics import roc_auc_score

from lightning_poison.scorers import PixelCountingScorer
from lightning_poison.scorers.discriminator import DiscriminatorScorer, GanSettings

CHANGED, EPOCHS = 250, 25
EPSILONS = (0.01, 0.05, 0.1, 0.2, 0.3)
CHANGES = {"fgsm": "FGSM", "signs": "random signs", "smooth": "smooth pattern", "ink": "FGSM on ink"}
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


def changes_of(setting: str) -> list[str]:
    """Return the changes; faded images have no background of 0, so that ink is not what lies above .1."""
    return [change for change in CHANGES if (setting, change) != ("faded", "ink")]


def judge_labels(bench: Bench, scorer: Any) -> Figures:
    """Ask how well wrong labels are told from right ones."""
    score, seconds = fitted(scorer, bench)
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
        figures[f"fpr {name}"] = float((own(scores, labels) > cut[labels]).double().mean())
    return figures


def judge_changes(bench: Bench, setting: str) -> Figures:
    """Ask how well changed images are told from unchanged ones, by discriminators and by counting."""
    made = {LABEL: DiscriminatorScorer(), TEXTURE: DiscriminatorScorer(head="texture")}
    scores: dict[str, Score] = {name: fitted(made[name], bench)[0] for name in heads_of(setting)}
    scores |= {"pixel counting": fitted(PixelCountingScorer(PIXELS), bench)[0], "dark pixels": dark_pixels}
    thresholds = {name: thresholds_of(score, bench) for name, score in scores.items()}
    clean = {name: own(score(bench.images), bench.labels) for name, score in scores.items()}
    figures: Figures = {}
    for name, values in clean.items():
        for rate, cut in thresholds[name].items():
            figures[f"{name}, fpr {rate}"] = float((values > cut[bench.labels]).double().mean())
    chosen = bench.first_of_each(CHANGED)
    images, labels = bench.images[chosen], bench.labels[chosen]
    for change, epsilon in itertools.product(changes_of(setting), EPSILONS):
        changed = bench.changed(change, epsilon, images, labels)
        for name, score in scores.items():
            values, cell = own(score(changed), labels), f"{name}, {change} {epsilon:g}"
            for rate, cut in thresholds[name].items():
                figures[f"{cell}, tpr {rate}"] = float((values > cut[labels]).double().mean())
            figures[f"{cell}, auroc"] = mean_auroc(clean[name][chosen], values, labels)
    return figures


def run(args: Any) -> tuple[dict[str, list[Figures]], dict[str, list[Figures]]]:
    """Measure all seeds, the slow ones last."""
    results, seeds = Results(args.results), range(args.seeds)
    by_changes = {
        setting: [
            results.get(
                {"changes": setting, "seed": seed},
                lambda setting=setting, options=options, seed=seed: judge_changes(
                    Bench(args.data_root, seed, **options), setting
                ),
            )
            for seed in seeds
        ]
        for setting, options in SETTINGS.items()
    }
    by_labels = {
        name: [
            results.get(
                {"labels": name, "seed": seed},
                lambda make=make, seed=seed: judge_labels(Bench(args.data_root, seed), make()),
            )
            for seed in seeds
        ]
        for name, make in MODELS.items()
    }
    return by_labels, by_changes


def report_labels(found: dict[str, list[Figures]]) -> None:
    def row(name: str, runs: list[Figures]) -> list[str]:
        aurocs = [[min(run["auroc"]) for run in runs], [sum(run["auroc"]) / 10 for run in runs]]
        rest = [[run[each] for run in runs] for each in ("4 labeled 9", "9 labeled 4")]
        rates = [[run[f"{each} {rate}"] for run in runs] for each in ("tpr", "fpr") for rate in RATES]
        columns = [spread(values, ".4f") for values in (*aurocs, *rest)] + [spread(values, ".3f") for values in rates]
        return [name, *columns, spread([run["fit_cpu_s"] for run in runs], ".0f")]

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


def report_changes(setting: str, runs: list[Figures]) -> None:
    names = heads_of(setting)
    rows = []
    for name, change, epsilon in itertools.product(names, changes_of(setting), EPSILONS):
        cell = f"{change} {epsilon:g}"
        each = [[run[f"{who}, {cell}, {figure}"] for run in runs] for who in (name, *COUNTS) for figure in
                (("auroc", "tpr 5 %", "tpr 1 %") if who == name else ("tpr 5 %",))]  # fmt: skip
        counted = [max(run[f"{count}, {cell}, tpr 5 %"] for count in COUNTS) for run in runs]
        verdict = said_of([run[f"{name}, {cell}, tpr 5 %"] for run in runs], counted)
        rows.append([name, CHANGES[change], f"{epsilon:g}", *(spread(values, ".3f") for values in each), verdict])
    columns = ["scorer", "change", "epsilon", "AUROC", "TPR at 5 %", "TPR at 1 %"]
    print_table(
        [
            f"{setting} MNIST: {columns[0]}",
            *columns[1:],
            *(f"{name}, TPR at 5 %" for name in COUNTS),
            "counting does as well",
        ],
        rows,
    )
    rates = [
        [spread([run[f"{name}, fpr {rate}"] for run in runs], ".4f") for rate in RATES] for name in (*names, *COUNTS)
    ]
    print_table(["realised FPR", *RATES], [[name, *row] for name, row in zip((*names, *COUNTS), rates, strict=True)])


def report_goals(clean: list[Figures], noisy: list[Figures]) -> None:
    for change, epsilon in itertools.product(("fgsm", "signs"), EPSILONS[1:]):
        cell = f"{LABEL}, {change} {epsilon:g}, tpr 5 %"
        print_goal(
            f"noisy MNIST, {CHANGES[change]} {epsilon:g}: TPR at 5 % at least .99", [run[cell] >= 0.99 for run in noisy]
        )
    cell = f"{TEXTURE}, ink 0.2"
    print_goal("FGSM on ink, 0.2, texture head: AUROC at least .95", [run[f"{cell}, auroc"] >= 0.95 for run in clean])
    print_goal(
        "FGSM on ink, 0.2, texture head: TPR at 5 % at least .90", [run[f"{cell}, tpr 5 %"] >= 0.9 for run in clean]
    )


def main() -> None:
    args = arguments(__doc__).parse_args()
    torch.set_num_threads(1)
    print_setting("discriminator_mnist", args)
    by_labels, by_changes = run(args)
    report_labels(by_labels)
    for setting, runs in by_changes.items():
        report_changes(setting, runs)
    report_goals(by_changes["clean"], by_changes["noisy"])


if __name__ == "__main__":
    main()
