"""Spectral signatures and activation clustering against ART's: backdoored MNIST, time and detection.

    python benchmarks/filters_against_art.py --data-root data --results filters_against_art.jsonl

20,000 training images are poisoned with BadNets, 5 % all-to-one and 33 % all-to-all, and a small network is trained on
them (that of `backdoors_mnist.py`). Both sides judge those images by that network's 100 features before the last
layer, with one thread, in turns, each turn in another order; the time is that of the CPU, and the ratio is that of the
medians. ART (1.20) would look at the last layer, the logits: its classifier is told of the layers before it only.

- "images": from the network and the images to the scores. Ours is what `sanitize` does with a scorer of this kind:
  `FeatureModel` on blocks of the data set, in the runtime's precision (bfloat16 where the CPU has it; "float32" without
  it), then `score_features`. ART is its defense's `detect_poison`, on arrays.
- "features": from the same features to the scores. ART's classifier returns the features that it is handed. "Its
  mathematics" is ART's `spectral_signature_scores` class by class alone, without what `detect_poison` reports.

Spectral signatures: ART projects uncenterd features on the singular vector of the centerd ones. "Ours, as the paper"
has one direction and the mean as center, "ours" the defaults, which were chosen on BadNets on MNIST, by these seeds
among others. Detection is the AUROC of poison within a class, and the true-positive rate at 5 % false positives within
it, averaged over the classes that hold poison. Activation clustering: ART's decision has no score; the rates of both
sides' decision are given, and compared by TPR minus FPR. ART's analysis "silhouette-scores" has the gates that ours
has, at the same values, and calls all samples of a class poison where it suspects one cluster; its default, "smaller",
has no gates and calls the smaller cluster of every class poison.

ART (`adversarial-robustness-toolbox`) is in the dependency group `peers`.
"""

import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from art.defenses.detector.poison import ActivationDefense, SpectralSignatureDefense
from art.estimators.classification import PyTorchClassifier
from art.utils import segment_by_class
from backdoors_mnist import GrayImages, columns_of, fit, predict
from common import Figures, Results, arguments, load_mnist, print_goal, print_setting, print_table, spread
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from lightning_poison import PoisonedDataset, SampleSpec, Threat, craft
from lightning_poison.data import score_set
from lightning_poison.runtime import LocalRuntime
from lightning_poison.scorers import ActivationClusteringScorer, FeatureModel, SpectralSignatureScorer
from lightning_poison_backdoors import BadNets

IMAGES, CLASSES, TURNS, LAYER, FPR = 20_000, 10, 5, "6", 0.05
SETTINGS = {"all-to-one 5 %": (BadNets(), 0.05), "all-to-all 33 %": (BadNets("next"), 0.33)}
FILTERS = {"spectral signatures": SpectralSignatureScorer, "activation clustering": ActivationClusteringScorer}
Work = Callable[[], np.ndarray]


class Headless(PyTorchClassifier):
    """ART's classifier, which knows of the layers before the last one only."""

    @property
    def layer_names(self) -> list[str]:
        return super().layer_names[:-1]


class Stored(Headless):
    """ART's classifier, which returns features that it was given."""

    features: np.ndarray

    def get_activations(self, *args: Any, **settings: Any) -> np.ndarray:  # noqa: ARG002 (ART's signature)
        return self.features


def ours_from_images(net: nn.Module, images: Tensor, labels: Tensor, name: str, precision: str) -> np.ndarray:
    runtime, model = LocalRuntime(threads=1, precision=precision), FeatureModel(net, LAYER)
    features = features_of(model, images, labels, runtime)
    return FILTERS[name](model).score_features(features, labels).numpy()


def features_of(model: FeatureModel, images: Tensor, labels: Tensor, runtime: LocalRuntime) -> Tensor:
    return score_set(
        TensorDataset(images, labels),
        torch.arange(len(labels)),
        lambda block: model.features(block.inputs),
        sample=SampleSpec(),
        runtime=runtime,
        seed=0,
        labels=labels,
        dtype=torch.float32,
    )


def art_spectral(classifier: Any, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return ART's scores, out of the report of everything that it calls poison when it expects nothing else."""
    defense = SpectralSignatureDefense(classifier, images, labels, expected_pp_poison=1.0, eps_multiplier=1.0)
    report, _ = defense.detect_poison()
    scores = np.zeros(len(labels))
    scores[list(report)] = list(report.values())
    return scores


def art_mathematics(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    scores = np.zeros(len(labels))
    parts, places = (
        segment_by_class(features, labels, CLASSES),
        segment_by_class(np.arange(len(labels)), labels, CLASSES),
    )
    for part, place in zip(parts, places, strict=True):
        scores[place] = SpectralSignatureDefense.spectral_signature_scores(np.vstack(part))[:, 0]
    return scores


def art_clustering(classifier: Any, images: np.ndarray, labels: np.ndarray, analysis: str) -> np.ndarray:
    """Return 1 where ART calls a sample poison."""
    defense = ActivationDefense(classifier, images, labels)
    _, clean = defense.detect_poison(nb_clusters=2, nb_dims=10, reduce="PCA", cluster_analysis=analysis)
    return 1 - np.array(clean)


def works(name: str, net: nn.Module, images: Tensor, labels: Tensor) -> dict[str, dict[str, Work]]:
    """Return what is timed: from where, and by whom."""
    arrays, truth = images.numpy(), labels.numpy()
    features = features_of(FeatureModel(net, LAYER), images, labels, LocalRuntime(threads=1, precision="32"))
    built = (net, nn.CrossEntropyLoss(), (1, 28, 28), CLASSES)
    whole, stored = (kind(*built, device_type="cpu") for kind in (Headless, Stored))
    stored.features = features.numpy()
    scorer = FILTERS[name](FeatureModel(net, LAYER))
    from_images: dict[str, Work] = {
        "ours": lambda: ours_from_images(net, images, labels, name, "auto"),
        "ours, float32": lambda: ours_from_images(net, images, labels, name, "32"),
    }
    from_features: dict[str, Work] = {"ours": lambda: scorer.score_features(features, labels).numpy()}
    if name == "spectral signatures":
        paper = SpectralSignatureScorer(FeatureModel(net, LAYER), directions=1, center="mean")
        from_features["ours, as the paper"] = lambda: paper.score_features(features, labels).numpy()
        from_images["ART"] = lambda: art_spectral(whole, arrays, truth)
        from_features["ART"] = lambda: art_spectral(stored, arrays, truth)
        from_features["ART, its mathematics"] = lambda: art_mathematics(stored.features, truth)
    else:
        for shown, analysis in (("ART", "silhouette-scores"), ("ART, smaller", "smaller")):
            from_images[shown] = lambda analysis=analysis: art_clustering(whole, arrays, truth, analysis)
            from_features[shown] = lambda analysis=analysis: art_clustering(stored, arrays, truth, analysis)
    return {"images": from_images, "features": from_features}


def timed_in_turns(contenders: dict[str, Work]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Return the median CPU seconds of each, and what each found."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    found: dict[str, np.ndarray] = {}
    names = list(contenders)
    for turn in range(TURNS):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.process_time()
            found[name] = contenders[name]()
            seconds[name].append(time.process_time() - start)
    return {name: statistics.median(each) for name, each in seconds.items()}, found


def detection(scores: np.ndarray, labels: np.ndarray, poison: np.ndarray, *, decides: bool) -> Figures:
    """Return figures of scores within classes, averaged, and the rates of what lies above 0 where scores decide."""
    aurocs, powers = [], []
    for label in range(CLASSES):
        own, bad = scores[labels == label], poison[labels == label]
        if bad.any() and not bad.all():
            aurocs.append(roc_auc_score(bad, own))
            powers.append(float((own[bad] > np.quantile(own[~bad], 1 - FPR)).mean()))
    figures: Figures = {"auroc": statistics.mean(aurocs), "tpr": statistics.mean(powers)}
    if decides:
        figures |= {"caught": float((scores[poison] > 0).mean()), "lost": float((scores[~poison] > 0).mean())}
    return figures


def measure(args: Any, setting: str, seed: int) -> Figures:
    images, labels = load_mnist(args.data_root, train=True)
    chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[:IMAGES]
    clean = GrayImages((255 * images[chosen]).round().byte(), labels[chosen])
    attack, share = SETTINGS[setting]
    poison = craft(attack, clean, Threat.of_fraction(clean, share), generator=torch.Generator().manual_seed(100 + seed))
    data = PoisonedDataset(clean, poison)
    inputs, carried = columns_of(data)
    net = fit(inputs, carried, seed)
    test = load_mnist(args.data_root, train=False)
    triggered, true, wanted = columns_of(poison.objective.evaluation_set(GrayImages((255 * test[0]).byte(), test[1])))
    read = predict(net, triggered)
    figures: Figures = {"asr": float(poison.objective.success(read, true, wanted).double().mean())}
    for name in FILTERS:
        for start, contenders in works(name, net, inputs, carried).items():
            seconds, found = timed_in_turns(contenders)
            truth = (carried.numpy(), data.is_poison.numpy())
            figures[f"{name}, {start}"] = {
                who: {"cpu": seconds[who], **detection(scores, *truth, decides=name == "activation clustering")}
                for who, scores in found.items()
            }
    return figures


def report(setting: str, runs: list[Figures]) -> None:
    print(f"\n## BadNets {setting}; success of the undefended network {spread([run['asr'] for run in runs], '.3f')}")
    for name in FILTERS:
        shown = {"auroc": "AUROC", "tpr": "TPR at 5 %", "caught": "its decision: TPR", "lost": "FPR"}
        rows = []
        for start in ("images", "features"):
            for who, first in runs[0][f"{name}, {start}"].items():
                each = [run[f"{name}, {start}"] for run in runs]
                ratio = [run[who]["cpu"] / run["ours"]["cpu"] for run in each]
                cells = [
                    spread([run[who][figure] for run in each], ".3f") if figure in first else "-" for figure in shown
                ]
                times = [spread([run[who]["cpu"] for run in each], ".3f"), spread(ratio, ".1f")]
                rows.append([start, who, *times, *cells])
        print(f"\n{name.capitalize()}")
        print_table(["from", "who", "CPU s", "times ours", *shown.values()], rows)
        print()
        for start in ("images", "features"):
            each = [run[f"{name}, {start}"] for run in runs]
            rivals = [who for who in each[0] if who.startswith("ART")]
            for who in rivals:
                faster = [run["ours"]["cpu"] < run[who]["cpu"] for run in each]
                print_goal(f"{name}, from the {start}: faster than {who}", faster)
            detects = [not_worse(run, name) for run in each]
            print_goal(f"{name}, from the {start}: detection equal or better than ART's, to .001", detects)


def not_worse(run: Figures, name: str) -> bool:
    """Tell whether ours detects at least as well as ART's with the same gates."""
    ours, theirs = run["ours"], run["ART"]
    if name == "spectral signatures":
        return all(ours[figure] >= theirs[figure] - 1e-3 for figure in ("auroc", "tpr"))
    return ours["caught"] - ours["lost"] >= theirs["caught"] - theirs["lost"] - 1e-3


def main() -> None:
    args = arguments(__doc__).parse_args()
    torch.set_num_threads(1)
    print_setting("filters_against_art", args)
    results = Results(args.results)
    with threadpool_limits(limits=1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for setting in SETTINGS:
            keys = [{"setting": setting, "seed": seed} for seed in range(args.seeds)]
            report(setting, [results.get(key, lambda key=key: measure(args, **key)) for key in keys])


if __name__ == "__main__":
    main()
