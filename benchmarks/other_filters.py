"""What other filters remove from the data of `recommended_scorer.py`, case by case: same images, poison and seeds.

    python benchmarks/other_filters.py --data-root data --results other_filters.jsonl --seeds 1 --case "BadNets 1 %"
    python benchmarks/other_filters.py --data cifar --data-root data --results other_filters.jsonl

Nothing is trusted, and no filter is told how much poison there is. Every decision is that of the filter's own rule,
with its defaults:

Seconds of the filters that read the network include its training only in the first of them.

- cleanlab's `find_label_issues`, on the probabilities of three cross-fitted networks.
- ART's spectral signatures and activation clustering, on the features of a network that was trained on all of the data,
  the one of which `recommended_scorer.py` measures the attack success. ART expects 33 % of each class to be poison
  unless it is told.
- CCA-UD on the features of the same network, with 500 benign images, which it needs.
- Our single scorers by `sanitize(data, scorer, seed=seed)`: layers after FLARE, entropy after SPECTRE, and stability
  after IBD-PSC. Each asks what its groups do to other samples before it removes any, which the published methods do
  not.

cleanlab, ART (`adversarial-robustness-toolbox`) and UMAP (`umap-learn`) are in the dependency group `peers`.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from art.defences.detector.poison import ActivationDefence, SpectralSignatureDefense
from art.estimators.classification import PyTorchClassifier
from cleanlab.filter import find_label_issues
from harness.cca_ud import keep_by_centroids
from harness.datasets import LabeledImages, load_cifar, load_mnist
from harness.networks import outputs_of
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
from recommended_scorer import CASES, EPSILON, FIRST_SEED, PoisonedImages, decide, network_for, poisoned_images
from sklearn.model_selection import StratifiedKFold
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from lightning_poison.scorers import LayerAbnormalityScorer, PredictionStabilityScorer, QuantumEntropyScorer

CLASSES, FOLDS, BENIGN = 10, 3, 500
Filter = Callable[[PoisonedImages, int], Tensor]
"""Returns the mask of the samples to keep."""


def keep_by_cleanlab(data: PoisonedImages, seed: int) -> Tensor:
    images, labels = data.given
    probabilities = torch.zeros(len(labels), CLASSES)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    for fitted, held_out in folds.split(images.flatten(1).numpy(), labels.numpy()):
        network = network_for(images, (images[fitted], labels[fitted]), seed).eval()
        probabilities[held_out] = outputs_of(network, images[held_out]).softmax(1)
    issues = find_label_issues(labels.numpy(), probabilities.double().numpy())
    return ~torch.from_numpy(issues)


class FeatureClassifier(PyTorchClassifier):  # type: ignore[misc]
    """ART's classifier, whose last layer is that of the features."""

    def get_activations(self, x: Any, *args: Any, **settings: Any) -> Any:  # noqa: ARG002 (ART's signature)
        return outputs_of(self.model.backbone, torch.as_tensor(x)).numpy()

    @property
    def model(self) -> Any:
        return self._model._model  # ART wraps it to list its layers


def keep_by_art(defense: type[Any], data: PoisonedImages, seed: int) -> Tensor:
    images, labels = data.given
    network = victim(data, seed)
    classifier = FeatureClassifier(network, nn.CrossEntropyLoss(), tuple(images.shape[1:]), CLASSES, device_type="cpu")
    _, clean = defense(classifier, images.numpy(), nn.functional.one_hot(labels, CLASSES).numpy()).detect_poison()
    return torch.as_tensor(clean).bool()


def keep_by_cca_ud(data: PoisonedImages, seed: int) -> Tensor:
    images, labels = data.given
    network = victim(data, seed)
    backbone, head = network.get_submodule("backbone"), network.get_submodule("head")
    benign, benign_labels = (part[:BENIGN] for part in data.rest)
    features, of_benign = outputs_of(backbone, images), outputs_of(backbone, benign)
    return keep_by_centroids(features, labels, of_benign, benign_labels, head, seed)


def keep_by_scorer(scorer: Callable[[], Any], data: PoisonedImages, seed: int) -> Tensor:
    return decide(TensorDataset(*data.given), scorer(), seed).keep


@functools.lru_cache(maxsize=1)
def victim(data: PoisonedImages, seed: int) -> nn.Module:
    """Train the network that several filters read."""
    return network_for(data.given[0], data.given, seed).eval()


@functools.lru_cache(maxsize=1)
def crafted(name: str, case: str, load: Callable[[], LabeledImages], seed: int) -> PoisonedImages:
    return poisoned_images(CASES[case], name, load, seed)


FILTERS: dict[str, Filter] = {
    "cleanlab": keep_by_cleanlab,
    "ART, spectral signatures": functools.partial(keep_by_art, SpectralSignatureDefense),
    "ART, activation clustering": functools.partial(keep_by_art, ActivationDefence),
    "CCA-UD": keep_by_cca_ud,
    "layers (FLARE)": functools.partial(keep_by_scorer, LayerAbnormalityScorer),
    "entropy (SPECTRE)": functools.partial(keep_by_scorer, QuantumEntropyScorer),
    "stability (IBD-PSC)": functools.partial(keep_by_scorer, PredictionStabilityScorer),
}


def measure(name: str, case: str, load: Callable[[], LabeledImages], filter_name: str, seed: int) -> Figures:
    data = crafted(name, case, load, seed)
    keep, seconds = with_cpu_seconds(lambda: FILTERS[filter_name](data, seed))
    figures: Figures = {"removed": int((~keep).sum()), "clean lost": share(~keep[~data.is_poison]), "seconds": seconds}
    if data.poison is not None:
        figures["caught"] = share(~keep[data.harmful])
    return figures


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--data", choices=sorted(EPSILON), default="mnist")
    parser.add_argument("--case", action="append", choices=list(CASES), help="run only these; may be repeated")
    parser.add_argument("--filter", action="append", choices=list(FILTERS), help="run only these; may be repeated")
    args = parser.parse_args()
    start(args)
    loader = load_mnist if args.data == "mnist" else load_cifar
    load = functools.partial(loader, args.data_root, train=True)
    results = Results(args.results)
    rows = []
    with threadpool_limits(limits=1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in args.case or CASES:
            names, seeds = args.filter or FILTERS, range(FIRST_SEED, FIRST_SEED + args.seeds)
            for seed in seeds:  # filter by filter, so that poison and network are made once
                for name in names:
                    run = functools.partial(measure, args.data, case, load, name)
                    results.over_seeds([seed], {"data": args.data, "case": case, "filter": name}, run)
            for name in names:
                key = {"data": args.data, "case": case, "filter": name}
                runs = [figures for seed in seeds if (figures := results.find({**key, "seed": seed})) is not None]
                caught = spread_of(runs, "caught", form=".3f") if all("caught" in each for each in runs) else ""
                lost, seconds = spread_of(runs, "clean lost", form=".4f"), spread_of(runs, "seconds", form=".0f")
                rows.append([case, name, str(len(runs)), caught, lost, seconds])
    print_table(["case", "filter", "seeds", "caught", "clean lost", "CPU s"], rows)


if __name__ == "__main__":
    main()
