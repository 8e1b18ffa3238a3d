"""Adaptive attackers, who know a filter and its threshold: how much poison evades it and still does harm. MNIST.

    python benchmarks/adaptive_attackers.py --data-root data --results adaptive.jsonl

For each seed, filters and victims are fitted on 20,000 training images, 5,000 others calibrate each filter at a stated
false-positive rate of 5 %, base images come from 10,000 more, and targets are test images. `AdaptiveFrogs` crafts one
unbounded poison per target, in three ways: without knowledge of the filter (`FrogAttack`), with a hinge penalty on its
threshold, and with a soft penalty; of the penalty weights tried, the most harmful counts. The attacker has the victim's
network and collides in its features. The victim's network is the filter's own, if the filter contains a classifier, or
another one, trained with cross-entropy.

- *evades*: the share of poison that the filter keeps, at the filter's own precision;
- *collides*: in the victim's features, the nearest class mean is that of the target's class;
- *flips*: a logistic regression predicts the poison's class for a target that it classifies correctly without the
  poison. It is fitted on the victim's features of 200 clean images, 20 per class, and of the poison, counted 20 times;
- *harms*: evades, and collides or flips.

The harm reported for a filter is that of its worst attacker. `share of the way` is how far the poison's features moved
from the base's to the target's; `change` is the L2 norm of the difference of the images; both are medians. Only the
penalty weight was chosen on these images, in the attacker's favor.
"""

import functools
from typing import Any, Literal

import numpy as np
import torch
from harness.datasets import bases_of, first_of_each_class, inputs_of, load_mnist, targets_of
from harness.networks import outputs_of
from harness.runs import Figures, Results, benchmark_parser, print_goal, print_table, share, spread, spread_of, start
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from lightning_poison import LikelihoodScorer, PixelRange, Poison, SampleSpec, Surrogate, Threat, craft
from lightning_poison.data import score_set
from lightning_poison.models import FitSettings, default_backbone
from lightning_poison.randomness import derived_generator
from lightning_poison.runtime import LocalRuntime
from lightning_poison.scorers import CharacteristicVectorScorer, ConfidenceScorer, FeatureModel, MahalanobisScorer
from lightning_poison.scorers.discriminator import DiscriminatorScorer
from lightning_poison.scorers.networks import fit_classifier
from lightning_poison_collisions import AdaptiveFrogs, FrogAttack, KnownScorer

FIT, CALIBRATION, BASES = 20_000, 5_000, 10_000
POISONS, RATE, MAX_HARM = 60, 0.05, 0.05
CLEAN_PER_CLASS, POISON_COPIES = 20, 20
Attacker = Literal["unaware of the filter", "hinge", "soft"]
NAIVE: Attacker = "unaware of the filter"
WEIGHTS: dict[Attacker, tuple[float, ...]] = {"hinge": (5.0, 50.0), "soft": (1.0, 3.0)}
RUNTIME = LocalRuntime(threads=1)
PIXELS = PixelRange()
OWN, OTHER = "its own", "another"
JOINT = "likelihood + discriminator"
CASES = [
    *((name, victim) for name in ("likelihood", "likelihood, posterior") for victim in (OWN, OTHER)),
    *((name, OWN) for name in ("confidence", "Mahalanobis", "characteristic vectors")),
    *((name, OTHER) for name in ("discriminator", "discriminator, texture")),
    *((JOINT, victim) for victim in (OWN, OTHER)),
]


class Bench:
    """The data, filters and victims of one seed, created on first use."""

    def __init__(self, args: Any, seed: int) -> None:
        self.seed = seed
        images, labels = load_mnist(args.data_root, train=True)
        order = torch.randperm(len(labels), generator=derived_generator(seed, "parts"))
        parts = torch.split(order, [FIT, CALIBRATION, BASES, len(order) - FIT - CALIBRATION - BASES])
        self.fit, self.calibration, self.bases, _ = (TensorDataset(images[part], labels[part]) for part in parts)
        self.test = TensorDataset(*load_mnist(args.data_root, train=False))
        self.known_scorer = functools.cache(self._known_scorer)
        self.classifier = functools.cache(self._classifier)

    def defenses(self, name: str) -> list[KnownScorer]:
        names = ("likelihood", "discriminator") if name == JOINT else (name,)
        return [self.known_scorer(each) for each in names]

    def victim(self, name: str, whose: str) -> nn.Module:
        """Return a network whose outputs are features: the filter's, or another one."""
        if whose == OTHER:
            backbone: nn.Module = self.classifier("another").backbone
            return backbone
        if name in ("likelihood", "likelihood, posterior", JOINT):
            scorer = self.defenses("likelihood" if name == JOINT else name)[0].scorer
            backbone = default_backbone((1, 28, 28), 32)
            prefix = "model.backbone."
            weights = {
                key.removeprefix(prefix): value for key, value in scorer.state().items() if key.startswith(prefix)
            }
            backbone.load_state_dict(weights)
            return backbone.eval()
        own: nn.Module = self.classifier("one").backbone
        return own

    def _classifier(self, which: str) -> Any:
        return fit_classifier(
            self.fit,
            backbone=None,
            feature_size=64,
            settings=FitSettings(),
            runtime=RUNTIME,
            generator=derived_generator(self.seed, f"classifier {which}"),
        )

    def _known_scorer(self, name: str) -> KnownScorer:
        scorer: Any
        match name:
            case "likelihood":
                scorer = LikelihoodScorer()
            case "likelihood, posterior":
                scorer = LikelihoodScorer("posterior")
            case "confidence":
                scorer = ConfidenceScorer.from_module(self.classifier("one"))
            case "Mahalanobis":
                scorer = MahalanobisScorer(FeatureModel(self.classifier("one"), "backbone"))
            case "characteristic vectors":
                scorer = CharacteristicVectorScorer(FeatureModel(self.classifier("one")))
            case _:
                scorer = DiscriminatorScorer(head="texture" if name.endswith("texture") else "label")
        if not scorer.is_fitted:
            scorer.fit(self.fit, runtime=RUNTIME, generator=derived_generator(self.seed, name))
        return KnownScorer.of(scorer, self.calibration, false_positive_rate=RATE, runtime=RUNTIME)


def measure(bench: Bench, name: str, whose: str, attacker: Attacker, weight: float | None) -> Figures:
    defenses, victim = bench.defenses(name), bench.victim(name, whose)
    attack: Any = FrogAttack()
    if weight is not None and attacker != "unaware of the filter":
        attack = AdaptiveFrogs(defenses=defenses, penalty=attacker, weight=weight)
    poison = craft(
        attack,
        bench.bases,
        Threat(POISONS, clean_label=True, pixels=PIXELS),
        surrogates=[Surrogate(victim, "")],
        holdout=bench.test,
        generator=derived_generator(bench.seed, "craft"),
    )
    samples = TensorDataset(inputs_of(poison), poison.labels)
    evades = torch.stack([is_kept(defense, samples) for defense in defenses]).all(0)
    collides, flips, way = harm(bench, victim, poison)
    bases = bases_of(poison, bench.bases.tensors[0])
    return {
        "evades": share(evades),
        "collides": share(collides),
        "flips": share(flips),
        "evades and collides": share(evades & collides),
        "evades and flips": share(evades & flips),
        "harms": share(evades & (collides | flips)),
        "way": float(way.median()),
        "change": float((inputs_of(poison) - bases).flatten(1).norm(dim=1).median()),
    }


def is_kept(defense: KnownScorer, samples: TensorDataset) -> Tensor:
    """Return which samples the filter keeps, scored as `sanitize` does."""
    scores = score_set(
        samples,
        torch.arange(len(samples)),
        lambda block: defense.scorer.score_batch(block.inputs, block.labels),
        sample=SampleSpec(),
        runtime=RUNTIME,
        seed=0,
    )
    return scores <= defense.thresholds[samples.tensors[1]].double()


@torch.no_grad()
def harm(bench: Bench, victim: nn.Module, poison: Poison) -> tuple[Tensor, Tensor, Tensor]:
    """Return, for each poison, whether it collides, whether it flips its target, and its share of the way."""
    images, labels = bench.fit.tensors
    known = outputs_of(victim, images)
    means = torch.stack([known[labels == digit].mean(0) for digit in range(10)])
    objective = targets_of(poison)
    crafted, targets = victim(inputs_of(poison)), victim(objective.inputs)
    bases = victim(bases_of(poison, bench.bases.tensors[0]))
    collides = torch.cdist(crafted, means).argmin(1) == objective.labels
    way = 1 - (crafted - targets).norm(dim=1) / (bases - targets).norm(dim=1)
    few = first_of_each_class(labels, CLEAN_PER_CLASS)
    scale = float(known.norm(dim=1).mean())
    clean, clean_labels = (known[few] / scale).numpy(), labels[few].numpy()
    alone = LogisticRegression(C=10, max_iter=2000).fit(clean, clean_labels).predict((targets / scale).numpy())
    flips = []
    for number, label in enumerate(poison.labels.tolist()):
        one = slice(number, number + 1)
        features = np.concatenate([clean, np.repeat((crafted[one] / scale).numpy(), POISON_COPIES, 0)])
        head = LogisticRegression(C=10, max_iter=2000).fit(features, np.append(clean_labels, [label] * POISON_COPIES))
        predicted = int(head.predict((targets[one] / scale).numpy())[0])
        flips.append(predicted == label and int(alone[number]) == int(objective.labels[number]))
    return collides, torch.tensor(flips), way


def worst(runs: list[Figures]) -> Figures:
    """Return the run of the penalty weight that harms most, then evades most."""
    return max(runs, key=lambda run: (run["harms"], run["evades"]))


def report(found: dict[tuple[str, str], dict[str, list[Figures]]]) -> None:
    columns = ["evades", "collides", "flips", "evades and collides", "evades and flips", "harms"]
    rows = []
    for (name, whose), of_attackers in found.items():
        for attacker, runs in of_attackers.items():
            cells = [spread_of(runs, column, form=".2f") for column in (*columns, "way", "change")]
            rows.append([name, whose, attacker, *cells])
    print_table(["filter", "victim", "attacker", *columns, "share of the way", "change, L2"], rows)
    for (name, whose), of_attackers in found.items():
        adaptive = [runs for attacker, runs in of_attackers.items() if attacker != NAIVE]
        most = [max(run["harms"] for run in runs) for runs in zip(*adaptive, strict=True)]
        goal = f"{name}, victim {whose}: harm at most {MAX_HARM:g} ({spread(most, '.2f')})"
        print_goal(goal, [harm <= MAX_HARM for harm in most])


def main() -> None:
    args = benchmark_parser(__doc__).parse_args()
    start(args)
    results = Results(args.results)
    bench_of = functools.lru_cache(maxsize=1)(functools.partial(Bench, args))

    def figures(seed: int, name: str, whose: str, attacker: Attacker, weight: float | None) -> Figures:
        key = {"filter": name, "victim": whose, "attacker": attacker, "price": weight, "seed": seed}
        return results.get(key, lambda: measure(bench_of(seed), name, whose, attacker, weight))

    found: dict[tuple[str, str], dict[str, list[Figures]]] = {}
    for seed in range(args.seeds):
        for case in CASES:
            runs = found.setdefault(case, {})
            runs.setdefault(NAIVE, []).append(figures(seed, *case, NAIVE, None))
            for attacker, weights in WEIGHTS.items():
                each = [figures(seed, *case, attacker, weight) for weight in weights]
                runs.setdefault(attacker, []).append(worst(each))
    report(found)


if __name__ == "__main__":
    main()
