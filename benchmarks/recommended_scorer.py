"""What `sanitize(data)` finds without a scorer, trusted data or any other choice, on MNIST and CIFAR-10.

    python benchmarks/recommended_scorer.py --data-root data --results recommended.jsonl
    python benchmarks/recommended_scorer.py --data cifar --data-root data --results recommended.jsonl

10,000 training images, or `--images`, drawn anew in each seed. Every row is the same call, `sanitize(data, preset,
seed=seed)`. Images are in [0, 1]. Budgets of backdoors with wrong labels are shares of all images, those with clean
labels of the target class, 0. The clean-label backdoor is perturbed on another network with epsilon .3 (MNIST) or
16 / 255. Poison frogs collide with ten targets, 15 images each, and are crafted on a network that was trained on other
images. Hidden trigger and Sleeper Agent make images of class 1 with a patch be predicted as 0, within the same epsilon
and from the same kind of network; the budget of Sleeper Agent is a share of all images, and the attack trains that
network anew twice.

Cover samples, which keep their label, count neither as caught nor as clean.

The network of the groups, its training and the layer were chosen on seed 0, on MNIST; the seeds here are others.

The adaptive backdoors of Qi et al. (2023) are made against filters of groups in features: cover samples, which carry
parts of the trigger and their own label, keep poison and clean samples together.

`--undefended` trains a network on the poisoned data, and prints the attack success beside. `--gap` also trains one on
what the default keeps, on what a random filter of the same size keeps, and on all but the poison. It prints how much of
the gap in success between the latter two the default closes, what the default costs in accuracy on other clean images,
and what evades and harms: the share of the poison that is kept, times the success after a training on what is kept. For
wrong labels, success is one minus the accuracy on clean images.

`--without-encoder` is what the default finds where `lightning-poison[pretrained]` is not installed.

Seconds are CPU seconds of one thread.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from harness.datasets import LabeledImages, RawDataset, columns_of, load_cifar, load_mnist
from harness.networks import predict
from harness.runs import (
    Figures,
    Results,
    benchmark_parser,
    print_table,
    share,
    spread_of,
    start,
    with_cpu_seconds,
)
from torch import nn
from torch.utils.data import TensorDataset

from lightning_poison import Poison, PoisonedDataset, Surrogate, Threat, craft, get_attack, sanitize
from lightning_poison.attacks import COVER
from lightning_poison.errors import NothingKeptError
from lightning_poison.models import DetailConvNet, FitSettings
from lightning_poison.randomness import seeded_rng
from lightning_poison.runtime import LocalRuntime
from lightning_poison.sanitization import Verdict
from lightning_poison.scorers import FeatureModel

COUNT, FIRST_SEED, SURROGATE_SEED = 10_000, 20, 500
SETTINGS = FitSettings(learning_rate=4e-3)


@dataclass(frozen=True)
class Case:
    attack: str = ""
    share: float = 0.0
    of_class: bool = False
    settings: dict[str, Any] = field(default_factory=dict)


CASES = {
    "clean": Case(),
    "WaNet 5 %": Case("wanet", 0.05),
    "BadNets .3 %": Case("badnets", 0.003),
    "BadNets 1 %": Case("badnets", 0.01),
    "BadNets 5 %": Case("badnets", 0.05),
    "BadNets all-to-all 10 %": Case("badnets", 0.10, settings={"target_class": "next"}),
    "blended 5 %": Case("blended", 0.05),
    "Refool 5 %": Case("refool", 0.05),
    "sample-specific 5 %": Case("sample-specific", 0.05),
    "TaCT": Case("tact", 0.10),  # half of it cover
    "SIG, 80 % of a class": Case("sig", 0.8, of_class=True),
    "clean-label, 33 % of a class": Case("clean-label-backdoor", 0.33, of_class=True),
    "hidden trigger, 50 % of a class": Case("hidden-trigger", 0.5, of_class=True, settings={"source_class": 1}),
    "Sleeper Agent 2 %": Case("sleeper-agent", 0.02, settings={"source_class": 1, "retrain_factor": 2, "shift": 2}),
    "adaptive patch 1 %": Case("adaptive-patch", 0.02),  # half of it cover
    "adaptive blend 2 %": Case("adaptive-blend", 0.04),  # half of it cover
    "poison frogs, 150": Case("poison-frog", 0.015, settings={"poisons_per_target": 15}),
    "flips 2 %": Case("label-flip", 0.02),
    "flips 10 %": Case("label-flip", 0.10),
}
TRAINED = ("undefended success", "defended success", "gap closed", "accuracy lost", "evades and harms")
EFFECTS = ("separation", "transfer", "resemblance")
MIN_GAP = 0.025
"""Gap in success below which no share of it is reported."""

EPSILON = {"mnist": 0.3, "cifar": 16 / 255}


def network_for(images: torch.Tensor, data: LabeledImages, seed: int) -> nn.Module:
    """Train the network that a user would, plainly."""
    with seeded_rng(seed):
        backbone = DetailConvNet(images.shape[1:], 64)
    model = FeatureModel(backbone=backbone, feature_size=64, fit_settings=SETTINGS)
    return model.fit(TensorDataset(*data), generator=torch.Generator().manual_seed(seed)).network


def craft_poison(case: Case, name: str, train: LabeledImages, rest: LabeledImages, seed: int) -> Poison | None:
    """Return the poison of a case, or `None` for clean data."""
    if not case.attack:
        return None
    clean = RawDataset.from_floats(*train)
    settings, surrogates, holdout = dict(case.settings), [], None
    if case.attack in ("clean-label-backdoor", "poison-frog", "hidden-trigger", "sleeper-agent"):
        network = network_for(train[0], rest, seed + SURROGATE_SEED)
        surrogates = [Surrogate(network, "backbone")]
    if case.attack in ("clean-label-backdoor", "hidden-trigger", "sleeper-agent"):
        settings["epsilon"] = EPSILON[name]
    if case.attack in ("hidden-trigger", "sleeper-agent"):
        settings["steps"] = 100
    if case.attack == "sleeper-agent":
        settings |= {"fit_settings": SETTINGS, "flip": name == "cifar"}  # as the victim is trained
    if case.attack == "poison-frog":
        holdout = RawDataset.from_floats(rest[0][-500:], rest[1][-500:])
    amount = case.share * (float((train[1] == 0).double().mean()) if case.of_class else 1.0)
    threat = Threat.of_fraction(clean, amount)
    generator = torch.Generator().manual_seed(seed)
    return craft(
        get_attack(case.attack, **settings), clean, threat, surrogates=surrogates, holdout=holdout, generator=generator
    )


def decide(data: TensorDataset, preset: Any, seed: int) -> Verdict:
    try:
        return sanitize(data, preset, seed=seed, runtime=LocalRuntime(threads=1))
    except NothingKeptError as error:
        found: Verdict = error.verdict
        return found


@dataclass(frozen=True)
class PoisonedImages:
    """Images as a filter gets them, other images from the same source, and the truth."""

    given: LabeledImages
    rest: LabeledImages
    poison: Poison | None

    @property
    def is_poison(self) -> torch.Tensor:
        """Mask of the samples that the attack made, cover samples included."""
        mask = torch.zeros(len(self.given[1]), dtype=torch.bool)
        if self.poison is not None:
            mask[self.poison.indices] = True
        return mask

    @property
    def harmful(self) -> torch.Tensor:
        """Positions of the poison without cover samples."""
        assert self.poison is not None
        return self.poison.indices[self.poison.role != COVER]


def poisoned_images(
    case: Case, name: str, load: Callable[[], LabeledImages], seed: int, count: int = COUNT
) -> PoisonedImages:
    """Draw the images of a seed, and poison them."""
    images, labels = load()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1000 + seed))
    parts = order[:count], order[count : 2 * count]
    train, rest = ((images[part], labels[part]) for part in parts)
    poison = craft_poison(case, name, train, rest, seed)
    if poison is None:
        return PoisonedImages(train, rest, None)
    given_images, given_labels = columns_of(PoisonedDataset(RawDataset.from_floats(*train), poison))
    return PoisonedImages((given_images, given_labels), rest, poison)


def success_and_accuracy(data: PoisonedImages, keep: torch.Tensor, seed: int) -> tuple[float, float]:
    """Train on what is kept, and return attack success and accuracy on images that no filter or attacker has seen."""
    images, labels = data.given
    network = network_for(images[keep], (images[keep], labels[keep]), seed)
    others = data.rest[0][2000:4000], data.rest[1][2000:4000]
    accuracy = share(predict(network, others[0]) == others[1])
    assert data.poison is not None
    if data.poison.attack == "label-flip":
        return 1 - accuracy, accuracy
    triggered, true, wanted = columns_of(
        data.poison.objective.evaluation_set(RawDataset.from_floats(data.rest[0][:2000], data.rest[1][:2000]))
    )
    return share((predict(network, triggered) == wanted)[true != wanted]), accuracy


def gap_of(data: PoisonedImages, keep: torch.Tensor, seed: int) -> Figures:
    """Compare a mask with a random filter of the same size and with a perfect one."""
    random = torch.ones_like(keep)
    random[torch.randperm(len(keep), generator=torch.Generator().manual_seed(seed))[: int((~keep).sum())]] = False
    perfect = torch.ones_like(keep)
    perfect[data.harmful] = False
    masks = {"undefended": torch.ones_like(keep), "defended": keep, "random": random, "perfect": perfect}
    trained: dict[bytes, tuple[float, float]] = {}  # masks that are equal need one training
    for mask in masks.values():
        if mask.numpy().tobytes() not in trained:
            trained[mask.numpy().tobytes()] = success_and_accuracy(data, mask, seed)
    found = {what: trained[mask.numpy().tobytes()] for what, mask in masks.items()}
    figures: Figures = {f"{what} success": success for what, (success, _) in found.items()}
    gap = figures["random success"] - figures["perfect success"]
    if gap >= MIN_GAP:
        figures["gap closed"] = (figures["random success"] - figures["defended success"]) / gap
    kept = share(keep[data.harmful])
    return figures | {
        "accuracy lost": found["perfect"][1] - found["defended"][1],
        "evades": kept,
        "evades and harms": kept * figures["defended success"],
    }


def measure(
    case: Case,
    name: str,
    load: Callable[[], LabeledImages],
    preset: Any,
    undefended: bool,
    gap: bool,
    count: int,
    seed: int,
) -> Figures:
    data = poisoned_images(case, name, load, seed, count)
    poison, given, rest, truth = data.poison, data.given, data.rest, data.is_poison
    verdict, seconds = with_cpu_seconds(lambda: decide(TensorDataset(*given), preset, seed))
    figures: Figures = {
        "removed": int((~verdict.keep).sum()),
        "clean lost": share((~verdict.keep)[~truth]),
        "seconds": seconds,
        "evidence": verdict.evidence.present,
        "estimate": verdict.evidence.contamination,
        "power": verdict.evidence.power,
        "found by": verdict.removed_by_scorer,
        "groups": [
            [each.label, each.size, each.separation, each.transfer, each.resemblance, each.is_poison]
            for each in verdict.evidence.groups
        ],
        "summary": str(verdict),
    }
    if poison is None:
        return figures
    figures["caught"] = share((~verdict.keep)[data.harmful])
    if gap and case.attack != "poison-frog":
        return figures | gap_of(data, verdict.keep, seed)
    if undefended and case.attack not in ("label-flip", "poison-frog"):
        triggered, true, wanted = columns_of(
            poison.objective.evaluation_set(RawDataset.from_floats(rest[0][:2000], rest[1][:2000]))
        )
        predicted = predict(network_for(given[0], given, seed), triggered)
        figures["undefended success"] = share((predicted == wanted)[true != wanted])
    return figures


def report(found: dict[str, list[Figures]]) -> None:
    columns = {"caught": ".3f", "clean lost": ".4f", "estimate": ".4f", "power": ".2f", "seconds": ".0f"}
    rows = []
    for name, runs in found.items():
        cells = [
            spread_of(runs, key, form=form) if all(run.get(key) is not None for run in runs) else ""
            for key, form in columns.items()
        ]
        cells += [
            spread_of(runs, key, form=".3f") if all(run.get(key) is not None for run in runs) else "" for key in TRAINED
        ]
        finders = sorted({finder for run in runs for finder in run["found by"]})
        rows.append([name, str(len(runs)), *cells, ", ".join(finders) or "none"])
    print_table(["case", "seeds", *columns, *TRAINED, "found by"], rows)
    for name, runs in found.items():
        groups = [group for run in runs for group in run.get("groups", [])]
        for kept in (True, False):
            effects = [group[2:5] for group in groups if group[5] != kept]
            if effects:
                spans = [f"{min(column):.2f} to {max(column):.2f}" for column in zip(*effects, strict=True)]
                listed = ", ".join(f"{what} {span}" for what, span in zip(EFFECTS, spans, strict=True))
                print(f"- {name}: {len(effects)} groups {'kept' if kept else 'removed'}: {listed}")


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--data", choices=sorted(EPSILON), default="mnist")
    parser.add_argument("--preset", choices=["fast", "balanced", "thorough"], default="balanced")
    parser.add_argument("--case", action="append", choices=list(CASES), help="run only these; may be repeated")
    parser.add_argument("--undefended", action="store_true", help="also measure the attack success without a defense")
    parser.add_argument("--gap", action="store_true", help="also train on what is kept, and on what the controls keep")
    parser.add_argument("--images", type=int, default=COUNT, help="number of images; default: 10,000")
    parser.add_argument(
        "--without-encoder", action="store_true", help="as if the pretrained encoder were not installed"
    )
    args = parser.parse_args()
    start(args)
    if args.without_encoder:
        mock.patch("lightning_poison.scorers.recommended.has_embedded_encoder", return_value=False).start()
    loader = load_mnist if args.data == "mnist" else load_cifar
    load = functools.partial(loader, args.data_root, train=True)
    results = Results(args.results)
    found: dict[str, list[Figures]] = {}
    for name in args.case or CASES:
        key = {"data": args.data, "preset": args.preset, "case": name, "undefended": args.undefended}
        if args.gap:
            key["gap"] = True
        if args.images != COUNT:
            key["images"] = args.images
        if args.without_encoder:
            key["encoder"] = False
        run = functools.partial(
            measure, CASES[name], args.data, load, args.preset, args.undefended, args.gap, args.images
        )
        found[name] = results.over_seeds(range(FIRST_SEED, FIRST_SEED + args.seeds), key, run)
    report(found)


if __name__ == "__main__":
    main()
