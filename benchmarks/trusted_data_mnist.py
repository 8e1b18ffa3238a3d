"""`sanitize` with trusted data, as users call it: fitted on 70 % of them, calibrated on the rest. MNIST.

    python benchmarks/trusted_data_mnist.py --data-root data --results trusted.jsonl

`sanitize(data, LikelihoodScorer(), trusted=...)` with its defaults, with 500 or 1,667 trusted training images per class
(so that 150 or 500 of each class are used for calibration), compared with its cross-entropy twin. One data set contains

- the 10,000 test images and 10,000 more training images, both clean;
- 100 poison frogs (β = 8e-3) and 100 within an L∞ ball of 0.2, as in `likelihood_mnist.py`, crafted on the attacker's
  own network: an LGM classifier trained on 20,000 other images;
- 1,000 test images with flipped labels.

With trusted data each sample is scored independently, so the other samples do not matter. The rows of the frogs measure
transfer: whether they collide in the scorer's own features is not measured. Nothing was chosen on these images.
"""

import functools
from typing import Any

import torch
from harness.datasets import first_of_each_class, inputs_of, load_mnist
from harness.frog_poison import RATES, TRAINING, craft_frogs, fit_twin
from harness.lgm_twins import LGMClassifier
from harness.runs import (
    Figures,
    Results,
    benchmark_parser,
    print_goal,
    print_table,
    share,
    silence_lightning,
    spread,
    spread_of,
    start,
    with_cpu_seconds,
)
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.utils.data import TensorDataset

from lightning_poison import LikelihoodScorer, Threat, craft, sanitize
from lightning_poison.scorers import ConfidenceScorer
from lightning_poison_labels import LabelFlip

TRUSTED_PER_CLASS, FLIPS, MORE = (500, 1667), 1000, 10_000
SCORERS: dict[str, Any] = {"LGM, likelihood": LikelihoodScorer, "cross-entropy, posterior": ConfidenceScorer}
POISON = {"frogs": "frogs, β 8e-3", "linf": "frogs, L∞ 0.2", "flips": "flipped labels"}


def prepare(args: Any, seed: int) -> dict[str, TensorDataset]:
    """Return the parts of the data set, and the training images left for the defender as `rest`."""
    images, labels = load_mnist(args.data_root, train=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    test = TensorDataset(*load_mnist(args.data_root, train=False))
    known = TensorDataset(images[order[:TRAINING]], labels[order[:TRAINING]])
    attacker = fit_twin(LGMClassifier, known, seed)
    parts = {"test": test}
    for name in ("frogs", "linf"):
        poison = craft_frogs(attacker, test, bounded=name == "linf", seed=seed)
        parts[name] = TensorDataset(inputs_of(poison), poison.labels)
    flips = craft(LabelFlip(), test, Threat(FLIPS), generator=torch.Generator().manual_seed(seed))
    parts["flips"] = TensorDataset(test.tensors[0][flips.indices], flips.labels)
    parts["more"] = TensorDataset(images[order[-MORE:]], labels[order[-MORE:]])
    rest = order[TRAINING:-MORE]
    return {**parts, "rest": TensorDataset(images[rest], labels[rest])}


def measure(data: dict[str, TensorDataset], scorer: str, count: int, seed: int) -> Figures:
    untrusted = {name: part for name, part in data.items() if name != "rest"}
    images, labels = (torch.cat(each) for each in zip(*(part.tensors for part in untrusted.values()), strict=True))
    rest_images, rest_labels = data["rest"].tensors
    chosen = first_of_each_class(rest_labels, count)
    trusted = TensorDataset(rest_images[chosen], rest_labels[chosen])
    verdict, seconds = with_cpu_seconds(
        lambda: sanitize(TensorDataset(images, labels), SCORERS[scorer](), trusted=trusted, seed=seed)
    )
    lengths = [len(part) for part in untrusted.values()]
    p_values = dict(zip(untrusted, torch.split(verdict.p_values, lengths), strict=True))
    scores = dict(zip(untrusted, torch.split(verdict.scores, lengths), strict=True))
    caught = {
        f"{name}, {label}": share(values <= rate) for name, values in p_values.items() for label, rate in RATES.items()
    }
    aurocs = {f"{name}, AUROC": _auroc(scores[name], scores["test"]) for name in POISON}
    return {**caught, **aurocs, "sanitize, CPU s": seconds}


def _auroc(poison: Tensor, clean: Tensor) -> float:
    truth = torch.cat([torch.ones(len(poison)), torch.zeros(len(clean))])
    return float(roc_auc_score(truth, torch.cat([poison, clean])))


def report(found: dict[tuple[str, int], list[Figures]]) -> None:
    columns = ["scored by", "trusted per class"]
    print_table(
        [*columns, "realized ÷ stated FPR: 1 %, test", "5 %, test", "1 %, more training images", "5 %", "CPU s"],
        [
            [
                scorer,
                f"{count:,}",
                *(
                    spread([run[f"{part}, {label}"] / rate for run in runs], ".2f")
                    for part in ("test", "more")
                    for label, rate in RATES.items()
                ),
                spread_of(runs, "sanitize, CPU s", form=".0f"),
            ]
            for (scorer, count), runs in found.items()
        ],
    )
    print_table(
        ["poison", *columns, "AUROC", "TPR at 1 %", "TPR at 5 %"],
        [
            [
                name,
                scorer,
                f"{count:,}",
                spread_of(runs, f"{poison}, AUROC"),
                *(spread_of(runs, f"{poison}, {label}", form=".3f") for label in RATES),
            ]
            for poison, name in POISON.items()
            for (scorer, count), runs in found.items()
        ],
    )
    for (scorer, count), runs in found.items():
        for part, where in (("test", "test"), ("more", "more training")):
            for label, rate in RATES.items():
                setting = f"{scorer}, {count:,} trusted per class"
                goal = f"{setting}: realized ÷ stated FPR at {label}, {where} images, 0.5 to 1.5"
                print_goal(goal, [0.5 <= run[f"{part}, {label}"] / rate <= 1.5 for run in runs])


def main() -> None:
    args = benchmark_parser(__doc__).parse_args()
    silence_lightning()
    start(args)
    results = Results(args.results)
    prepared = functools.lru_cache(maxsize=1)(functools.partial(prepare, args))
    found: dict[tuple[str, int], list[Figures]] = {
        (scorer, count): [] for count in TRUSTED_PER_CLASS for scorer in SCORERS
    }

    def run(scorer: str, count: int, seed: int) -> Figures:
        return measure(prepared(seed), scorer, count, seed)

    for seed in range(args.seeds):
        for (scorer, count), runs in found.items():
            key = {"scorer": scorer, "trusted": count, "seed": seed}
            runs.append(results.get(key, functools.partial(run, scorer, count, seed)))
    report(found)


if __name__ == "__main__":
    main()
