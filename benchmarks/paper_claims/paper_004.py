"""Paper 004: robust features against poison."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

from frozen_features_poisoning import KINDS, SETTINGS, measure
from harness.runs import Figures

from paper_claims.claims import Claim, Measurement, Medians, Paper, Row, Verdict, judge

WORKS, HALF, WITHSTANDS, MORE, NO_SUCCESS = 0.2, 0.5, 0.05, 0.04, 0.05


def features(root: Path, seed: int, *, data: str, kind: str, **sizes: Any) -> Figures:
    """Train features on outside classes, and measure poison against a linear classifier on them."""
    figures = measure(root, dataclasses.replace(SETTINGS[data], **sizes), kind, seed)
    return figures | {"flips cost": figures["clean"] - figures["LF"]}


def features_of(data: str, full: dict[str, Any], quick: dict[str, Any]) -> dict[str, Measurement]:
    return {
        kind: Measurement(
            f"004, {data}, {kind}", functools.partial(features, data=data, kind=kind), full=full, quick=quick
        )
        for kind in KINDS
    }


DIGITS = features_of(
    "MNIST",
    {"count": 8000, "trained": 12_000, "epochs": 6, "targets": 60},
    {"count": 4000, "trained": 6000, "targets": 20},
)
PHOTOS = features_of(
    "CIFAR",
    {"count": 4000, "trained": 24_000, "epochs": 8, "targets": 60, "ten": 10_000},
    {"count": 1500, "trained": 5000, "targets": 12, "ten": 1200, "ap": [3 / 255]},
)


def withstands(of: Medians, radius: str) -> bool:
    """Whether poison costs naive features much, and either kind of robust features little."""
    naive, *robust = (of[f"{kind}, clean"] - of[f"{kind}, {radius}"] for kind in KINDS)
    return naive >= WORKS and max(robust) <= WITHSTANDS


def poisoned_digits(of: Medians) -> Verdict:
    return judge(withstands(of, "AP 7"), {"ε is 25/255, not 7/255": withstands(of, "AP 25")})


def poisoned_photos(of: Medians) -> Verdict:
    naive, *robust = (of[f"{kind}, clean"] - of[kind] for kind in KINDS)
    ahead = min(of["FGSM"], of["PGD"]) > of["naive"]
    return judge(
        ahead and max(robust) <= HALF * naive,
        {"a smaller advantage counts": ahead},
        unless={"the poison costs naive features less than 20 points": naive < WORKS},
    )


def frogs(of: Medians) -> Verdict:
    def protected(count: int) -> bool:
        naive, *robust = (of[f"{kind}, {count}"] for kind in KINDS)
        return naive >= HALF and max(robust) <= naive * 0.7 and robust[1] <= HALF * naive

    return judge(
        protected(1),
        {"each target has five frogs": protected(5)},
        unless={"the frogs fail with naive features": max(of["naive, 1"], of["naive, 5"]) < WORKS},
    )


def flips(of: Medians) -> Verdict:
    extra = {data: of[f"{data}, PGD"] - of[f"{data}, naive"] for data in ("MNIST", "CIFAR")}
    return judge(max(extra.values()) <= MORE, {"the data are MNIST": extra["MNIST"] <= MORE})


def no_frogs_on_digits(of: Medians) -> Verdict:
    return judge(max(of.values()) <= NO_SUCCESS)


def rows(
    measurements: dict[str, Measurement], name: str, label: str, key: str, paper: list[str], recorded: list[str]
) -> dict[str, Row]:
    """Return a row for each kind of features; a name without text is that of the kind alone."""
    return {
        f"{kind}, {name}" if name else kind: Row(f"{label}, {kind} features", measurements[kind], (key,), theirs, ours)
        for kind, theirs, ours in zip(KINDS, paper, recorded, strict=True)
    }


NOT_STATED = ["", "", ""]
TABLE = "benchmarks.md#frozen-features"

PAPER = Paper(
    "004",
    'Chan-Hon-Tong, "Features which are robust to adversarial attacks are also robust to several poisoning attacks", '
    "2021.",
    "The paper learns features from CIFAR-100 for CIFAR-10, and from SVHN for MNIST, with VGG13. Ours come from other "
    "classes of the same data and a small network: digits 0 to 4 for 5 to 9; eight classes of CIFAR-10 for airplane "
    "against automobile. A linear SVM learns on frozen features, as in the paper. *Naive* features are trained "
    "plainly, the others by FGSM and PGD. Quick: half of the images of MNIST, a fifth of those that the features of "
    "CIFAR-10 are learned from and fewer for the classifier; 20 and 12 targets for the frogs instead of 60.",
    (
        Claim(
            "Robust features withstand adversarial poisoning: MNIST",
            "Table 1, ε = 7/255; accuracy with all training images perturbed",
            {
                **rows(DIGITS, "clean", "no poison", "clean", ["97 %", "", "96 %"], ["97.0 %", "96.3 %", "96.8 %"]),
                **rows(DIGITS, "AP 7", "ε 7/255", "AP 7", ["68 %", "93 %", "95 %"], ["96.0 %", "96.1 %", "96.6 %"]),
                **rows(DIGITS, "AP 25", "ε 25/255", "AP 25", NOT_STATED, ["48.1 %", "93.6 %", "95.2 %"]),
            },
            poisoned_digits,
            TABLE,
            f"Poison must cost naive features {100 * WORKS:g} points, and robust ones at most {100 * WITHSTANDS:g}.",
        ),
        Claim(
            "Robust features lose less by adversarial poisoning: CIFAR-10",
            "Table 1, ε = 3/255, ten classes",
            {
                **rows(PHOTOS, "clean", "no poison", "ten classes", ["", "", "41 %"], ["66.5 %", "55.1 %", "55.6 %"]),
                **rows(
                    PHOTOS, "", "ε 3/255", "ten classes, AP 3", ["24 %", "30 %", "34 %"], ["23.5 %", "53.4 %", "54.1 %"]
                ),
            },
            poisoned_photos,
            TABLE,
            "Less: higher accuracy with the poison, and at most half of the loss. Our ten classes include those that "
            "the features were trained on.",
        ),
        Claim(
            "Poison frogs hardly succeed against robust features: CIFAR-10",
            "Table 2, ε = 7/255; share of targets that are misclassified as wanted",
            {
                **rows(PHOTOS, "1", "one frog", "frogs 1", ["85 %", "53 %", "16 %"], ["25 %", "0 %", "0 %"]),
                **rows(PHOTOS, "5", "five frogs", "frogs 5", NOT_STATED, ["85 %", "3 %", "3 %"]),
            },
            frogs,
            TABLE,
            "Naive features must lose half of the targets, PGD's at most half as many, FGSM's at most 70 % as many. "
            "The paper does not say how many frogs a target has.",
        ),
        Claim(
            "Robust features do not suffer more by flipped labels",
            "Table 3, 2 % of the labels are random; loss of accuracy in points",
            {
                **{
                    f"{data}, {kind}": Row(f"loss, {name}, {kind} features", of[kind], ("flips cost",), paper, recorded)
                    for data, name, of, texts in (
                        ("MNIST", "MNIST", DIGITS, (("2 %", ".2 to .5 %"), ("2 %", ".2 to .5 %"))),
                        ("CIFAR", "CIFAR-10", PHOTOS, (("7 %", "3.6 %"), ("11 %", "2.0 %"))),
                    )
                    for kind, (paper, recorded) in zip(("naive", "PGD"), texts, strict=True)
                },
            },
            flips,
            TABLE,
            f"Not more: at most {100 * MORE:g} points more, the difference in the paper. Ours relabel 2 %, "
            "and are the mean of three draws.",
        ),
        Claim(
            "Poison frogs fail on MNIST with features of other data",
            "Section 4.3, ε = 25/255, also with naive features",
            rows(DIGITS, "5", "five frogs", "frogs 5", ["no success", "", ""], ["0 to 2 %"] * 3),
            no_frogs_on_digits,
            TABLE,
            f"No success: at most {100 * NO_SUCCESS:g} % of the targets.",
        ),
    ),
)
