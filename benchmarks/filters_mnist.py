"""Which filter sees what: every scorer, and combinations that vote, against mislabels, collisions and backdoors.

    python benchmarks/filters_mnist.py --data-root data --results filters.jsonl

MNIST. For each seed 10,000 training images are what scorers that judge sample by sample are fitted on; 5,000 others
(500 a class) are trusted, and calibrate; 10,000 more are judged, with the poison of one attack among them; the attacker
trains a network of its own on another 10,000. `sanitize` judges, with fitted scorers and `trusted=`. Scorers that must
see the whole set look at the last hidden layer of one classifier, trained on judged and trusted images together.

The attacks, through their plug-ins: 2 % wrong labels; 100 poison frogs, appended, unbounded and in an L∞ ball of .2;
FGSM and random signs at epsilon .1, and FGSM at .2 on ink alone (pixels above .1), on 200 images; BadNets, all to one,
2 %. Frogs and FGSM are crafted on the attacker's network, which no scorer shares. Images are on the grid of 8 bits.

AUROC is that of the ranking by p-values; TPR and the realised false-positive rate are at stated rates of 5 % and 1 %,
the latter on the judged images that are clean. A combination is compared with its best member; goals stand beside the
figures. Two lines of pixel counting (the share of pixels in (0, .12)) are the `pixel-counting` row's smaller brother,
`dark pixels`: where they do as well, the result is trivial.
"""

import copy
import time
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from common import Figures, Results, arguments, print_goal, print_setting, print_table, spread
from sklearn.metrics import roc_auc_score
from torch.utils.data import ConcatDataset, Subset
from torchvision.datasets import MNIST
from torchvision.transforms import v2

from lightning_poison import CombinedScorer, LikelihoodScorer, PoisonedDataset, Surrogate, Threat, craft, sanitize
from lightning_poison.models import FitSettings
from lightning_poison.randomness import derived_generator
from lightning_poison.runtime import LocalRuntime
from lightning_poison.scorers import (
    ActivationClusteringScorer,
    CharacteristicVectorScorer,
    ConfidenceScorer,
    DeepKNNScorer,
    FeatureModel,
    MahalanobisScorer,
    PixelCountingScorer,
    SpectralSignatureScorer,
)
from lightning_poison.scorers.classifier import fit_classifier
from lightning_poison.scorers.discriminator import DiscriminatorScorer
from lightning_poison_backdoors import BadNets
from lightning_poison_collisions import FrogAttack
from lightning_poison_labels.label_flip import LabelFlip
from lightning_poison_perturbations.attacks import fgsm, random_sign

FIT, TRUSTED, JUDGED, ATTACKER = 10_000, 500, 10_000, 10_000
RATES = {"5 %": 0.05, "1 %": 0.01}
RUNTIME = LocalRuntime(threads=1)
ATTACKS = {
    "mislabels, 2 %": (LabelFlip(), Threat(200)),
    "frogs": (FrogAttack(), Threat(100, clean_label=True)),
    "frogs, L∞ .2": (FrogAttack(), Threat(100, clean_label=True, epsilon=0.2)),
    "FGSM .1": (fgsm(epsilon=0.1), Threat(200, epsilon=0.1, clean_label=True)),
    "random signs .1": (random_sign(epsilon=0.1), Threat(200, epsilon=0.1, clean_label=True)),
    "FGSM .2 on ink": (fgsm(epsilon=0.2, ink_above=0.1), Threat(200, epsilon=0.2, clean_label=True)),
    "BadNets, 2 %": (BadNets(), Threat(200)),
}
PERTURBATIONS = ("FGSM .1", "random signs .1", "FGSM .2 on ink")
SAMPLE_WISE = {
    "likelihood": LikelihoodScorer,
    "likelihood, posterior": lambda: LikelihoodScorer("posterior"),
    "discriminator": DiscriminatorScorer,
    "discriminator, texture": lambda: DiscriminatorScorer(head="texture"),
    "Mahalanobis": MahalanobisScorer,
    "characteristic vectors": CharacteristicVectorScorer,
    "confidence": ConfidenceScorer,
    "pixel counting": PixelCountingScorer,
}
SET_WISE = {
    "deep k-NN": DeepKNNScorer,
    "spectral signatures": SpectralSignatureScorer,
    "spectral signatures, the paper's": lambda model: SpectralSignatureScorer(model, directions=1, center="mean"),
    "activation clustering": ActivationClusteringScorer,
}
COMBINATIONS = {
    "max of two": (("likelihood", "discriminator"), "max"),
    "max of four": (("likelihood", "discriminator", "discriminator, texture", "spectral signatures"), "max"),
    "sum of four": (("likelihood", "discriminator", "discriminator, texture", "spectral signatures"), "sum"),
}


@dataclass(frozen=True)
class Seed:
    """The data and the fitted scorers of one seed."""

    trusted: Any
    judged: Any
    test: Any
    surrogate: Surrogate
    scorers: dict[str, Any]
    seconds: dict[str, float]


def prepare(args: Any, seed: int) -> Seed:
    transform = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    train, test = (MNIST(args.data_root, train=part, transform=transform) for part in (True, False))
    order = torch.randperm(len(train), generator=derived_generator(seed, "parts"))
    fit, judged, attacker = order[:FIT], order[FIT : FIT + JUDGED], order[FIT + JUDGED : FIT + JUDGED + ATTACKER]
    rest = order[FIT + JUDGED + ATTACKER :]
    labels = train.targets[rest]
    trusted = torch.cat([rest[labels == digit][:TRUSTED] for digit in range(10)])
    own = fit_classifier(
        Subset(train, attacker.tolist()),
        backbone=None,
        feature_size=64,
        settings=FitSettings(),
        runtime=RUNTIME,
        generator=derived_generator(seed, "attacker"),
    )
    scorers, seconds = {}, {}
    for name, build in SAMPLE_WISE.items():
        start = time.process_time()
        known = Subset(train, fit.tolist())
        scorers[name] = build().fit(known, runtime=RUNTIME, generator=derived_generator(seed, name))
        seconds[name] = time.process_time() - start
    parts = (Subset(train, part.tolist()) for part in (trusted, judged))
    return Seed(*parts, test, Surrogate(own, "backbone"), scorers, seconds)


def measure(prepared: Seed, attack: str, seed: int) -> Figures:
    method, threat = ATTACKS[attack]
    poison = craft(
        method,
        prepared.judged,
        threat,
        surrogates=[prepared.surrogate],
        holdout=prepared.test,
        generator=derived_generator(seed, "craft"),
    )
    data = PoisonedDataset(prepared.judged, poison)
    start = time.process_time()
    model = FeatureModel().fit(
        ConcatDataset([data, prepared.trusted]), runtime=RUNTIME, generator=derived_generator(seed, "features")
    )
    seconds = {"features, fit": time.process_time() - start}
    scorers = dict(prepared.scorers) | {name: build(model) for name, build in SET_WISE.items()}
    for name, (members, how) in COMBINATIONS.items():
        scorers[name] = CombinedScorer([copy.copy(scorers[member]) for member in members], combine=how)
    figures: Figures = {}
    for name, scorer in scorers.items():
        start = time.process_time()
        figures[name] = judge(data, scorer, prepared.trusted, seed)
        seconds[name] = time.process_time() - start
    images = torch.stack([data[index][0] for index in range(len(data))])
    counts = ((images > 0) & (images < 0.12)).double().flatten(1).mean(1)
    figures["dark pixels"] = {"AUROC": roc_auc_score(data.is_poison, counts)}
    return {**figures, "seconds": seconds, "fit seconds": prepared.seconds}


def judge(data: PoisonedDataset, scorer: Any, trusted: Any, seed: int) -> Figures:
    verdict = sanitize(data, scorer, trusted=trusted, max_removed=1, seed=seed, runtime=RUNTIME)
    found: Figures = {"AUROC": roc_auc_score(data.is_poison, -verdict.p_values.log())}
    for name, rate in RATES.items():
        caught = verdict.p_values <= rate
        found[f"TPR, {name}"] = float(caught[data.is_poison].double().mean())
        found[f"FPR, {name}"] = float(caught[~data.is_poison].double().mean())
    if verdict.votes:
        found["accused by"] = verdict.accusers
    return found


def report(found: dict[str, list[Figures]]) -> None:
    names = [*SAMPLE_WISE, *SET_WISE, *COMBINATIONS]
    for figure, form in (("AUROC", ".3f"), ("TPR, 5 %", ".2f"), ("TPR, 1 %", ".2f")):
        print(f"\n## {figure}")
        rows = [[name, *(_cell(runs, name, figure, form) for runs in found.values())] for name in names]
        if figure == "AUROC":
            rows.append(["dark pixels", *(_cell(runs, "dark pixels", figure, form) for runs in found.values())])
        print_table(["filter", *found], rows)
    print("\n## Realised ÷ stated false-positive rate, all attacks")
    everything = [run for runs in found.values() for run in runs]
    ratios = {
        (name, label): [run[name][f"FPR, {label}"] / rate for run in everything]
        for name in names
        for label, rate in RATES.items()
    }
    print_table(
        ["filter", *RATES, "CPU s to fit", "CPU s to judge"],
        [
            [
                name,
                *(spread(ratios[name, label], ".2f") for label in RATES),
                _seconds(everything, "fit seconds", name),
                _seconds(everything, "seconds", name),
            ]
            for name in names
        ],
    )
    for name in names:
        for label in RATES:
            print_goal(
                f"{name}: realised ÷ stated FPR at {label}, 0.5 to 1.5", [0.5 <= r <= 1.5 for r in ratios[name, label]]
            )
    for name, (members, _) in COMBINATIONS.items():
        for attack, runs in found.items():
            best = [max(run[member]["TPR, 5 %"] for member in members) for run in runs]
            met = [run[name]["TPR, 5 %"] >= most - 0.05 for run, most in zip(runs, best, strict=True)]
            print_goal(f"{name}, {attack}: TPR at 5 % at least that of the best member less .05", met)
    for attack in PERTURBATIONS:
        counted = max(_median(found[attack], each, "AUROC") for each in ("pixel counting", "dark pixels"))
        others = max(_median(found[attack], name, "AUROC") for name in names if name != "pixel counting")
        print(f"- {attack}: pixel counting {counted:.3f}, best filter {others:.3f}{_trivial(counted, others)}")


def _trivial(counted: float, others: float) -> str:
    return ": trivial" if counted >= others - 0.005 else ""


def _median(runs: list[Figures], name: str, figure: str) -> float:
    return float(torch.tensor([run[name][figure] for run in runs]).median())


def _cell(runs: list[Figures], name: str, figure: str, form: str) -> str:
    return spread([run[name][figure] for run in runs], form)


def _seconds(runs: list[Figures], kind: str, name: str) -> str:
    known = [run[kind][name] for run in runs if name in run[kind]]
    return spread(known, ".1f") if known else "-"


def main() -> None:
    args = arguments(__doc__).parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="The false-positive rate is calibrated on")
    print_setting("filters_mnist", args)
    results = Results(args.results)
    found: dict[str, list[Figures]] = {attack: [] for attack in ATTACKS}
    for seed in range(args.seeds):
        prepared: list[Seed] = []
        for attack, runs in found.items():

            def run(attack: str = attack, seed: int = seed, prepared: list[Seed] = prepared) -> Figures:
                if not prepared:
                    prepared.append(prepare(args, seed))
                return measure(prepared[0], attack, seed)

            runs.append(results.get({"attack": attack, "seed": seed}, run))
    report(found)


if __name__ == "__main__":
    main()
