"""Paper 003: adversarial training against backdoors."""

import functools
from pathlib import Path
from typing import Any

from harness.backdoor_cells import CIFAR, FEW_ZEROS, MNIST, Cell
from harness.backdoored_networks import Bench
from harness.datasets import load_mnist
from harness.runs import Figures
from trigger_amplitudes_mnist import CROSSING, CROSSING_SHARE
from trigger_amplitudes_mnist import measure as measure_trigger

from paper_claims.claims import Claim, Measurement, Medians, Paper, Row, Verdict, judge

WORKS, DEFENDED, RECOVERED, NEAR_CLEAN = 0.5, 0.05, 0.8, 0.05
CIFAR_WORKS, CIFAR_DEFENDED = 0.3, 0.12
APART, MIXED, GUESSING = 0.2, 0.1, 0.6
"""Silhouettes from which and up to which groups are apart or mixed, and the accuracy of a probe that guesses."""

WEAK = round(255 * CROSSING_SHARE * 2 * 0.3) / 255

bench_of = functools.cache(Bench)


def cell(root: Path, seed: int, **fields: Any) -> Figures:
    """Train a network on backdoored images, and measure clean and triggered images."""
    figures = bench_of(root, seed).measure(Cell(**fields))
    return {name: value for name, value in figures.items() if name != "history"}


def weak_trigger(root: Path, seed: int) -> Figures:
    """Train on a trigger below twice the radius, plainly and by three steps of PGD."""
    data, test = load_mnist(root, train=True), load_mnist(root, train=False)
    adversaries = {"plain": None, "PGD": CROSSING["PGD, 3 steps of .83 ε"]}
    return {name: measure_trigger(data, test, each, WEAK, seed) for name, each in adversaries.items()}


def digits(attack: str, training: str, epochs: int) -> Measurement:
    return Measurement(
        f"003, {attack}, {training}, MNIST",
        functools.partial(cell, data=MNIST, attack=attack, training=training, epochs=epochs),
        full={"images": 60_000},
        quick={"images": 12_000},
    )


def photos(training: str) -> Measurement:
    return Measurement(
        f"003, BadNets, {training}, CIFAR-10",
        functools.partial(cell, data=CIFAR, attack="BadNets", training=training),
        full={"images": 20_000, "epochs": 8},
        quick={"images": 6000, "epochs": 10},
    )


def few_zeros(training: str, epochs: int) -> Measurement:
    return Measurement(
        f"003, few zeros, {training}",
        functools.partial(cell, data=FEW_ZEROS, attack="clean-label", training=training, epochs=epochs),
        full={"images": 45_500},
        quick=None,
    )


BADNETS, BADNETS_AT = digits("BadNets", "plain", 4), digits("BadNets", "FGSM .35", 6)
CLEAN_LABEL, CLEAN_LABEL_AT = digits("clean-label", "plain", 4), digits("clean-label", "FGSM .35", 6)
PHOTOS, PHOTOS_AT = photos("plain"), photos("FGSM 8/255")
ZEROS, ZEROS_AT = few_zeros("plain", 4), few_zeros("FGSM .35", 6)
WEAK_TRIGGER = Measurement("003, weak trigger", weak_trigger)
NO_ATTACK = "the attack fails without a defense"


def badnets(of: Medians) -> Verdict:
    weak = of["weak, plain"] >= WORKS and of["weak, adversarial"] <= DEFENDED
    return judge(
        of["adversarial, success"] <= DEFENDED and of["adversarial"] >= RECOVERED,
        {"the trigger moves its pixels by less than 2ε, and the adversary crosses the ball": weak},
        unless={NO_ATTACK: of["plain, success"] < WORKS},
    )


def clean_label(of: Medians) -> Verdict:
    return judge(of["adversarial"] >= RECOVERED, unless={NO_ATTACK: of["plain, success"] < WORKS})


def clusters_disappear(of: Medians) -> Verdict:
    return judge(
        of["adversarial"] <= MIXED and of["adversarial, probe"] <= GUESSING,
        {"a weak clustering counts as none": of["adversarial"] <= MIXED},
        unless={"there are no clusters after plain training either": of["plain"] < APART},
    )


def badnets_on_photos(of: Medians) -> Verdict:
    return judge(
        of["adversarial, success"] <= CIFAR_DEFENDED and of["adversarial"] >= of["adversarial, clean"] - NEAR_CLEAN,
        unless={NO_ATTACK: of["plain, success"] < CIFAR_WORKS},
    )


def rare_zeros(of: Medians) -> Verdict:
    return judge(of["adversarial"] >= RECOVERED, unless={NO_ATTACK: of["plain, success"] < WORKS})


TABLES, FIGURES = "paper-003.md", "paper-003.md"

PAPER = Paper(
    "003",
    'Gopalan, Brar, Kalyani, Nandra, "Adversarial training as a defense against poisoning attacks", IIT Kanpur.',
    "The paper trains by PGD at ε = .3, 40 steps on MNIST and 5 on CIFAR-10, for 80 epochs. Ours, on two cores: FGSM "
    "with a random start, at .35 on MNIST and 8/255 on CIFAR-10, six and eight epochs, after plain training for four "
    "and eight. Quick: 12,000 images of MNIST; 6,000 of CIFAR-10 for ten epochs. *Triggered* is the share of "
    "triggered test images predicted as their true label, *success* as the attacker wants.",
    (
        Claim(
            "Adversarial training removes BadNets on MNIST",
            "Section 5, table of the Gu et al. attack",
            {
                "plain": Row("triggered, plain training", BADNETS, ("correct",), "1.17 %", ".1 %"),
                "plain, success": Row("success, plain training", BADNETS, ("asr",), "96.22 %", "98.7 %"),
                "adversarial": Row("triggered, adversarial training", BADNETS_AT, ("correct",), "91.71 %", ".2 %"),
                "adversarial, success": Row(
                    "success, adversarial training", BADNETS_AT, ("asr",), ".99 %", "98.1 %"
                ),
                "weak, plain": Row(
                    f"trigger of amplitude {WEAK:.2f}: success, plain training", WEAK_TRIGGER, ("plain", "asr")
                ),
                "weak, adversarial": Row(
                    "the same, three steps of PGD at ε = .3", WEAK_TRIGGER, ("PGD", "asr"), recorded="1.4 %"
                ),
            },
            badnets,
            TABLES,
            f"Removed: success at most {100 * DEFENDED:g} %, and {100 * RECOVERED:g} % of triggered images "
            "correct. Triggers are at full intensity, but for the last two rows. Recorded for those: "
            "[triggers under adversarial training](benchmarks.md#triggers-under-adversarial-training).",
        ),
        Claim(
            "Adversarial training removes the clean-label backdoor on MNIST",
            "Section 5, tables of the Turner et al. attack",
            {
                "plain": Row("triggered, plain training", CLEAN_LABEL, ("correct",), "1.39 % and .16 %", ".5 %"),
                "plain, success": Row("success, plain training", CLEAN_LABEL, ("asr",), "", "99.5 %"),
                "adversarial": Row(
                    "triggered, adversarial training", CLEAN_LABEL_AT, ("correct",), "90.68 % and 87 %", "0 %"
                ),
                "adversarial, success": Row(
                    "success, adversarial training", CLEAN_LABEL_AT, ("asr",), "", "100.0 %"
                ),
            },
            clean_label,
            TABLES,
            f"Removed: {100 * RECOVERED:g} % of triggered images correct.",
        ),
        Claim(
            "The clusters of clean and poisoned images disappear",
            "Section 6.2, figure 5; features of test images of class 8 without and with the trigger of BadNets, MNIST",
            {
                "plain": Row(
                    "silhouette, plain training", BADNETS, ("true class", "silhouette"), "two clusters", ".39", ".2f"
                ),
                "adversarial": Row(
                    "silhouette, adversarial training", BADNETS_AT, ("true class", "silhouette"), "mixed", ".37", ".2f"
                ),
                "adversarial, probe": Row(
                    "accuracy of a linear probe, adversarial training", BADNETS_AT, ("true class", "probe"), "",
                    "100 %",
                ),
            },
            clusters_disappear,
            FIGURES,
            f"Disappeared: silhouette at most {MIXED:g}, probe at most {100 * GUESSING:g} %.",
        ),
        Claim(
            "Adversarial training removes BadNets on CIFAR-10, at a cost in accuracy",
            "Section 5, tables of the Gu et al. attack",
            {
                "plain": Row("triggered, plain training", PHOTOS, ("correct",), "8.64 %", "4.8 %"),
                "plain, success": Row("success, plain training", PHOTOS, ("asr",), "", "67.7 %"),
                "plain, clean": Row("clean accuracy, plain training", PHOTOS, ("clean",), "74.26 %", "71.4 %"),
                "adversarial": Row("triggered, adversarial training", PHOTOS_AT, ("correct",), "54.86 %", "43.7 %"),
                "adversarial, success": Row("success, adversarial training", PHOTOS_AT, ("asr",), "5.32 %", "9.1 %"),
                "adversarial, clean": Row(
                    "clean accuracy, adversarial training", PHOTOS_AT, ("clean",), "52.71 %", "43.8 %"
                ),
            },
            badnets_on_photos,
            TABLES,
            f"Removed: success at most {100 * CIFAR_DEFENDED:g} %, and triggered images predicted nearly "
            f"as well as clean ones. The attack works from a success of {100 * CIFAR_WORKS:g} % on.",
        ),
        Claim(
            "Adversarial training protects a rare class: MNIST with 500 zeros",
            "Section 5, unbalanced MNIST, clean-label backdoor",
            {
                "plain": Row("triggered zeros, plain training", ZEROS, ("zeros", "correct"), "0 %", "0 %"),
                "plain, success": Row("triggered zeros predicted as 9", ZEROS, ("zeros", "asr"), "", "100.0 %"),
                "adversarial": Row(
                    "triggered zeros, adversarial training", ZEROS_AT, ("zeros", "correct"), "92.65 %", "0 %"
                ),
                "clean": Row("clean zeros, adversarial training", ZEROS_AT, ("clean zeros",), "94.18 %", "97.9 %"),
            },
            rare_zeros,
            TABLES,
            f"Protected: {100 * RECOVERED:g} % of triggered zeros correct.",
        ),
    ),
    "All cells of the paper's tables at full size, with its figure 5: [paper-003.md](paper-003.md).",
)  # fmt: skip
