"""Paper 002: class-shielding poison."""

import functools
from pathlib import Path
from typing import Any

import torch
from class_shielding_mnist import ATTACKS, COPIES, EPSILON, craft_poison, measure_control
from harness.datasets import inputs_of
from harness.frozen_heads import Scenario, build_scenario, head_accuracies
from harness.runs import Figures, share

from lightning_poison import Poison
from lightning_poison.models.frozen_features import HEADS
from paper_claims.claims import Claim, Measurement, Medians, Paper, Row, Verdict, judge

PROTECTED, SHIELD, BUDGET = 3, 8, 3000
NO_EFFECT, MOST, SHIELDED, UNIMPEDED, LOOKS_OWN, BETTER = 0.05, 0.5, 0.2, 0.01, 0.95, 0.05

scenario_of = functools.cache(build_scenario)


def shielding(root: Path, seed: int, *, method: str, **settings: Any) -> Figures:
    """Craft poison and train heads on frozen features with it; without poison as the control."""
    scenario = scenario_of(root, seed)
    if method == "no poison":
        return by_class(measure_control(scenario, method, (PROTECTED, SHIELD), 0, seed))
    attack = ATTACKS[method](protected_class=PROTECTED, shield_class=SHIELD, poisons_per_base=COPIES, **settings)
    poison = craft_poison(scenario, attack, BUDGET, EPSILON, seed)
    figures = head_accuracies(scenario, PROTECTED, inputs_of(poison), poison.labels, seed)
    return by_class(figures) | appearance(scenario, poison, seed)


def by_class(figures: Figures) -> Figures:
    """Return the accuracies of each head by name."""
    return {head: dict(zip(("protected", "others"), values, strict=True)) for head, values in figures.items()}


def appearance(scenario: Scenario, poison: Poison, seed: int) -> Figures:
    """Return how a clean head on the same features predicts the poison: as its label, and as the protected class."""
    features = scenario.victim_features
    scale = features.norm(dim=1).mean()
    head = HEADS["logistic"](seed)
    head.fit((features / scale).numpy(), scenario.parts["victim"].tensors[1].numpy())
    predicted = torch.from_numpy(head.predict((scenario.features(inputs_of(poison)) / scale).numpy()))
    return {"as shield": share(predicted == SHIELD), "as protected": share(predicted == PROTECTED)}


STEPS = {"ridge_steps": 60, "logistic_steps": 40}
CONTROL, OPTIMIZER = (
    Measurement(f"002, {method}", functools.partial(shielding, method=method)) for method in ("no poison", "optimizer")
)
UNET, PAPERS = (
    Measurement(f"002, {method}", functools.partial(shielding, method=method), quick=quick)
    for method, quick in (("generator, U-Net", None), ("generator, paper's", STEPS))
)


def generator_has_no_effect(of: Medians) -> Verdict:
    fall = of["none"] - of["paper"] - (of["none, others"] - of["paper, others"])
    return judge(
        fall < NO_EFFECT, {"a shield is one with which most of the class is misclassified": of["paper"] > MOST}
    )


def shields(of: Medians, method: str) -> bool:
    return of[method] <= SHIELDED and of["none, others"] - of[f"{method}, others"] <= UNIMPEDED


def strategy_works(of: Medians) -> Verdict:
    works = shields(of, "optimizer")
    return judge(
        shields(of, "paper") and of["paper, as shield"] >= LOOKS_OWN,
        {
            "each image is optimized, without a generator": works and of["optimizer, as shield"] >= LOOKS_OWN,
            "each image is optimized, without a generator, and a clean network may misread the poison": works,
        },
    )


def unet_is_better(of: Medians) -> Verdict:
    return judge(of["paper"] - of["unet"] >= BETTER)


def accuracies(name: str, label: str, measurement: Measurement, protected: str, others: str) -> dict[str, Row]:
    return {
        name: Row(
            f"accuracy of the protected class, {label}", measurement, ("logistic", "protected"), recorded=protected
        ),
        f"{name}, others": Row("accuracy of the others", measurement, ("logistic", "others"), recorded=others),
    }


NONE = accuracies("none", "no poison", CONTROL, "98.2 %", "98.0 %")
OPTIMIZED = accuracies("optimizer", "optimizer", OPTIMIZER, "1.4 %", "97.2 %")
GENERATED = accuracies("paper", "generator of the paper's shape", PAPERS, "88 %", "97.8 %")
WITH_UNET = accuracies("unet", "generator with a U-Net", UNET, "74 %", "97.6 %")
TABLE = "benchmarks.md#class-shielding"

PAPER = Paper(
    "002",
    'Pinkava, "Towards class-shielding data poisoning", University of Washington.',
    "The paper poisons new heads on ResNet50 and VGG16 with ImageNet; its result is negative, in two figures without "
    "numbers. Ours: MNIST, a logistic head on the frozen features of a small network, 10,000 clean images, 3,000 "
    "poisons within L∞ .3 made of eights to protect the threes. Unlike the paper's, our victim also sees clean images "
    "of the protected class, and the gradient is taken through the solved head. Quick: the generators train for 100 "
    "steps of 250.",
    (
        Claim(
            "The generator of the paper does not shield a class",
            "Sections 3 and 4.1, figures 3 and 4",
            {**NONE, "paper": GENERATED["paper"], "paper, others": GENERATED["paper, others"]},
            generator_has_no_effect,
            TABLE,
            f"No effect: less than {100 * NO_EFFECT:g} points more than the other classes lose.",
        ),
        Claim(
            "A class can be shielded by correctly labeled poison of another",
            "Section 1, the three properties; the paper's aim, which it did not reach",
            {
                **NONE,
                **OPTIMIZED,
                "optimizer, as shield": Row("poison predicted as its label by a clean head", OPTIMIZER, ("as shield",)),
                "optimizer, as protected": Row("predicted as the protected class", OPTIMIZER, ("as protected",)),
                **GENERATED,
                "paper, as shield": Row("poison predicted as its label by a clean head", PAPERS, ("as shield",)),
            },
            strategy_works,
            TABLE,
            f"Shielded: at most {100 * SHIELDED:g} % of the class predicted correctly, the others at most one point "
            f"lower, and {100 * LOOKS_OWN:g} % of the poison predicted as its label by a head that was "
            "trained without it.",
        ),
        Claim(
            "A U-Net would make a better generator",
            "Section 4.3, a proposal that the paper did not test",
            {"paper": GENERATED["paper"], **WITH_UNET},
            unet_is_better,
            TABLE,
            f"Better: at least {100 * BETTER:g} points lower accuracy of the protected class, after as many steps.",
        ),
    ),
)
