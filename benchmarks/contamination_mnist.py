"""How many labels are wrong, and which, where nothing is trusted: MNIST, 10,000 images a run.

    python benchmarks/contamination_mnist.py --data-root data --results contamination.jsonl

Each of six disjoint subsets of the training images is judged as it is; the first ones (one a seed) are judged again
with flipped labels: 0.5, 2, 10 and 30 % of all, to any other class, and 20 % of the 4s labeled 9. `sanitize` and
`LikelihoodScorer` run with their defaults, nothing was chosen on these images; beside it stands a cross-entropy twin,
`ConfidenceScorer`: −log p(y|x) of the same backbone under a linear head, trained alike and judged by the same
`sanitize`. The realised false-positive rate is the share of rightly labeled images that was removed, the
true-positive rate the share of flipped ones. AUROC is given for the bare score and for the verdict's ranking (its
p-values); it is also the answer to "flipped labels with no trusted data". MNIST's own wrong labels, some 0.1 %, count
as clean.

The settings of the rows are this project's own (no paper has them); the goals stand beside the figures.
"""

from typing import Any

import torch
from common import Figures, Results, arguments, load_mnist, print_goal, print_setting, print_table, spread
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.utils.data import TensorDataset

from lightning_poison import LikelihoodScorer, PoisonedDataset, Threat, craft, sanitize
from lightning_poison.scorers import ConfidenceScorer
from lightning_poison_labels.label_flip import LabelFlip

SUBSETS, SIZE = 6, 10_000
RATE = 0.01
UNIFORM = {"0.5 %": 0.005, "2 %": 0.02, "10 %": 0.1, "30 %": 0.3}
PAIR, PAIR_SHARE = (4, 9), 0.2
JUDGES = {"LGM": LikelihoodScorer, "cross-entropy": ConfidenceScorer}
POWER = {"2 %": 0.8, "10 %": 0.9, "30 %": 0.9, "pair": 0.85}


def poisoned(clean: TensorDataset, setting: str, seed: int) -> PoisonedDataset:
    """Return the subset with flipped labels."""
    attack, budget = LabelFlip(), round(UNIFORM.get(setting, 0) * len(clean))
    if setting == "pair":
        attack = LabelFlip(source_class=PAIR[0], target_class=PAIR[1])
        budget = round(PAIR_SHARE * int((clean.tensors[1] == PAIR[0]).sum()))
    return PoisonedDataset(
        clean, craft(attack, clean, Threat(budget), generator=torch.Generator().manual_seed(1000 + seed))
    )


def judge(dataset: Any, truth: Tensor, seed: int, scorer: Any) -> Figures:
    """Return what `sanitize` found, beside the truth, bool `(N,)`."""
    verdict = sanitize(dataset, scorer, false_positive_rate=RATE, seed=seed)
    evidence, removed = verdict.evidence, ~verdict.keep
    figures = {
        "truth": float(truth.double().mean()),
        "estimate": evidence.contamination,
        "low": evidence.low,
        "high": evidence.high,
        "evidence": evidence.present,
        "pairs": [(pair.labeled, pair.read_as, round(pair.estimate, 1)) for pair in evidence.pairs],
        "removed": int(removed.sum()),
        "fpr": float(removed[~truth].double().mean()),
        "agreement": float((verdict.suggested_labels == verdict.labels).double().mean()),
    }
    if truth.any():
        figures["tpr"] = float(removed[truth].double().mean())
        figures["auroc_score"] = roc_auc_score(truth, verdict.scores)
        figures["auroc_ranking"] = roc_auc_score(truth, -verdict.p_values.log())
    return figures


def run(args: Any, judged_by: str) -> dict[str, list[Figures]]:
    images, labels = load_mnist(args.data_root, train=True)
    parts = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).split(SIZE)[:SUBSETS]
    subsets = [TensorDataset(images[part], labels[part]) for part in parts]
    results, found = Results(args.results), {}
    name = {} if judged_by == "LGM" else {"judge": judged_by}
    for setting in (*UNIFORM, "pair"):
        runs = []
        for seed in range(args.seeds):
            data = poisoned(subsets[seed % SUBSETS], setting, seed)
            runs.append(
                results.get(
                    {"setting": setting, "seed": seed, **name},
                    lambda data=data, seed=seed: judge(data, data.is_poison, seed, JUDGES[judged_by]()),
                )
            )
        found[setting] = runs
    nothing = torch.zeros(SIZE, dtype=torch.bool)
    found["0 %"] = [
        results.get(
            {"setting": "clean", "subset": number, **name},
            lambda data=data, number=number: judge(data, nothing, number, JUDGES[judged_by]()),
        )
        for number, data in enumerate(subsets)
    ]
    return found


def row(name: str, runs: list[Figures]) -> list[str]:
    def column(figure: str, form: str) -> str:
        return spread([run[figure] for run in runs], form) if figure in runs[0] else "-"

    cells = [column("truth", ".4f"), column("estimate", ".4f"), column("tpr", ".3f"), column("fpr", ".4f")]
    return [name, *cells, column("auroc_score", ".4f"), column("auroc_ranking", ".4f"), column("cpu_s", ".0f")]


def report(judged_by: str, found: dict[str, list[Figures]]) -> None:
    print(f"\n## Judged by {judged_by}")
    names = {name: f"uniform {name}" for name in UNIFORM} | {"pair": "20 % of the 4s labeled 9", "0 %": "clean"}
    columns = ["labels", "truth", "estimate", "TPR", "FPR", "AUROC, score", "AUROC, ranking", "CPU s"]
    print_table(columns, [row(names[name], found[name]) for name in ("0 %", *UNIFORM, "pair")])
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
    named = [[tuple(pair[:2]) for pair in run["pairs"]] == [PAIR[::-1]] for run in found["pair"]]
    print_goal("pair: named, and no other", named)
    print(f"- clean: no evidence and nothing removed in {sum(not run['removed'] for run in clean)} of {len(clean)}")


def main() -> None:
    args = arguments(__doc__).parse_args()
    torch.set_num_threads(1)
    print_setting("contamination_mnist", args)
    for judged_by in JUDGES:
        report(judged_by, run(args, judged_by))


if __name__ == "__main__":
    main()
