"""What an attacker who knows a filter and its threshold gets past it, and what that can still do. MNIST.

    python benchmarks/adaptive_attackers.py --data-root data --results adaptive.jsonl

For each seed 20,000 training images are what filters and victims are fitted on, 5,000 others calibrate each filter at a
stated false-positive rate of 5 %, and bases come from 10,000 more; targets are test images. `AdaptiveFrogs` crafts one
poison a target, unbounded, in three ways: not knowing the filter (`FrogAttack`), with a hinge on its threshold, and
with a soft penalty, at the strongest of the prices that are tried. The attacker collides in the features of a victim
whose network it has: the filter's own where it has one of a classifier, or another, trained under cross-entropy.

- *evades*: the share of poison that the filter lets pass, at its own precision, not the attacker's;
- *collides*: in the victim's features the nearest class mean is that of its target's class;
- *flips*: a logistic regression on the victim's features of 200 clean images, 20 a class, and the poison, counted 20
  times, reads the target as the poison's class, where it read it rightly without the poison;
- *harms*: evades, and collides or flips.

The harm of a filter is that of its worst attacker. `share of the way` is how far the poison's features came from the
base's to the target's, `change` how long the difference of the images is, medians both. Nothing was chosen on these
images but the price, in the attacker's favor.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from common import Figures, Results, arguments, load_mnist, print_goal, print_setting, print_table, spread
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from lightning_poison import LikelihoodScorer, PixelRange, SampleSpec, Surrogate, Threat, craft
from lightning_poison.data import score_set
from lightning_poison.models import FitSettings, default_backbone
from lightning_poison.randomness import derived_generator
from lightning_poison.runtime import LocalRuntime
from lightning_poison.scorers import CharacteristicVectorScorer, ConfidenceScorer, FeatureModel, MahalanobisScorer
from lightning_poison.scorers.classifier import fit_classifier
from lightning_poison.scorers.discriminator import DiscriminatorScorer
from lightning_poison_collisions import AdaptiveFrogs, FrogAttack, KnownScorer

FIT, CALIBRATION, BASES = 20_000, 5_000, 10_000
POISONS, RATE, HARM = 60, 0.05, 0.05
CLEAN_A_CLASS, TIMES = 20, 20
NAIVE = "does not know it"
PRICES = {"hinge": (5.0, 50.0), "soft": (1.0, 3.0)}
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
    """The data, filters and victims of one seed, each made when it is first asked for."""

    def __init__(self, args: Any, seed: int) -> None:
        self.seed = seed
        images, labels = load_mnist(args.data_root, train=True)
        order = torch.randperm(len(labels), generator=derived_generator(seed, "parts"))
        parts = order.split([FIT, CALIBRATION, BASES, len(order) - FIT - CALIBRATION - BASES])
        self.fit, self.calibration, self.bases, _ = (TensorDataset(images[part], labels[part]) for part in parts)
        self.test = TensorDataset(*load_mnist(args.data_root, train=False))
        self._made: dict[str, Any] = {}

    def defenses(self, name: str) -> list[KnownScorer]:
        names = ("likelihood", "discriminator") if name == JOINT else (name,)
        return [self._once(f"known {each}", lambda each=each: self._known(each)) for each in names]

    def victim(self, name: str, whose: str) -> nn.Module:
        """Return a network whose outputs are features: the filter's, or another one."""
        if whose == OTHER:
            return self.classifier("another").backbone
        if name in ("likelihood", "likelihood, posterior", JOINT):
            scorer = self.defenses("likelihood" if name == JOINT else name)[0].scorer
            backbone = default_backbone((1, 28, 28), 32)
            prefix = "model.backbone."
            weights = {
                key.removeprefix(prefix): value for key, value in scorer.state().items() if key.startswith(prefix)
            }
            backbone.load_state_dict(weights)
            return backbone.eval()
        return self.classifier("one").backbone

    def classifier(self, which: str) -> Any:
        def train() -> Any:
            return fit_classifier(
                self.fit,
                backbone=None,
                feature_size=64,
                settings=FitSettings(),
                runtime=RUNTIME,
                generator=derived_generator(self.seed, f"classifier {which}"),
            )

        return self._once(f"classifier {which}", train)

    def _known(self, name: str) -> KnownScorer:
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

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]


def measure(bench: Bench, name: str, whose: str, attacker: str, price: float | None) -> Figures:
    defenses, victim = bench.defenses(name), bench.victim(name, whose)
    attack: Any = FrogAttack()
    if price is not None:
        attack = AdaptiveFrogs(defenses=defenses, penalty=attacker, weight=price)
    poison = craft(
        attack,
        bench.bases,
        Threat(POISONS, clean_label=True, pixels=PIXELS),
        surrogates=[Surrogate(victim, "")],
        holdout=bench.test,
        generator=derived_generator(bench.seed, "craft"),
    )
    samples = TensorDataset(poison.inputs, poison.labels)
    passes = torch.stack([evaded(defense, samples) for defense in defenses]).all(0)
    collides, flips, way = harm(bench, victim, poison)
    bases = torch.stack([bench.bases[int(index)][0] for index in poison.base_indices])
    return {
        "evades": share(passes),
        "collides": share(collides),
        "flips": share(flips),
        "evades and collides": share(passes & collides),
        "evades and flips": share(passes & flips),
        "harms": share(passes & (collides | flips)),
        "way": float(way.median()),
        "change": float((poison.inputs - bases).flatten(1).norm(dim=1).median()),
    }


def evaded(defense: KnownScorer, samples: TensorDataset) -> Tensor:
    """Ask the filter itself, as `sanitize` does."""
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
def harm(bench: Bench, victim: nn.Module, poison: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each poison whether it collides, whether it flips its target, and how far it came."""
    images, labels = bench.fit.tensors
    known = torch.cat([victim(part) for part in images.split(500)])
    means = torch.stack([known[labels == digit].mean(0) for digit in range(10)])
    goal = poison.objective
    crafted, targets = victim(poison.inputs), victim(goal.inputs)
    bases = victim(torch.stack([bench.bases[int(index)][0] for index in poison.base_indices]))
    collides = torch.cdist(crafted, means).argmin(1) == goal.labels
    way = 1 - (crafted - targets).norm(dim=1) / (bases - targets).norm(dim=1)
    few = torch.cat([(labels == digit).nonzero().flatten()[:CLEAN_A_CLASS] for digit in range(10)])
    scale = float(known.norm(dim=1).mean())
    clean, marks = (known[few] / scale).numpy(), labels[few].numpy()
    alone = LogisticRegression(C=10, max_iter=2000).fit(clean, marks).predict((targets / scale).numpy())
    flips = []
    for number, label in enumerate(poison.labels.tolist()):
        features = np.concatenate([clean, np.repeat((crafted[number : number + 1] / scale).numpy(), TIMES, 0)])
        head = LogisticRegression(C=10, max_iter=2000).fit(features, np.append(marks, [label] * TIMES))
        read = int(head.predict((targets[number : number + 1] / scale).numpy())[0])
        flips.append(read == label and int(alone[number]) == int(goal.labels[number]))
    return collides, torch.tensor(flips), way


def share(mask: Tensor) -> float:
    return float(mask.double().mean())


def worst(runs: list[Figures]) -> Figures:
    """Return the figures of the price that harms most, then evades most."""
    return max(runs, key=lambda run: (run["harms"], run["evades"]))


def report(found: dict[tuple[str, str], dict[str, list[Figures]]]) -> None:
    columns = ["evades", "collides", "flips", "evades and collides", "evades and flips", "harms"]
    rows = []
    for (name, whose), of_attackers in found.items():
        for attacker, runs in of_attackers.items():
            cells = [spread([run[column] for run in runs], ".2f") for column in (*columns, "way", "change")]
            rows.append([name, whose, attacker, *cells])
    print_table(["filter", "victim", "attacker", *columns, "share of the way", "change, L2"], rows)
    for (name, whose), of_attackers in found.items():
        adaptive = [runs for attacker, runs in of_attackers.items() if attacker != NAIVE]
        most = [max(run["harms"] for run in runs) for runs in zip(*adaptive, strict=True)]
        print_goal(f"{name}, victim {whose}: harm at most {HARM:g} ({spread(most, '.2f')})", [h <= HARM for h in most])


def main() -> None:
    args = arguments(__doc__).parse_args()
    torch.set_num_threads(1)
    print_setting("adaptive_attackers", args)
    results = Results(args.results)
    benches: dict[int, Bench] = {}

    def figures(seed: int, name: str, whose: str, attacker: str, price: float | None) -> Figures:
        def run() -> Figures:
            if seed not in benches:
                benches.clear()
                benches[seed] = Bench(args, seed)
            return measure(benches[seed], name, whose, attacker, price)

        key = {"filter": name, "victim": whose, "attacker": attacker, "price": price, "seed": seed}
        return results.get(key, run)

    found: dict[tuple[str, str], dict[str, list[Figures]]] = {}
    for seed in range(args.seeds):
        for case in CASES:
            runs = found.setdefault(case, {})
            runs.setdefault(NAIVE, []).append(figures(seed, *case, NAIVE, None))
            for attacker, prices in PRICES.items():
                each = [figures(seed, *case, attacker, price) for price in prices]
                runs.setdefault(attacker, []).append(worst(each))
    report(found)


if __name__ == "__main__":
    main()
