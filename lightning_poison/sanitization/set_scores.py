"""Scores of scorers that need the whole set. Features are gathered once for all scorers that read the same ones.

With trusted data, training and trusted samples form one set: the network is trained on both together, and both are
scored together. Clean and trusted samples are then treated alike, so that trusted scores are a reference without
holding any sample out.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset

from lightning_poison.checks import describe, expected, printable
from lightning_poison.contexts import reproducible_kernels
from lightning_poison.data.blocks import MemoryDataset
from lightning_poison.data.inference import score_set
from lightning_poison.data.labeled_data import LabeledData
from lightning_poison.runtime import all_ranks
from lightning_poison.sanitization.cross_fitting import Fold, cross_fit
from lightning_poison.sanitization.job import Job, MemberScores
from lightning_poison.sanitization.sample_scores import needs_trusted
from lightning_poison.scorers.inspection import feature_model_of
from lightning_poison.scorers.protocol import FeatureSource, SetScorer


def group_by_features(scorers: Sequence[SetScorer]) -> list[list[int]]:
    """Return the positions of scorers that read the same features, group by group; see `FeatureSource.shared_key`.

    Example:
        >>> from lightning_poison.scorers.deep_knn import DeepKNNScorer
        >>> from lightning_poison.scorers.feature_model import FeatureModel
        >>> group_by_features([DeepKNNScorer(FeatureModel(feature_size=size)) for size in (8, 16, 8)])
        [[0, 2], [1]]
    """
    groups: dict[str, list[int]] = {}
    for number, scorer in enumerate(scorers):
        groups.setdefault(feature_model_of(scorer).shared_key(), []).append(number)
    return list(groups.values())


def set_scores_with_trusted(
    job: Job, scorers: Sequence[SetScorer], trusted: LabeledData, held_out: Tensor, number: int
) -> list[MemberScores]:
    """Score training and trusted samples as one set, with scorers that read the same features.

    Args:
        job: The data set and its decision settings.
        scorers: One group of `group_by_features`.
        trusted: Known-clean samples.
        held_out: Positions of the trusted samples whose scores are needed.
        number: Position of the first scorer in a combination.

    Raises:
        ValueError: If scores or features are not finite, or not one per sample.
    """
    data, model = job.data, copy.deepcopy(feature_model_of(scorers[0]))
    comparable = torch.isin(trusted.labels, job.labels)
    places = comparable.nonzero().flatten()
    labels = torch.cat([job.labels, trusted.labels[places]])
    for scorer in scorers:
        scorer.check_set(labels)
    if not model.is_fitted:
        with all_ranks(job.runtime):
            data, trusted = job.read(data), job.read(trusted, "trusted data")
        model = job.fit(model, lambda: _joined(data, trusted, places), "feature model", number=number)
    parts = ((data, data.indices, "training"), (trusted, places, "trusted"))
    features = torch.cat([gather_features(job, model, *part) for part in parts])
    return [_member_scores(job, scorer, features, labels, comparable, held_out) for scorer in scorers]


def set_label_scores(job: Job, scorer: SetScorer, *, number: int) -> Tensor:
    """Score each sample under each label, float64 `(N, C)`.

    The network is trained on the other folds, and the samples of a fold form one set. With a trained network, all
    samples form one set.

    Raises:
        ValueError: If the scorer does not score labels.
    """
    if not scorer.scores_labels:
        raise ValueError(needs_trusted(scorer))
    model = feature_model_of(scorer)
    if model.is_fitted:
        scorer.check_set(job.labels)
        return _label_scores(
            job, scorer, gather_features(job, model, job.data, job.data.indices, "training"), job.labels
        )

    def judge(fold: Fold) -> Tensor:
        labels = job.labels[fold.outside]
        try:
            scorer.check_set(labels)
        except ValueError as error:
            raise ValueError(f"{error}\nThis is {fold.name}: fewer folds leave more samples in each.") from error
        own = copy.deepcopy(model).fit(fold.part, runtime=fold.runtime, generator=fold.generator)
        return _label_scores(job, scorer, fold.score(lambda block: own.features(block.inputs)).float(), labels)

    return cross_fit(job, judge, scorer.name, model.rehearse, seed=job.seed_of(number))


def gather_features(job: Job, model: FeatureSource, data: LabeledData, indices: Tensor, name: str) -> Tensor:
    """Return the features of some samples, float32 `(M, D)`, on the runtime's device; `name` is for a progress bar."""
    features = score_set(
        data.dataset,
        indices,
        lambda block: model.features(block.inputs),
        sample=data.sample,
        runtime=job.runtime,
        seed=job.seed,
        labels=data.labels,
        description=f"Extracting features of {name} data",
        dtype=torch.float32,
    )
    return features.to(job.runtime.device)


def _joined(data: LabeledData, trusted: LabeledData, places: Tensor) -> Any:
    if isinstance(data.dataset, MemoryDataset) and isinstance(trusted.dataset, MemoryDataset):
        inputs = torch.cat([data.dataset.inputs, trusted.dataset.inputs[places]])
        return MemoryDataset(inputs, torch.cat([data.labels, trusted.labels[places]]))
    return ConcatDataset([data.subset(data.indices), trusted.subset(places)])


def _member_scores(
    job: Job, scorer: SetScorer, features: Tensor, labels: Tensor, comparable: Tensor, held_out: Tensor
) -> MemberScores:
    """Score one set, and split the scores; trusted samples of classes that do not occur get 0."""
    count = len(job.labels)
    suggested = torch.full((count,), -1)
    if scorer.scores_labels:
        label_scores = _label_scores(job, scorer, features, labels)
        scores = label_scores.gather(1, labels[:, None])[:, 0]
        suggested = label_scores[:count].argmin(1)
    else:
        scores = _run(job, scorer, scorer.score_features, features, labels)
    of_trusted = torch.zeros(len(comparable), dtype=scores.dtype)
    of_trusted[comparable] = scores[count:]
    return MemberScores(scores[:count], suggested, of_trusted[held_out])


def _label_scores(job: Job, scorer: SetScorer, features: Tensor, labels: Tensor) -> Tensor:
    return _run(job, scorer, scorer.score_feature_labels, features, labels)


def _run(
    job: Job, scorer: SetScorer, score: Callable[[Tensor, Tensor], Tensor], features: Tensor, labels: Tensor
) -> Tensor:
    with reproducible_kernels(job.runtime.device, job.runtime.threads), torch.no_grad():
        scores: Any = score(features, labels.to(features.device))
    name = f"the scores of {printable(scorer.name)}"
    if not isinstance(scores, Tensor) or len(scores) != len(labels):
        raise ValueError(expected(name, f"one for each of {len(labels)} samples", describe(scores)))
    if not torch.isfinite(scores).all():
        raise ValueError(expected(name, "finite", "NaN or infinite values", "Check the features of the samples."))
    return scores.double().cpu()
