"""The shipped way with trusted data: an unfitted scorer, fitted on 70 % of them and calibrated on the rest, on MNIST.

    python benchmarks/trusted_mnist.py --data-root data --results trusted.jsonl

`sanitize(data, LikelihoodScorer(), trusted=...)` with its defaults, 500 or 1,667 trusted training images a class (so
that 150 or 500 of each class calibrate); its cross-entropy twin beside it. Judged are, in one data set,

- the 10,000 test images and 10,000 more training images, both clean;
- 100 poison frogs (β = 8e-3) and 100 within an L∞ ball of 0.2, as in `likelihood_mnist.py`, crafted by an attacker on
  a network of its own: an LGM classifier that was trained on 20,000 other images;
- 1,000 test images with flipped labels.

With trusted data each sample is judged for itself, so what else lies in the data set changes nothing. The frogs' rows
are a transfer: whether they collide in the scorer's own features is not asked. Nothing was chosen on these images.
"""

import logging
import time
import warnings
from typing import Any

import torch
from common import Figures, Results, arguments, load_mnist, print_goal, print_setting, print_table, spread
from likelihood_mnist import RATES, TRAINING, attacked, trained
from networks import LGMClassifier
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.utils.data import TensorDataset

from lightning_poison import LikelihoodScorer, Threat, craft, sanitize
from lightning_poison.scorers import ConfidenceScorer
from lightning_poison_labels.label_flip import LabelFlip

TRUSTED_A_CLASS, FLIPS, MORE = (500, 1667), 1000, 10_000
JUDGES = {"LGM, likelihood": LikelihoodScorer, "cross-entropy, posterior": ConfidenceScorer}
POISON = {"frogs": "frogs, β 8e-3", "linf": "frogs, L∞ 0.2", "flips": "flipped labels"}


def parts(args: Any, seed: int) -> dict[str, TensorDataset]:
    """Return what is judged, part by part, and the training images that nobody has seen: `rest`."""
    images, labels = load_mnist(args.data_root, train=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    test = TensorDataset(*load_mnist(args.data_root, train=False))
    known = TensorDataset(images[order[:TRAINING]], labels[order[:TRAINING]])
    attacker = trained(LGMClassifier, known, seed)
    found = {"test": test}
    for name in ("frogs", "linf"):
        poison = attacked(name, attacker, test, seed)
        found[name] = TensorDataset(poison.inputs, poison.labels)
    flips = craft(LabelFlip(), test, Threat(FLIPS), generator=torch.Generator().manual_seed(seed))
    found["flips"] = TensorDataset(test.tensors[0][flips.indices], flips.labels)
    found["more"] = TensorDataset(images[order[-MORE:]], labels[order[-MORE:]])
    rest = order[TRAINING:-MORE]
    return {**found, "rest": TensorDataset(images[rest], labels[rest])}


def first_of_each(data: TensorDataset, count: int) -> TensorDataset:
    """Return the first samples of each class."""
    images, labels = data.tensors
    chosen = torch.cat([(labels == number).nonzero().flatten()[:count] for number in range(10)])
    return TensorDataset(images[chosen], labels[chosen])


def measure(data: dict[str, TensorDataset], judge: str, count: int, seed: int) -> Figures:
    judged = {name: part for name, part in data.items() if name != "rest"}
    images, labels = (torch.cat(each) for each in zip(*(part.tensors for part in judged.values()), strict=True))
    trusted = first_of_each(data["rest"], count)
    start = time.process_time()
    verdict = sanitize(TensorDataset(images, labels), JUDGES[judge](), trusted=trusted, seed=seed)
    seconds = time.process_time() - start
    lengths = [len(part) for part in judged.values()]
    p_values = dict(zip(judged, verdict.p_values.split(lengths), strict=True))
    scores = dict(zip(judged, verdict.scores.split(lengths), strict=True))
    caught = {
        f"{name}, {label}": float((values <= rate).double().mean())
        for name, values in p_values.items()
        for label, rate in RATES.items()
    }
    aurocs = {f"{name}, AUROC": _auroc(scores[name], scores["test"]) for name in POISON}
    return {**caught, **aurocs, "sanitize, CPU s": seconds}


def _auroc(poison: Tensor, clean: Tensor) -> float:
    truth = torch.cat([torch.ones(len(poison)), torch.zeros(len(clean))])
    return float(roc_auc_score(truth, torch.cat([poison, clean])))


def report(found: dict[tuple[str, int], list[Figures]]) -> None:
    def column(runs: list[Figures], name: str, form: str) -> str:
        return spread([run[name] for run in runs], form)

    columns = ["judged by", "trusted a class"]
    print_table(
        [*columns, "realised ÷ stated FPR: 1 %, test", "5 %, test", "1 %, more training images", "5 %", "CPU s"],
        [
            [
                judge,
                f"{count:,}",
                *(
                    spread([run[f"{part}, {label}"] / rate for run in runs], ".2f")
                    for part in ("test", "more")
                    for label, rate in RATES.items()
                ),
                column(runs, "sanitize, CPU s", ".0f"),
            ]
            for (judge, count), runs in found.items()
        ],
    )
    print_table(
        ["poison", *columns, "AUROC", "TPR at 1 %", "TPR at 5 %"],
        [
            [
                name,
                judge,
                f"{count:,}",
                column(runs, f"{poison}, AUROC", ".4f"),
                *(column(runs, f"{poison}, {label}", ".3f") for label in RATES),
            ]
            for poison, name in POISON.items()
            for (judge, count), runs in found.items()
        ],
    )
    for (judge, count), runs in found.items():
        for part in ("test", "more"):
            for label, rate in RATES.items():
                where = "test" if part == "test" else "more training"
                name = (
                    f"{judge}, {count:,} trusted a class: realised ÷ stated FPR at {label}, {where} images, 0.5 to 1.5"
                )
                print_goal(name, [0.5 <= run[f"{part}, {label}"] / rate <= 1.5 for run in runs])


def main() -> None:
    args = arguments(__doc__).parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    print_setting("trusted_mnist", args)
    results = Results(args.results)
    found: dict[tuple[str, int], list[Figures]] = {(judge, count): [] for count in TRUSTED_A_CLASS for judge in JUDGES}
    for seed in range(args.seeds):
        data: dict[str, TensorDataset] = {}
        for (judge, count), runs in found.items():

            def run(judge: str = judge, count: int = count, seed: int = seed, data: Any = data) -> Figures:
                if not data:
                    data.update(parts(args, seed))
                return measure(data, judge, count, seed)

            runs.append(results.get({"judge": judge, "trusted": count, "seed": seed}, run))
    report(found)


if __name__ == "__main__":
    main()
