"""Class shielding against a head on frozen features: MNIST, 10,000 clean training images, about 1,000 per class.

    python benchmarks/class_shielding_mnist.py --data-root data --results shielding.jsonl

Each seed splits the 60,000 training images: 20,000 train the extractor (100 features, Wong et al. 2020), 10,000 are the
victim's, 24,000 are the attacker's pool, and 6,000 are reserved for choosing settings (`--evaluate-on validation`). The
poison is appended: perturbed images of the shield class with unchanged labels, on 256 gray levels. Default radius: L∞
0.3. All clean images remain in the training set, including the protected class. Settings are the attacks' defaults,
which were chosen on 6,000 of the training images for 3 → 8; results are on the 10,000 test images.

Heads are trained from scratch on features divided by their mean norm: logistic regression and a linear SVM as in
`FrozenFeatureClassifier` (C = 10 for both), and one fully connected layer with cross-entropy, by SGD (momentum 0.9,
learning rate 3 decreasing to 0, batches of 64, 20 epochs). "Protected" is the accuracy on test images of the protected
class, "others" on all others. The controls are: no poison; as many unperturbed copies of the same images; and copies
with each pixel moved by the radius in a random direction.

Part "pairs": 3 → 8 with 3,000 poisons and 4 → 9 with 2,000, by the optimizer and by both generators; and the optimizer
against extractors trained on images shifted by up to 2 pixels, and adversarially (FGSM, 0.3). Part "choice": each class
is protected in turn, and the attack chooses the shield. Pinkava's paper (Towards Class-Shielding Data Poisoning)
reports no success on ImageNet.
"""

import argparse
import functools
from collections.abc import Callable
from typing import Any

import torch
from harness.datasets import inputs_of
from harness.frozen_heads import FEATURE_LAYER, HEAD_NAMES, Scenario, build_scenario, head_accuracies
from harness.runs import (
    Figures,
    Results,
    benchmark_parser,
    print_goal,
    print_table,
    spread,
    spread_of,
    start,
    with_seconds,
)

from lightning_poison import Poison, Surrogate, Threat, craft
from lightning_poison.attacks import Attack
from lightning_poison.randomness import derived_generator
from lightning_poison_shielding import ClassShielding, ClassShieldingGenerator

EPSILON, COPIES = 0.3, 4
PAIRS = {(3, 8): 3000, (4, 9): 2000}
PROTECTED_GOAL, OTHERS_GOAL, SECONDS_GOAL, CHOICE_GOAL = 0.15, 0.01, 60.0, 0.2
ATTACKS: dict[str, Callable[..., Attack]] = {
    "optimizer": ClassShielding,
    "generator, U-Net": functools.partial(ClassShieldingGenerator, architecture="unet"),
    "generator, paper's": functools.partial(ClassShieldingGenerator, architecture="paper"),
}
EXTRACTORS: dict[str, dict[str, Any]] = {
    "": {},
    "trained with shifts": {"shifted": True},
    "trained adversarially": {"epsilon": EPSILON},
}
OTHER_EXTRACTORS = [f"{name}: {method}" for name in EXTRACTORS if name for method in ("no poison", "optimizer")]
CONTROLS = ("no poison", "unperturbed copies", "random change")


def measure_control(scenario: Scenario, kind: str, pair: tuple[int, int], budget: int, seed: int) -> Figures:
    """Train the heads without poison, or with as many unpoisoned images of the shield class."""
    images, labels = scenario.parts["victim"].tensors
    shields = images[labels == pair[1]]
    rows = torch.cat([torch.randperm(len(shields), generator=derived_generator(seed, "control"))] * COPIES)[:budget]
    added = shields[rows][: 0 if kind == "no poison" else budget]
    if kind == "random change":
        signs = torch.randint(2, added.shape, generator=derived_generator(seed, "signs")) * 2.0 - 1
        added = (added + EPSILON * signs).clamp(0, 1)
    return head_accuracies(scenario, pair[0], added, torch.full((len(added),), pair[1]), seed)


def craft_poison(scenario: Scenario, attack: Attack, budget: int, epsilon: float, seed: int) -> Poison:
    return craft(
        attack,
        scenario.parts["victim"],
        Threat(budget, epsilon, clean_label=True),
        surrogates=[Surrogate(scenario.extractor, FEATURE_LAYER)],
        holdout=scenario.parts["pool"],
        generator=torch.Generator().manual_seed(seed),
    )


def measure_attack(
    scenario: Scenario, attack: Attack, protected: int, budget: int, epsilon: float, seed: int
) -> Figures:
    """Craft poison and train the heads; the crafting time includes the checks of `craft`."""
    poison, wall, cpu = with_seconds(lambda: craft_poison(scenario, attack, budget, epsilon, seed))
    figures = head_accuracies(scenario, protected, inputs_of(poison), poison.labels, seed)
    return figures | {"craft_wall": wall, "craft_cpu": cpu, "shield": int(poison.labels[0])}


def accuracy_cell(runs: list[Figures], head: str, place: int) -> str:
    return spread([100 * run[head][place] for run in runs], ".1f" if place == 0 else ".2f")


def table_row(name: str, runs: list[Figures]) -> list[str]:
    cells = [accuracy_cell(runs, head, place) for head in HEAD_NAMES for place in (0, 1)]
    seconds = [spread_of(runs, clock, form=".0f") if clock in runs[0] else "-" for clock in CLOCKS]
    return [name, *cells, *seconds]


CLOCKS = ("craft_cpu", "craft_wall")
COLUMNS = [
    *(f"{head}: {classes}" for head in HEAD_NAMES for classes in ("protected", "others")),
    "craft CPU s",
    "craft wall s",
]


def run_pairs(args: argparse.Namespace, results: Results, scenario_of: Callable[..., Scenario]) -> None:
    found: dict[tuple[int, int], dict[str, list[Figures]]] = {pair: {} for pair in PAIRS}
    for method in args.methods:
        for pair, budget in PAIRS.items():
            key = {"pair": f"{pair[0]} to {pair[1]}", "method": method, "evaluate_on": args.evaluate_on}
            measure = functools.partial(measure_pair, scenario_of, method, pair, budget)
            found[pair][method] = results.over_seeds(range(args.seeds), key, measure)
    for pair, budget in PAIRS.items():
        setting = f"{pair[0]} → {pair[1]}, {budget} images of {pair[1]} added, radius {EPSILON}"
        print(f"\n{setting}, {args.evaluate_on} images, %")
        print_table(["", *COLUMNS], [table_row(name, runs) for name, runs in found[pair].items()])
        for name in found[pair]:
            if name in ATTACKS and "no poison" in found[pair]:
                print_pair_goals(f"{pair[0]} → {pair[1]}, {name}", found[pair][name], found[pair]["no poison"])


def measure_pair(
    scenario_of: Callable[..., Scenario], method: str, pair: tuple[int, int], budget: int, seed: int
) -> Figures:
    extractor, _, name = method.rpartition(": ")
    scenario = scenario_of(seed, **EXTRACTORS[extractor])
    if name in CONTROLS:
        return measure_control(scenario, name, pair, budget, seed)
    attack = ATTACKS[name](protected_class=pair[0], shield_class=pair[1], poisons_per_base=COPIES)
    return measure_attack(scenario, attack, pair[0], budget, EPSILON, seed)


def print_pair_goals(name: str, runs: list[Figures], clean: list[Figures]) -> None:
    for head in HEAD_NAMES:
        print_goal(f"{name}, {head}: protected at most 15 %", [run[head][0] <= PROTECTED_GOAL for run in runs])
        lost = [before[head][1] - run[head][1] for before, run in zip(clean, runs, strict=True)]
        print_goal(f"{name}, {head}: others at most 1 point lower", [loss <= OTHERS_GOAL for loss in lost])
    print_goal(f"{name}: crafted within 60 CPU s", [run["craft_cpu"] <= SECONDS_GOAL for run in runs])


def run_choices(args: argparse.Namespace, results: Results, scenario_of: Callable[..., Scenario]) -> None:
    for setting in args.choices:
        epsilon, budget = float(setting.split(":")[0]), int(setting.split(":")[1])
        found = {}
        for protected in range(10):
            key = {"choice": setting, "protected": protected, "evaluate_on": args.evaluate_on}
            measure = functools.partial(measure_choice, scenario_of, protected, budget, epsilon)
            found[protected] = results.over_seeds(range(args.choice_seeds), key, measure)
        print(f"\nShield chosen by the attack, radius {epsilon:g}, {budget} poisons, {args.evaluate_on} images, %")
        rows = [
            table_row(f"{one} → {'/'.join(str(run['shield']) for run in runs)}", runs) for one, runs in found.items()
        ]
        print_table(["", *COLUMNS], rows)
        for head in HEAD_NAMES:
            counts = [
                sum(found[one][seed][head][0] <= CHOICE_GOAL for one in found) for seed in range(args.choice_seeds)
            ]
            print(f"- {head}: {spread(counts, '.0f')} of 10 classes at most 20 %")


def measure_choice(
    scenario_of: Callable[..., Scenario], protected: int, budget: int, epsilon: float, seed: int
) -> Figures:
    attack = ClassShielding(protected_class=protected, poisons_per_base=COPIES)
    return measure_attack(scenario_of(seed), attack, protected, budget, epsilon, seed)


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--evaluate-on", choices=("test", "validation"), default="test", help="default: test")
    parser.add_argument("--parts", nargs="+", choices=("pairs", "choice"), default=["pairs", "choice"])
    methods = [*CONTROLS, *ATTACKS, *OTHER_EXTRACTORS]
    parser.add_argument("--methods", nargs="+", choices=methods, default=methods)
    parser.add_argument("--choices", nargs="+", default=["0.3:3000", "0.3:2000", "0.2:3000"], help="epsilon:budget")
    parser.add_argument("--choice-seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    start(args)
    results = Results(args.results)
    scenario_of = functools.cache(functools.partial(build_scenario, args.data_root, evaluate_on=args.evaluate_on))
    if "pairs" in args.parts:
        run_pairs(args, results, scenario_of)
    if "choice" in args.parts:
        run_choices(args, results, scenario_of)


if __name__ == "__main__":
    main()
