"""Time and detection of spectral signatures and activation clustering, compared with ART's: backdoored MNIST.

    python benchmarks/filters_against_art.py --data-root data --results filters_against_art.jsonl

20,000 training images are poisoned with BadNets, 5 % all-to-one and 33 % all-to-all, and the small network of
`backdoors_mnist.py` is trained on them. Both sides score these images by the network's 100 features before the last
layer, with one thread, in alternation, each turn in another order. The time is CPU time, and the ratio is that of the
medians. By default, ART (1.20) uses the last layer, the logits; here its classifier lists only the layers before it.

- "images": from the network and the images to the scores. Ours does what `sanitize` does with such a scorer:
  `FeatureModel` on blocks of the data set, in the runtime's precision (bfloat16 if the CPU supports it; "float32"
  without it), then `score_features`. ART runs its defense's `detect_poison` on arrays.
- "features": from the same features to the scores. ART's classifier returns the given features. "ART, scores only" is
  ART's `spectral_signature_scores`, class by class, without the report of `detect_poison`.

Spectral signatures: ART projects uncentered features on the singular vector of the centered ones. "Ours, as the paper"
has one direction and the mean as center; "ours" has the defaults, which were chosen on BadNets on MNIST with seeds that
include these. Detection is the AUROC of poison within a class, and the true-positive rate at 5 % false positives within
it, averaged over the classes that contain poison. Activation clustering: ART's decision has no score, so the rates of
both decisions are given and compared by TPR minus FPR. ART's analysis "silhouette-scores" has the same thresholds as
ours, with the same values, and flags all samples of a class if one of its clusters is suspicious; its default,
"smaller", has no thresholds and flags the smaller cluster of every class.

ART (`adversarial-robustness-toolbox`) is in the dependency group `peers`.
"""

import functools
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from art.defences.detector.poison import ActivationDefence, SpectralSignatureDefense
from art.estimators.classification import PyTorchClassifier
from art.utils import segment_by_class
from harness.backdoor_network import fit
from harness.datasets import RawDataset, columns_of, load_mnist
from harness.networks import predict
from harness.runs import Figures, Results, benchmark_parser, print_goal, print_table, share, spread, spread_of, start
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
FILTERS: dict[str, Any] = {
    "spectral signatures": SpectralSignatureScorer,
    "activation clustering": ActivationClusteringScorer,
}
Work = Callable[[], Any]
"""Returns the scores of all samples as an array."""


class FeatureClassifier(PyTorchClassifier):  # type: ignore[misc]
    """ART's classifier, listing only the layers before the last one."""

    @property
    def layer_names(self) -> Any:
        return super().layer_names[:-1]


class StoredFeatureClassifier(FeatureClassifier):
    """ART's classifier, returning given features."""

    features: np.ndarray

    def get_activations(self, *args: Any, **settings: Any) -> np.ndarray:  # noqa: ARG002 (ART's signature)
        return self.features


def score_images(network: nn.Module, images: Tensor, labels: Tensor, name: str, precision: str) -> Any:
    """Return our scores, computed from the images."""
    runtime, model = LocalRuntime(threads=1, precision=precision), FeatureModel(network, LAYER)
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
    """Return ART's scores, read from its report when all samples are expected to be poison."""
    defense = SpectralSignatureDefense(classifier, images, labels, expected_pp_poison=1.0, eps_multiplier=1.0)
    report, _ = defense.detect_poison()
    scores = np.zeros(len(labels))
    scores[list(report)] = list(report.values())
    return scores


def art_spectral_scores_only(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return ART's scores without its report."""
    scores = np.zeros(len(labels))
    parts, places = (
        segment_by_class(features, labels, CLASSES),
        segment_by_class(np.arange(len(labels)), labels, CLASSES),
    )
    for part, place in zip(parts, places, strict=True):
        scores[place] = SpectralSignatureDefense.spectral_signature_scores(np.vstack(part))[:, 0]
    return scores


def art_clustering(classifier: Any, images: np.ndarray, labels: np.ndarray, analysis: str) -> Any:
    """Return 1 for samples that ART flags as poison."""
    defense = ActivationDefence(classifier, images, labels)
    _, clean = defense.detect_poison(nb_clusters=2, nb_dims=10, reduce="PCA", cluster_analysis=analysis)
    return 1 - np.array(clean)


def contenders_for(name: str, network: nn.Module, images: Tensor, labels: Tensor) -> dict[str, dict[str, Work]]:
    """Return what is timed, by starting point and implementation."""
    arrays, truth = images.numpy(), labels.numpy()
    features = features_of(FeatureModel(network, LAYER), images, labels, LocalRuntime(threads=1, precision="32"))
    arguments = (network, nn.CrossEntropyLoss(), (1, 28, 28), CLASSES)
    whole, stored = (kind(*arguments, device_type="cpu") for kind in (FeatureClassifier, StoredFeatureClassifier))
    stored.features = features.numpy()
    scorer = FILTERS[name](FeatureModel(network, LAYER))
    from_images: dict[str, Work] = {
        "ours": lambda: score_images(network, images, labels, name, "auto"),
        "ours, float32": lambda: score_images(network, images, labels, name, "32"),
    }
    from_features: dict[str, Work] = {"ours": lambda: scorer.score_features(features, labels).numpy()}
    if name == "spectral signatures":
        paper = SpectralSignatureScorer(FeatureModel(network, LAYER), directions=1, center="mean")
        from_features["ours, as the paper"] = lambda: paper.score_features(features, labels).numpy()
        from_images["ART"] = lambda: art_spectral(whole, arrays, truth)
        from_features["ART"] = lambda: art_spectral(stored, arrays, truth)
        from_features["ART, scores only"] = lambda: art_spectral_scores_only(stored.features, truth)
    else:
        for variant, analysis in (("ART", "silhouette-scores"), ("ART, smaller", "smaller")):
            from_images[variant] = functools.partial(art_clustering, whole, arrays, truth, analysis)
            from_features[variant] = functools.partial(art_clustering, stored, arrays, truth, analysis)
    return {"images": from_images, "features": from_features}


def time_in_turns(contenders: dict[str, Work]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Return the median CPU seconds and the scores of each contender."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    scores: dict[str, np.ndarray] = {}
    names = list(contenders)
    for turn in range(TURNS):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            begin = time.process_time()
            scores[name] = contenders[name]()
            seconds[name].append(time.process_time() - begin)
    return {name: statistics.median(each) for name, each in seconds.items()}, scores


def detection(scores: np.ndarray, labels: np.ndarray, poison: np.ndarray, *, decides: bool) -> Figures:
    """Return the detection within classes, averaged; and the rates of scores above 0, if scores are decisions."""
    aurocs, powers = [], []
    for label in range(CLASSES):
        own, is_poison = scores[labels == label], poison[labels == label]
        if is_poison.any() and not is_poison.all():
            aurocs.append(roc_auc_score(is_poison, own))
            powers.append(float((own[is_poison] > np.quantile(own[~is_poison], 1 - FPR)).mean()))
    figures: Figures = {"auroc": statistics.mean(aurocs), "tpr": statistics.mean(powers)}
    if decides:
        figures |= {"caught": float((scores[poison] > 0).mean()), "lost": float((scores[~poison] > 0).mean())}
    return figures


def measure(args: Any, setting: str, seed: int) -> Figures:
    images, labels = load_mnist(args.data_root, train=True)
    chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[:IMAGES]
    clean = RawDataset.from_floats(images[chosen], labels[chosen])
    attack, fraction = SETTINGS[setting]
    threat = Threat.of_fraction(clean, fraction)
    poison = craft(attack, clean, threat, generator=torch.Generator().manual_seed(100 + seed))
    data = PoisonedDataset(clean, poison)
    inputs, carried = columns_of(data)
    network = fit(inputs, carried, seed=seed)
    test = load_mnist(args.data_root, train=False)
    triggered, true, wanted = columns_of(poison.objective.evaluation_set(RawDataset((255 * test[0]).byte(), test[1])))
    predicted = predict(network, triggered, batch_size=1000)
    figures: Figures = {"asr": share(poison.objective.success(predicted, true, wanted))}
    for name in FILTERS:
        for origin, contenders in contenders_for(name, network, inputs, carried).items():
            seconds, found = time_in_turns(contenders)
            truth = (carried.numpy(), data.is_poison.numpy())
            figures[f"{name}, {origin}"] = {
                who: {"cpu": seconds[who], **detection(scores, *truth, decides=name == "activation clustering")}
                for who, scores in found.items()
            }
    return figures


def report(setting: str, runs: list[Figures]) -> None:
    print(f"\n## BadNets {setting}; attack success without defense: {spread_of(runs, 'asr', form='.3f')}")
    for name in FILTERS:
        columns = {"auroc": "AUROC", "tpr": "TPR at 5 %", "caught": "its decision: TPR", "lost": "FPR"}
        rows = []
        for origin in ("images", "features"):
            for who, first in runs[0][f"{name}, {origin}"].items():
                each = [run[f"{name}, {origin}"] for run in runs]
                ratio = [run[who]["cpu"] / run["ours"]["cpu"] for run in each]
                cells = [spread_of(each, who, figure, form=".3f") if figure in first else "-" for figure in columns]
                times = [spread_of(each, who, "cpu", form=".3f"), spread(ratio, ".1f")]
                rows.append([origin, who, *times, *cells])
        print(f"\n{name.capitalize()}")
        print_table(["from", "implementation", "CPU s", "÷ ours", *columns.values()], rows)
        print()
        for origin in ("images", "features"):
            each = [run[f"{name}, {origin}"] for run in runs]
            for who in [who for who in each[0] if who.startswith("ART")]:
                faster = [run["ours"]["cpu"] < run[who]["cpu"] for run in each]
                print_goal(f"{name}, from the {origin}: faster than {who}", faster)
            detects = [is_not_worse(run, name) for run in each]
            print_goal(f"{name}, from the {origin}: detection at least as good as ART's, to .001", detects)


def is_not_worse(run: Figures, name: str) -> bool:
    """Return whether ours detects at least as much as ART's with the same thresholds."""
    ours, theirs = run["ours"], run["ART"]
    if name == "spectral signatures":
        return all(ours[figure] >= theirs[figure] - 1e-3 for figure in ("auroc", "tpr"))
    return bool(ours["caught"] - ours["lost"] >= theirs["caught"] - theirs["lost"] - 1e-3)


def main() -> None:
    args = benchmark_parser(__doc__).parse_args()
    start(args)
    results = Results(args.results)
    with threadpool_limits(limits=1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for setting in SETTINGS:
            measure_setting = functools.partial(measure, args, setting)
            report(setting, results.over_seeds(range(args.seeds), {"setting": setting}, measure_setting))


if __name__ == "__main__":
    main()
