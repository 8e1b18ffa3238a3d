"""What scorers that must see the whole set say: features are gathered once for all that look at the same ones.

With trusted data, judged and trusted samples are one set to them: the network whose features they look at is trained on
both together, and so are the scores made. A clean sample is then treated as a trusted one is, and what the trusted ones
score is what it is compared with; nothing of them has to be held out.
"""

import copy
import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset

from lightning_poison.checks import describe, expected, printable
from lightning_poison.contexts import reproducible_kernels
from lightning_poison.data.blocks import MemoryDataset
from lightning_poison.data.in_memory import Held, hold
from lightning_poison.data.inference import score_set
from lightning_poison.randomness import derived_generator
from lightning_poison.runtime import agreed
from lightning_poison.sanitization.cross_fitting import Fold, cross_fit
from lightning_poison.sanitization.job import Job, MemberScores
from lightning_poison.sanitization.sample_scores import cannot_say
from lightning_poison.scorers.feature_model import FeatureModel
from lightning_poison.scorers.inspection import feature_model_of
from lightning_poison.scorers.protocol import CheckingScorer, FeatureScorer, LabelFeatureScorer


def group_by_features(scorers: Sequence[FeatureScorer]) -> list[list[int]]:
    """Return the positions of scorers that look at the same features, group by group.

    Those of a network that was handed in are the same where it is the same object; those of a network of their own are
    where the settings agree.

    Example:
        >>> class Brightness:
        ...     name, is_control = "brightness", False
        ...     def __init__(self, size):
        ...         self.feature_model = FeatureModel(feature_size=size)
        ...     def score_features(self, features, labels):
        ...         return features.sum(1)
        >>> group_by_features([Brightness(8), Brightness(16), Brightness(8)])
        [[0, 2], [1]]
    """
    groups: dict[str, list[int]] = {}
    for number, scorer in enumerate(scorers):
        model = feature_model_of(scorer)
        of_whom = id(model.model) if model.model is not None else id(model.backbone)
        key = json.dumps([dict(model.settings()), of_whom], sort_keys=True)
        groups.setdefault(key, []).append(number)
    return list(groups.values())


def score_sets_by_trusted(
    job: Job, scorers: Sequence[FeatureScorer], trusted: Held, held_out: Tensor, number: int
) -> list[MemberScores]:
    """Score judged and trusted samples as one set, with each of some scorers that look at the same features.

    Args:
        job: the data set and how it is judged.
        scorers: of one group of `group_by_features`.
        trusted: the samples that are believed.
        held_out: the positions of the trusted samples whose scores are wanted.
        number: which member of a combination the first of them is.

    Raises:
        ValueError: where scores or features are not finite, or not one for each sample.
    """
    model = copy.deepcopy(feature_model_of(scorers[0]))
    judged = Held(job.dataset, job.sample, job.labels)
    comparable = torch.isin(trusted.labels, job.labels)
    everything, places = torch.arange(len(job.labels)), comparable.nonzero().flatten()
    labels = torch.cat([judged.labels, trusted.labels[places]])
    for scorer in scorers:
        check_set(scorer, labels)
    if not model.is_fitted:
        judged, trusted = agreed(job.runtime, lambda: _fitted(job, model, judged, trusted, places, number))
        model.load(job.runtime.broadcast(dict(model.state())))
    parts = ((judged, everything, "training"), (trusted, places, "trusted"))
    features = torch.cat([gather_features(job, model, *part) for part in parts])
    return [_both_parts(job, scorer, features, labels, comparable, held_out) for scorer in scorers]


def check_set(scorer: FeatureScorer, labels: Tensor, where: str = "") -> None:
    """Refuse labels of a set that a scorer cannot judge, before its features are gathered.

    Args:
        scorer: may have `check_labels`.
        labels: int64 `(N,)`, those of the set.
        where: which part of the data they are, for the error.

    Raises:
        ValueError: see `CheckingScorer.check_labels`.
    """
    if not isinstance(scorer, CheckingScorer):
        return
    try:
        scorer.check_labels(labels)
    except ValueError as error:
        raise ValueError(f"{error}{where}") from error


def set_label_scores(job: Job, scorer: FeatureScorer, *, folds: int, number: int) -> Tensor:
    """Return the score of each judged sample under each label, float64 `(N, C)`.

    The network is trained on the other folds, and the samples of a fold are one set; where a network was handed in, all
    samples are.

    Raises:
        ValueError: where the scorer cannot be asked for another label.
    """
    if not isinstance(scorer, LabelFeatureScorer):
        raise ValueError(cannot_say(scorer))
    judged, model = Held(job.dataset, job.sample, job.labels), feature_model_of(scorer)
    if model.is_fitted:
        check_set(scorer, job.labels)
        return _label_scores(
            job, scorer, gather_features(job, model, judged, torch.arange(len(job.labels)), "training"), job.labels
        )

    def judge(fold: Fold) -> Tensor:
        check_set(scorer, job.labels[fold.outside], f"\nThat is {fold.name}: fewer folds leave more samples in each.")
        own = copy.deepcopy(model).fit(fold.part, runtime=fold.runtime, generator=fold.generator)
        features = fold.score(lambda block: own.features(block.inputs)).float()
        return _label_scores(job, scorer, features, job.labels[fold.outside])

    return cross_fit(judged, judge, scorer.name, model, folds=folds, runtime=job.runtime, seed=job.seed_of(number))


def _fitted(
    job: Job, model: FeatureModel, judged: Held, trusted: Held, places: Tensor, number: int
) -> tuple[Held, Held]:
    """Fit on the judged and some trusted samples together, and return both as they were read for it."""
    judged = hold(judged, runtime=job.runtime, seed=job.seed, name="training data")
    trusted = hold(trusted, runtime=job.runtime, seed=job.seed, name="trusted data")
    generator = derived_generator(job.seed_of(number), "feature model")
    model.fit(_joined(judged, trusted, places), runtime=job.runtime, generator=generator)
    return judged, trusted


def _joined(judged: Held, trusted: Held, places: Tensor) -> Any:
    if isinstance(judged.dataset, MemoryDataset) and isinstance(trusted.dataset, MemoryDataset):
        inputs = torch.cat([judged.dataset.inputs, trusted.dataset.inputs[places]])
        return MemoryDataset(inputs, torch.cat([judged.labels, trusted.labels[places]]))
    return ConcatDataset([judged.part(torch.arange(len(judged.labels))), trusted.part(places)])


def gather_features(job: Job, model: FeatureModel, held: Held, indices: Tensor, name: str) -> Tensor:
    """Return the features of some samples, float32 `(M, D)`, on the runtime's device; `name` is for a progress bar."""
    found = score_set(
        held.dataset,
        indices,
        lambda block: model.features(block.inputs),
        sample=held.sample,
        runtime=job.runtime,
        seed=job.seed,
        labels=held.labels,
        description=f"reading the features of {name} data",
        dtype=torch.float32,
    )
    return found.to(job.runtime.device)


def _both_parts(
    job: Job, scorer: FeatureScorer, features: Tensor, labels: Tensor, comparable: Tensor, held_out: Tensor
) -> MemberScores:
    """Score one set, and return what judged and held-out trusted samples got; 0 for classes that are not judged."""
    count = len(job.labels)
    suggested = torch.full((count,), -1)
    if isinstance(scorer, LabelFeatureScorer):
        of_labels = _label_scores(job, scorer, features, labels)
        scores = of_labels.gather(1, labels[:, None])[:, 0]
        suggested = of_labels[:count].argmin(1)
    else:
        scores = _checked(
            scorer, _run(job, lambda: scorer.score_features(features, _at(labels, features))), len(labels)
        )
    of_trusted = torch.zeros(len(comparable), dtype=scores.dtype)
    of_trusted[comparable] = scores[count:]
    return MemberScores(scores[:count], suggested, of_trusted[held_out])


def _label_scores(job: Job, scorer: LabelFeatureScorer, features: Tensor, labels: Tensor) -> Tensor:
    found = _run(job, lambda: scorer.score_feature_labels(features, _at(labels, features)))
    return _checked(scorer, found, len(labels))


def _at(labels: Tensor, features: Tensor) -> Tensor:
    return labels.to(features.device)


def _run(job: Job, score: Any) -> Tensor:
    with reproducible_kernels(job.runtime.device, job.runtime.threads), torch.no_grad():
        found: Tensor = score()
    return found


def _checked(scorer: FeatureScorer, scores: Any, count: int) -> Tensor:
    name = f"the scores of {printable(scorer.name)}"
    if not isinstance(scores, Tensor) or len(scores) != count:
        raise ValueError(expected(name, f"one for each of {count} samples", describe(scores)))
    if not torch.isfinite(scores).all():
        raise ValueError(expected(name, "finite", "NaN or infinite values", "Look at the features of the samples."))
    return scores.double().cpu()
