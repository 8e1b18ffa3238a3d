"""Paper 000: discriminators against wrong labels and perturbed images."""

import functools
from pathlib import Path
from typing import Any

import torch
from class_perturbations_mnist import RECIPES
from class_perturbations_mnist import Bench as ClassBench
from discriminator_confidences_mnist import auroc, scorer_of, thresholds_of
from harness.discriminators import PIXELS, Bench, Score, fit_scorer
from harness.runs import Figures, share
from torch import Tensor
from torch.utils.data import TensorDataset

from lightning_poison.scorers import PixelCountingScorer
from paper_claims.claims import Claim, Measurement, Medians, Paper, Row, Verdict, judge

EPSILONS = (0.1, 0.2, 0.3)
SEPARATED, NOT_SEPARATED = 0.95, 0.9
"""AUROC from which a digit counts as separated from another, and up to which it does not."""

ALL_DETECTED, MEASURABLE = 0.995, 0.05
FEW, ALL = 50, 500
"""Missed poisons, of 500 images of the class."""


def only(data: TensorDataset, digits: list[int]) -> TensorDataset:
    """Return the images of some digits, which are renumbered in this order."""
    images, labels = data.tensors
    return TensorDataset(
        torch.cat([images[labels == digit] for digit in digits]),
        torch.cat([torch.full((int((labels == digit).sum()),), place) for place, digit in enumerate(digits)]),
    )


def separation(bench: Bench, score: Score, digits: list[int]) -> Figures:
    """Return the AUROC of each discriminator for its digit against all others, and against each."""
    chosen = bench.first_test_images(500)
    scores, labels = score(bench.images[chosen]), bench.labels[chosen]
    figures: Figures = {}
    for place, digit in enumerate(digits):
        own, of_digit = scores[labels == digit, place], {}
        for other in range(10):
            if other != digit:
                of_digit[str(other)] = auroc(own, scores[labels == other, place])
        everything = auroc(own, scores[labels != digit, place])
        figures[str(digit)] = {**of_digit, "others": everything, "worst": min(of_digit.values())}
    return figures


def detection(bench: Bench, score: Score, digits: list[int], tested: int) -> Figures:
    """Return the rates of the paper's threshold: the mean score of separate clean images of the digit."""
    detected: dict[str, list[float]] = {f"{epsilon:g}": [] for epsilon in EPSILONS}
    flagged: list[float] = []
    for place, digit in enumerate(digits):

        def scores_of(images: Tensor, place: int = place) -> Tensor:
            return score(images)[:, place]

        known, images = (part.tensors[0][part.tensors[1] == digit] for part in (bench.calibration, bench.tested))
        cut = thresholds_of(scores_of(known))["mean"]
        clean, attacked = images[:tested], images[-tested:]
        flagged.append(share(scores_of(clean) > cut))
        labels = torch.full((len(attacked),), digit)
        for epsilon in EPSILONS:
            perturbed = bench.perturb("fgsm", epsilon, attacked, labels)
            detected[f"{epsilon:g}"].append(share(scores_of(perturbed) > cut))
    worst = {epsilon: min(rates) for epsilon, rates in detected.items()}
    return {"tpr": worst, "fpr": sum(flagged) / len(flagged)}


def discriminators(root: Path, seed: int, *, mode: str, epochs: int, digits: list[int], tested: int) -> Figures:
    """Train discriminators for some digits, and measure what they separate and detect."""
    bench = Bench(root, seed)
    bench.fit = only(bench.fit, digits)
    score, _ = fit_scorer(scorer_of(mode, epochs), bench)
    figures = {"auroc": separation(bench, score, digits), **detection(bench, score, digits, tested)}
    if mode == "mismatch":
        counting, _ = fit_scorer(PixelCountingScorer(PIXELS), bench)
        figures["counting"] = detection(bench, counting, digits, tested)
    return figures


def missed_poison(root: Path, seed: int, *, recipe: str) -> Figures:
    """Train the paper's network on poison that was missed, by FGSM, in one class."""
    bench = ClassBench(root, RECIPES[recipe], seed)
    return {
        "none": bench.measure_clean(),
        "few": bench.measure("fgsm", 0.3, FEW),
        "left out": bench.leave_out(FEW),
        "all, .01": bench.measure("fgsm", 0.01, ALL),
    }


DIGITS: dict[str, Any] = {"digits": list(range(10)), "tested": 1000}
FEW_DIGITS: dict[str, Any] = {"digits": [0, 4, 5], "tested": 300}
GAN = Measurement(
    "000, GANs",
    functools.partial(discriminators, mode="gan"),
    full={**DIGITS, "epochs": 75},
    quick={**FEW_DIGITS, "epochs": 25},
)
MISMATCH = Measurement(
    "000, default mode",
    functools.partial(discriminators, mode="mismatch"),
    full={**DIGITS, "epochs": 0},
    quick={"tested": 300},
)
MISSED = Measurement("000, missed poison", missed_poison, full={"recipe": "paper"}, quick={"recipe": "quick"})
DEFAULT_MODE = "the discriminator learns from images under wrong labels, and not from a generator"


def zeros(of: Medians) -> Verdict:
    return judge(of["gan, worst"] >= SEPARATED, {DEFAULT_MODE: of["default, worst"] >= SEPARATED})


def fours(of: Medians) -> Verdict:
    both = max(of["gan, 1"], of["gan, 9"]) <= NOT_SEPARATED
    return judge(both, {"only the nines are meant": of["gan, 9"] <= NOT_SEPARATED})


def calibrated(of: Medians) -> Verdict:
    gan, default = ([of[f"{mode}, .2"], of[f"{mode}, .3"]] for mode in ("gan", "default"))
    return judge(
        min(gan) >= ALL_DETECTED,
        {"ε is at least .3": gan[1] >= ALL_DETECTED, DEFAULT_MODE: min(default) >= ALL_DETECTED},
    )


def few_poisons(of: Medians) -> Verdict:
    beyond = of["misclassified"] - max(of["misclassified, none"], of["misclassified, left out"])
    triggered = of["predicted as 3"] - of["predicted as 3, none"]
    return judge(
        beyond >= MEASURABLE,
        {"success is counted on images with the same perturbation": triggered >= MEASURABLE},
    )


def tiny_perturbation(of: Medians) -> Verdict:
    rises = [of[f"{name}, .01"] - of[f"{name}, none"] for name in ("misclassified", "predicted as 3")]
    return judge(max(rises) >= 0.01)


def auroc_row(label: str, measurement: Measurement, digit: int, other: str, **texts: str) -> Row:
    return Row(label, measurement, ("auroc", str(digit), other), form=".3f", **texts)


def tpr_rows(name: str, label: str, measurement: Measurement, path: tuple[str, ...], recorded: str) -> dict[str, Row]:
    rows = {}
    for epsilon in EPSILONS:
        text = f"{label}: detected at ε {epsilon:g}, worst digit"
        paper = "100 %" if epsilon >= 0.2 and name != "counting" else ""
        rows[f"{name}, {epsilon:g}".replace("0.", ".")] = Row(text, measurement, (*path, "tpr", f"{epsilon:g}"), paper)
    rows[f"{name}, fpr"] = Row(f"{label}: clean flagged", measurement, (*path, "fpr"), recorded=recorded)
    return rows


def missed_row(label: str, case: str, measure: str, recorded: str = "", paper: str = "") -> Row:
    return Row(label, MISSED, (case, measure), paper, recorded)


GAN_ROWS = tpr_rows("gan", "GANs", GAN, (), "41 %")
DEFAULT_ROWS = tpr_rows("default", "default mode", MISMATCH, (), "44 %")
COUNTING_ROWS = tpr_rows("counting", "pixel counting", MISMATCH, ("counting",), "")

PAPER = Paper(
    "000",
    'Smutny, "Dirty and clean-label attack detection using GAN discriminators", 2025, arXiv 2506.01224.',
    "The paper trains one GAN for each digit of MNIST for 75 epochs; so do we at full size. Quick: the digits 0, 4 and "
    "5, which its figure 4.1.1 shows, for 25 epochs. *Default mode* is `DiscriminatorScorer()`: one discriminator for "
    "all digits, whose fakes are images under wrong labels. The paper names no network for its FGSM; ours is a small "
    "CNN of the attacker.",
    (
        Claim(
            "Discriminator-0 separates zeros from all other digits",
            "Section 4.1, figure 4.1.1; AUROC of zeros against other digits, all test images under the label 0",
            {
                "gan, others": auroc_row("GAN: all others", GAN, 0, "others", paper="clearly higher"),
                "gan, worst": auroc_row("GAN: the most similar digit", GAN, 0, "worst", paper="clearly higher"),
                "default, others": auroc_row("default mode: all others", MISMATCH, 0, "others"),
                "default, worst": auroc_row(
                    "default mode: the most similar digit", MISMATCH, 0, "worst", recorded=".998 and more"
                ),
            },
            zeros,
            "benchmarks.md#discriminators",
            f"Separated: at least {SEPARATED:g} against every digit. Recorded: ten GANs after 75 epochs separate their "
            "own digit with .40 to .95.",
        ),
        Claim(
            "Discriminator-4 does not separate fours from ones and nines",
            "Section 4.1, figure 4.1.1; AUROC of fours, under the label 4",
            {
                "gan, 1": auroc_row("GAN: ones", GAN, 4, "1", paper="ones are higher"),
                "gan, 9": auroc_row("GAN: nines", GAN, 4, "9", paper="nines are higher"),
                "default, 1": auroc_row("default mode: ones", MISMATCH, 4, "1"),
                "default, 9": auroc_row("default mode: nines", MISMATCH, 4, "9"),
            },
            fours,
            note=f"Not separated: at most {NOT_SEPARATED:g}.",
        ),
        Claim(
            "A calibrated discriminator finds all perturbed images from ε = .2 on",
            "Abstract, sections 4.2 and 5, figure 4.2.2; FGSM, the threshold is the mean score of clean images",
            {**GAN_ROWS, **DEFAULT_ROWS, **COUNTING_ROWS},
            calibrated,
            "benchmarks.md#discriminators",
            f"All: at least {100 * ALL_DETECTED:g} %. The mean as a threshold costs nearly half of "
            "the clean images. The background of MNIST is exactly 0, so that counting gray pixels shows whether such "
            "a detection is trivial.",
        ),
        Claim(
            "A few missed poisons change the classifier",
            f"Appendix A3, without numbers; {FEW} of 500 threes perturbed by FGSM at .3, labels unchanged",
            {
                "misclassified, none": missed_row("threes misclassified, no poison", "none", "misclassified", "1.6 %"),
                "misclassified": missed_row(f"the same, {FEW} poisons", "few", "misclassified", "2.0 %", "rises"),
                "misclassified, left out": missed_row(
                    f"the same, {FEW} images left out", "left out", "misclassified", "2.2 %"
                ),
                "predicted as 3, none": missed_row(
                    "other digits with the perturbation, predicted as 3, no poison", "few", "predicted_as_clean", "10 %"
                ),
                "predicted as 3": missed_row(f"the same, {FEW} poisons", "few", "predicted_as", "52 %", "rises"),
            },
            few_poisons,
            "benchmarks.md#perturbations-of-one-class",
            "The paper does not define its attack success rate. Change: at least "
            f"{100 * MEASURABLE:g} points, for clean threes beyond what it costs to leave the images out.",
        ),
        Claim(
            "A perturbation of .01 raises the attack success",
            "Figure A3.1; all 500 threes perturbed",
            {
                "misclassified, none": missed_row("threes misclassified, no poison", "none", "misclassified", "1.6 %"),
                "misclassified, .01": missed_row("the same, ε .01", "all, .01", "misclassified", "1.7 %", "rises"),
                "predicted as 3, none": missed_row(
                    "other digits with the perturbation, predicted as 3, no poison", "all, .01", "predicted_as_clean",
                    ".6 %",
                ),
                "predicted as 3, .01": missed_row("the same, ε .01", "all, .01", "predicted_as", ".6 %", "rises"),
            },
            tiny_perturbation,
            "benchmarks.md#perturbations-of-one-class",
            "It does from one point on, by either definition.",
        ),
    ),
)  # fmt: skip
