"""Wrong labels without trusted data: estimated share, detection and false positives. MNIST, 10,000 images per run.

    python benchmarks/contamination_mnist.py --data-root data --results contamination.jsonl

Each of six disjoint subsets of the training images is scored unchanged. The first ones, one per seed, are scored again
with flipped labels: 0.5, 2, 10 and 30 % of all labels, flipped to any other class, and 20 % of the 4s labeled 9.
`sanitize` and `LikelihoodScorer` run with their defaults; nothing was chosen on these images. The cross-entropy twin
for comparison is `ConfidenceScorer`: −log p(y|x) of the same backbone with a linear head, trained alike and passed to
the same `sanitize`. The realized false-positive rate is the share of correctly labeled images that is removed, the
true-positive rate the share of flipped labels that is removed. AUROC is given for the bare score and for the verdict's
ranking (its p-values). MNIST's own wrong labels, about 0.1 %, count as clean.

The settings are this project's own; no paper has them.
"""

import functools
from typing import Any

import torch
from harness.datasets import load_mnist
from harness.runs import Figures, Results, benchmark_parser, print_goal, print_table, share, spread_of, start
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.utils.data import TensorDataset

from lightning_poison import LikelihoodScorer, PoisonedDataset, Threat, craft, sanitize
from lightning_poison.scorers import ConfidenceScorer
from lightning_poison_labels import LabelFlip

SUBSETS, SIZE = 6, 10_000
RATE = 0.01
UNIFORM = {"0.5 %": 0.005, "2 %": 0.02, "10 %": 0.1, "30 %": 0.3}
PAIR, PAIR_SHARE = (4, 9), 0.2
SCORERS: dict[str, Any] = {"LGM": LikelihoodScorer, "cross-entropy": ConfidenceScorer}
POWER = {"2 %": 0.8, "10 %": 0.9, "30 %": 0.9, "pair": 0.85}


def with_flipped_labels(clean: TensorDataset, setting: str, seed: int) -> PoisonedDataset:
    attack, budget = LabelFlip(), round(UNIFORM.get(setting, 0) * len(clean))
    if setting == "pair":
        attack = LabelFlip(source_class=PAIR[0], target_class=PAIR[1])
        budget = round(PAIR_SHARE * int((clean.tensors[1] == PAIR[0]).sum()))
    return PoisonedDataset(
        clean, craft(attack, clean, Threat(budget), generator=torch.Generator().manual_seed(1000 + seed))
    )


def measure(dataset: Any, truth: Tensor, seed: int, scorer: str) -> Figures:
    """Compare the verdict of `sanitize` with the truth, bool `(N,)`, `True` for flipped labels."""
    verdict = sanitize(dataset, SCORERS[scorer](), false_positive_rate=RATE, seed=seed)
    evidence, removed = verdict.evidence, ~verdict.keep
    figures: Figures = {
        "truth": share(truth),
        "estimate": evidence.contamination,
        "low": evidence.low,
        "high": evidence.high,
        "evidence": evidence.present,
        "pairs": [(pair.labeled, pair.predicted, round(pair.estimate, 1)) for pair in evidence.pairs],
        "removed": int(removed.sum()),
        "fpr": share(removed[~truth]),
        "agreement": share(verdict.suggested_labels == verdict.labels),
    }
    if truth.any():
        figures["tpr"] = share(removed[truth])
        figures["auroc_score"] = roc_auc_score(truth, verdict.scores)
        figures["auroc_ranking"] = roc_auc_score(truth, -verdict.p_values.log())
    return figures


def run(args: Any, scorer: str) -> dict[str, list[Figures]]:
    images, labels = load_mnist(args.data_root, train=True)
    parts = torch.split(torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)), SIZE)[:SUBSETS]
    subsets = [TensorDataset(images[part], labels[part]) for part in parts]
    results, found = Results(args.results), {}
    scorer_key = {} if scorer == "LGM" else {"scorer": scorer}
    for setting in (*UNIFORM, "pair"):

        def measure_flipped(seed: int, setting: str = setting) -> Figures:
            data = with_flipped_labels(subsets[seed % SUBSETS], setting, seed)
            return measure(data, data.is_poison, seed, scorer)

        found[setting] = results.over_seeds(range(args.seeds), {"setting": setting, **scorer_key}, measure_flipped)
    nothing = torch.zeros(SIZE, dtype=torch.bool)
    found["0 %"] = [
        results.get(
            {"setting": "clean", "subset": number, **scorer_key},
            functools.partial(measure, data, nothing, number, scorer),
        )
        for number, data in enumerate(subsets)
    ]
    return found


def table_row(name: str, runs: list[Figures]) -> list[str]:
    def column(figure: str, form: str) -> str:
        return spread_of(runs, figure, form=form) if figure in runs[0] else "-"

    cells = [column("truth", ".4f"), column("estimate", ".4f"), column("tpr", ".3f"), column("fpr", ".4f")]
    return [name, *cells, column("auroc_score", ".4f"), column("auroc_ranking", ".4f"), column("cpu_s", ".0f")]


def report(scorer: str, found: dict[str, list[Figures]]) -> None:
    print(f"\n## Scored by {scorer}")
    names = {name: f"uniform {name}" for name in UNIFORM} | {"pair": "20 % of the 4s labeled 9", "0 %": "clean"}
    columns = ["labels", "truth", "estimate", "TPR", "FPR", "AUROC, score", "AUROC, ranking", "CPU s"]
    print_table(columns, [table_row(names[name], found[name]) for name in ("0 %", *UNIFORM, "pair")])
    clean = found["0 %"]
    print_table(
        ["clean subset", "estimate", "95 % interval", "evidence of poison", "removed"],
        [
            [
                str(number),
                f"{run['estimate']:.4f}",
                f"{run['low']:.4f} to {run['high']:.4f}",
                "yes" if run["evidence"] else "none",
                str(run["removed"]),
            ]
            for number, run in enumerate(clean)
        ],
    )
    for name, runs in found.items():
        near = [abs(run["estimate"] - run["truth"]) <= 0.003 + 0.1 * run["truth"] for run in runs]
        print_goal(f"{names[name]}: estimate within .003 + 10 % of the truth", near)
        print_goal(f"{names[name]}: FPR at most 1.5 x the stated {RATE}", [run["fpr"] <= 1.5 * RATE for run in runs])
        if name in POWER:
            print_goal(f"{names[name]}: TPR at least {POWER[name]}", [run["tpr"] >= POWER[name] for run in runs])
        if name in ("2 %", "10 %"):
            print_goal(f"{names[name]}: AUROC (score) at least .995", [run["auroc_score"] >= 0.995 for run in runs])
            print_goal(f"{names[name]}: AUROC (ranking) at least .995", [run["auroc_ranking"] >= 0.995 for run in runs])
    listed = [[tuple(pair[:2]) for pair in run["pairs"]] == [PAIR[::-1]] for run in found["pair"]]
    print_goal("pair: the verdict lists it and no other", listed)
    print(f"- clean: no evidence and nothing removed in {sum(not run['removed'] for run in clean)} of {len(clean)}")


def main() -> None:
    args = benchmark_parser(__doc__).parse_args()
    start(args)
    for scorer in SCORERS:
        report(scorer, run(args, scorer))


if __name__ == "__main__":
    main()
