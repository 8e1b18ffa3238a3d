"""Detection by every scorer, and by combinations, of wrong labels, collisions, perturbations and backdoors: MNIST.

    python benchmarks/filters_mnist.py --data-root data --results filters.jsonl

For each seed, sample-wise scorers are fitted on 10,000 training images; 5,000 others (500 per class) are trusted and
used for calibration; 10,000 more are scored, with the poison of one attack among them; the attacker trains its own
network on another 10,000. Decisions are made by `sanitize`, with fitted scorers and `trusted=`. Scorers of the whole
set use the last hidden layer of one classifier, trained on scored and trusted images together.

The attacks, from their plug-ins: 2 % wrong labels; 100 poison frogs, appended, unbounded and in an L∞ ball of .2; FGSM
and random signs with epsilon .1, and FGSM with .2 on ink only (pixels above .1), on 200 images; BadNets, all-to-one,
2 %. Frogs and FGSM are crafted on the attacker's network, which no scorer shares. Images have 8 bits.

AUROC is that of the ranking by p-values; TPR and the realized false-positive rate are at stated rates of 5 % and 1 %,
the latter on the clean images among those scored. A combination is compared with its best member. `dark pixels` is the
share of pixels in (0, .12), a simpler variant of `pixel counting`: if they do as well, the result is trivial.
"""

import copy
import functools
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from harness.datasets import TO_FLOAT, first_of_each_class
from harness.discriminators import dark_pixel_scores
from harness.runs import (
    Figures,
    Results,
    benchmark_parser,
    print_goal,
    print_table,
    share,
    spread,
    spread_of,
    start,
    values_of,
    with_cpu_seconds,
)
from sklearn.metrics import roc_auc_score
from torch.utils.data import ConcatDataset, Subset
from torchvision.datasets import MNIST

from lightning_poison import CombinedScorer, LikelihoodScorer, PoisonedDataset, Surrogate, Threat, craft, sanitize
from lightning_poison.attacks import Attack
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
from lightning_poison.scorers.discriminator import DiscriminatorScorer
from lightning_poison.scorers.networks import fit_classifier
from lightning_poison_backdoors import BadNets
from lightning_poison_collisions import FrogAttack
from lightning_poison_labels import LabelFlip
from lightning_poison_perturbations import FGSM, RandomSign

FIT, TRUSTED, UNTRUSTED, ATTACKER = 10_000, 500, 10_000, 10_000
RATES = {"5 %": 0.05, "1 %": 0.01}
RUNTIME = LocalRuntime(threads=1)
ATTACKS: dict[str, tuple[Attack, Threat]] = {
    "mislabels, 2 %": (LabelFlip(), Threat(200)),
    "frogs": (FrogAttack(), Threat(100, clean_label=True)),
    "frogs, L∞ .2": (FrogAttack(), Threat(100, clean_label=True, epsilon=0.2)),
    "FGSM .1": (FGSM(epsilon=0.1), Threat(200, epsilon=0.1, clean_label=True)),
    "random signs .1": (RandomSign(epsilon=0.1), Threat(200, epsilon=0.1, clean_label=True)),
    "FGSM .2 on ink": (FGSM(epsilon=0.2, ink_above=0.1), Threat(200, epsilon=0.2, clean_label=True)),
    "BadNets, 2 %": (BadNets(), Threat(200)),
}
PERTURBATIONS = ("FGSM .1", "random signs .1", "FGSM .2 on ink")
SAMPLE_WISE: dict[str, Any] = {
    "likelihood": LikelihoodScorer,
    "likelihood, posterior": lambda: LikelihoodScorer("posterior"),
    "discriminator": DiscriminatorScorer,
    "discriminator, texture": lambda: DiscriminatorScorer(head="texture"),
    "Mahalanobis": MahalanobisScorer,
    "characteristic vectors": CharacteristicVectorScorer,
    "confidence": ConfidenceScorer,
    "pixel counting": PixelCountingScorer,
}
SET_WISE: dict[str, Any] = {
    "deep k-NN": DeepKNNScorer,
    "spectral signatures": SpectralSignatureScorer,
    "spectral signatures, the paper's": lambda model: SpectralSignatureScorer(model, directions=1, center="mean"),
    "activation clustering": ActivationClusteringScorer,
}
COMBINATIONS: dict[str, tuple[tuple[str, ...], Any]] = {
    "max of two": (("likelihood", "discriminator"), "max"),
    "max of four": (("likelihood", "discriminator", "discriminator, texture", "spectral signatures"), "max"),
    "sum of four": (("likelihood", "discriminator", "discriminator, texture", "spectral signatures"), "sum"),
}


@dataclass(frozen=True)
class Seed:
    """The data and the fitted scorers of one seed."""

    trusted: Any
    untrusted: Any
    test: Any
    surrogate: Surrogate
    scorers: dict[str, Any]
    seconds: dict[str, float]


def prepare(args: Any, seed: int) -> Seed:
    train, test = (MNIST(args.data_root, train=part, transform=TO_FLOAT) for part in (True, False))
    order = torch.randperm(len(train), generator=derived_generator(seed, "parts"))
    sizes = [FIT, UNTRUSTED, ATTACKER]
    fit, untrusted, attacker, rest = torch.split(order, [*sizes, len(order) - sum(sizes)])
    trusted = rest[first_of_each_class(train.targets[rest], TRUSTED)]
    network = fit_classifier(
        Subset(train, attacker.tolist()),
        backbone=None,
        feature_size=64,
        settings=FitSettings(),
        runtime=RUNTIME,
        generator=derived_generator(seed, "attacker"),
    )
    scorers, seconds = {}, {}
    known = Subset(train, fit.tolist())
    for name, build in SAMPLE_WISE.items():
        fit_it = functools.partial(_fit_scorer, build, known, derived_generator(seed, name))
        scorers[name], seconds[name] = with_cpu_seconds(fit_it)
    trusted_set, untrusted_set = (Subset(train, part.tolist()) for part in (trusted, untrusted))
    return Seed(trusted_set, untrusted_set, test, Surrogate(network, "backbone"), scorers, seconds)


def _fit_scorer(build: Any, known: Subset[Any], generator: torch.Generator) -> Any:
    return build().fit(known, runtime=RUNTIME, generator=generator)


def measure(prepared: Seed, attack_name: str, seed: int) -> Figures:
    attack, threat = ATTACKS[attack_name]
    poison = craft(
        attack,
        prepared.untrusted,
        threat,
        surrogates=[prepared.surrogate],
        holdout=prepared.test,
        generator=derived_generator(seed, "craft"),
    )
    data = PoisonedDataset(prepared.untrusted, poison)
    everything: ConcatDataset[Any] = ConcatDataset([data, prepared.trusted])
    generator = derived_generator(seed, "features")
    model, fit_seconds = with_cpu_seconds(lambda: FeatureModel().fit(everything, runtime=RUNTIME, generator=generator))
    seconds = {"features, fit": fit_seconds}
    scorers = dict(prepared.scorers) | {name: build(model) for name, build in SET_WISE.items()}
    for name, (members, combine) in COMBINATIONS.items():
        scorers[name] = CombinedScorer([copy.copy(scorers[member]) for member in members], combine=combine)
    figures: Figures = {}
    for name, scorer in scorers.items():
        sanitize_it = functools.partial(detection, data, scorer, prepared.trusted, seed)
        figures[name], seconds[name] = with_cpu_seconds(sanitize_it)
    images = torch.stack([data[index][0] for index in range(len(data))])
    figures["dark pixels"] = {"AUROC": roc_auc_score(data.is_poison, dark_pixel_scores(images)[:, 0])}
    return {**figures, "seconds": seconds, "fit seconds": prepared.seconds}


def detection(data: PoisonedDataset, scorer: Any, trusted: Any, seed: int) -> Figures:
    verdict = sanitize(data, scorer, trusted=trusted, max_removed=1, seed=seed, runtime=RUNTIME)
    figures: Figures = {"AUROC": roc_auc_score(data.is_poison, -verdict.p_values.log())}
    for name, rate in RATES.items():
        caught = verdict.p_values <= rate
        figures[f"TPR, {name}"] = share(caught[data.is_poison])
        figures[f"FPR, {name}"] = share(caught[~data.is_poison])
    if verdict.votes:
        figures["removed by"] = verdict.removed_by_scorer
    return figures


def report(found: dict[str, list[Figures]]) -> None:
    names = [*SAMPLE_WISE, *SET_WISE, *COMBINATIONS]
    for figure, form in (("AUROC", ".3f"), ("TPR, 5 %", ".2f"), ("TPR, 1 %", ".2f")):
        print(f"\n## {figure}")
        rows = [[name, *(spread_of(runs, name, figure, form=form) for runs in found.values())] for name in names]
        if figure == "AUROC":
            dark_pixels = (spread_of(runs, "dark pixels", figure, form=form) for runs in found.values())
            rows.append(["dark pixels", *dark_pixels])
        print_table(["filter", *found], rows)
    print("\n## Realized ÷ stated false-positive rate, all attacks")
    everything = [run for runs in found.values() for run in runs]
    ratios = {
        (name, label): [run[name][f"FPR, {label}"] / rate for run in everything]
        for name in names
        for label, rate in RATES.items()
    }
    print_table(
        ["filter", *RATES, "CPU s to fit", "CPU s to score"],
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
                f"{name}: realized ÷ stated FPR at {label}, 0.5 to 1.5", [0.5 <= r <= 1.5 for r in ratios[name, label]]
            )
    for name, (members, _) in COMBINATIONS.items():
        for attack, runs in found.items():
            best = [max(run[member]["TPR, 5 %"] for member in members) for run in runs]
            met = [run[name]["TPR, 5 %"] >= most - 0.05 for run, most in zip(runs, best, strict=True)]
            print_goal(f"{name}, {attack}: TPR at 5 % at least that of the best member minus .05", met)
    for attack in PERTURBATIONS:
        counted = max(_median(found[attack], each, "AUROC") for each in ("pixel counting", "dark pixels"))
        others = max(_median(found[attack], name, "AUROC") for name in names if name != "pixel counting")
        print(f"- {attack}: pixel counting {counted:.3f}, best filter {others:.3f}{_trivial(counted, others)}")


def _trivial(counted: float, others: float) -> str:
    return ": trivial" if counted >= others - 0.005 else ""


def _median(runs: list[Figures], name: str, figure: str) -> float:
    return float(torch.tensor(values_of(runs, name, figure)).median())


def _seconds(runs: list[Figures], kind: str, name: str) -> str:
    known = [run[kind][name] for run in runs if name in run[kind]]
    return spread(known, ".1f") if known else "-"


def main() -> None:
    args = benchmark_parser(__doc__).parse_args()
    start(args)
    warnings.filterwarnings("ignore", message="The false-positive rate is calibrated on")
    results = Results(args.results)
    prepared = functools.lru_cache(maxsize=1)(functools.partial(prepare, args))
    found: dict[str, list[Figures]] = {attack: [] for attack in ATTACKS}

    def run(attack: str, seed: int) -> Figures:
        return measure(prepared(seed), attack, seed)

    for seed in range(args.seeds):
        for attack, runs in found.items():
            runs.append(results.get({"attack": attack, "seed": seed}, functools.partial(run, attack, seed)))
    report(found)


if __name__ == "__main__":
    main()
