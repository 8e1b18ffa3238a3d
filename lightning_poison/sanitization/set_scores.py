"""Scores of scorers that need the whole set. Features are gathered once for all scorers that read the same ones.

With trusted data, training and trusted samples form one set: the network is trained on both together, and both are
scored together. Clean and trusted samples are then treated alike, so that trusted scores are a reference without
holding any sample out.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset

from lightning_poison.contexts import reproducible_kernels
from lightning_poison.data.blocks import MemoryDataset
from lightning_poison.data.copies import Copies
from lightning_poison.data.inference import score_set
from lightning_poison.data.labeled_data import LabeledData
from lightning_poison.data.large_matrices import label_score_dtype, selected_rows, stacked_rows
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.runtime import all_ranks, section
from lightning_poison.sanitization.cross_fitting import Fold, FoldScores, cross_fit
from lightning_poison.sanitization.job import Job, MemberScores
from lightning_poison.sanitization.sample_scores import needs_trusted
from lightning_poison.sanitization.scorer_calls import (
    call_check_set,
    call_deepcopy,
    call_features,
    call_fit,
    call_rehearse,
    call_score_feature_labels,
    call_score_features,
)
from lightning_poison.sanitization.stored_features import once
from lightning_poison.scorers.inspection import feature_model_of
from lightning_poison.scorers.progress import progress_in
from lightning_poison.scorers.protocol import FeatureSource, SetScorer

_FEATURES = 0.7
"""Share of the time that is expected to go into the features of a trained network."""


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
    data, model = job.data, feature_model_of(scorers[0])
    comparable = torch.isin(trusted.labels, job.labels)
    places = comparable.nonzero().flatten()
    labels = torch.cat([job.labels, trusted.labels[places]])
    with all_ranks(job.runtime):
        for scorer in scorers:
            call_check_set(scorer, labels)
    fixed = model.is_fitted
    if not fixed:
        model = job.fit(model, lambda: _joined(data, trusted, places), "feature model", number=number)
    parts = ((data, data.indices, "training"), (trusted, places, "trusted"))
    features = stacked_rows([gather_features(job, model, *part, unit=number, fixed=fixed) for part in parts])
    with all_ranks(job.runtime):
        return [_member_scores(job, scorer, features, labels, comparable, held_out) for scorer in scorers]


def set_label_scores(job: Job, scorer: SetScorer, *, number: int) -> Tensor:
    """Score each sample under each label, `(N, C)`, float64, or float32 if there are many: `label_score_dtype`.

    The network is trained on the other folds, and the samples of a fold form one set. With a trained network, all
    samples form one set. Exact copies with one label are in it once.

    Raises:
        ValueError: If the scorer does not score labels.
    """
    if not scorer.scores_labels:
        raise ValueError(needs_trusted(scorer))
    model = feature_model_of(scorer)
    copies = job.data.copies or Copies.none(len(job.data))
    if model.is_fitted:
        distinct = copies.distinct
        with all_ranks(job.runtime):
            call_check_set(scorer, job.labels[distinct])
        with section(0, _FEATURES):
            features = gather_features(job, model, job.data, distinct, "training", unit=number, fixed=True)
        with all_ranks(job.runtime), section(_FEATURES, 1):
            scores = _label_scores(job, _knowing_groups(scorer, copies, distinct), features, job.labels[distinct])
            return selected_rows(scores, copies.place_in_distinct)

    def judge(fold: Fold) -> FoldScores:
        labels = job.labels[fold.outside]
        with _named(fold):
            call_check_set(scorer, labels)
        own = call_fit(call_deepcopy(model), fold.part, runtime=fold.runtime, generator=fold.generator)
        features = fold.score(lambda block: call_features(own, block.inputs, indices=block.indices)).float()
        with _named(fold):
            return FoldScores(_label_scores(job, _knowing_groups(scorer, copies, fold.outside), features, labels))

    return cross_fit(job, judge, scorer.name, partial(call_rehearse, model), number=number).scores


def _knowing_groups(scorer: SetScorer, copies: Copies, places: Tensor) -> SetScorer:
    """Return the scorer with the groups of the samples that it scores, or itself if there are none."""
    if not copies.has_groups:
        return scorer
    own = copy.copy(scorer)
    own.sample_groups = copies.group[places]
    return own


@contextmanager
def _named(fold: Fold) -> Iterator[None]:
    """Name the fold in errors about its samples."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{error}\nThis is {fold.name}: fewer folds leave more samples in each.") from error


def gather_features(
    job: Job, model: FeatureSource, data: LabeledData, indices: Tensor, name: str, *, unit: int = 0, fixed: bool = False
) -> Tensor:
    """Return the features of some samples, float32 `(M, D)`, on the runtime's device.

    Args:
        job: Where to compute.
        model: A fitted model.
        data: The data set of the samples.
        indices: Positions of the samples, int64 `(M,)`.
        name: Name of the data in the progress bar.
        unit: Distinguishes the features of several models in the stored units.
        fixed: Whether the model was fitted before this decision, so that its features are those of other decisions.
    """

    def compute() -> Tensor:
        return score_set(
            data.dataset,
            indices,
            lambda block: call_features(model, block.inputs, indices=block.indices),
            sample=SampleSpec(),
            runtime=job.runtime,
            seed=job.seed,
            labels=data.labels,
            description=f"Extracting features of {name} data",
            dtype=torch.float32,
            unit=f"features-{unit}-{name}",
        )

    features = once(job, model, data, indices, compute) if fixed else compute()
    return features.to(job.runtime.device)


def _joined(data: LabeledData, trusted: LabeledData, places: Tensor) -> Any:
    if isinstance(data.dataset, MemoryDataset) and isinstance(trusted.dataset, MemoryDataset):
        return data.dataset.followed_by(trusted.dataset.subset(places))
    return ConcatDataset([data.subset(data.indices), trusted.subset(places)])


def _member_scores(
    job: Job, scorer: SetScorer, features: Tensor, labels: Tensor, comparable: Tensor, held_out: Tensor
) -> MemberScores:
    """Score one set, and split the scores; trusted samples of classes that do not occur get 0."""
    count = len(job.labels)
    suggested = torch.full((len(labels),), -1)
    if scorer.scores_labels:
        label_scores = _label_scores(job, scorer, features, labels)
        scores = label_scores.gather(1, labels[:, None])[:, 0]
        suggested = label_scores.argmin(1)
    else:
        with reproducible_kernels(job.runtime.device, job.runtime.threads), torch.no_grad():
            scores = call_score_features(scorer, features, labels).cpu()
    of_trusted = torch.zeros(len(comparable), dtype=scores.dtype)
    of_trusted[comparable] = scores[count:]
    suggested_of_trusted = torch.full((len(comparable),), -1)
    suggested_of_trusted[comparable] = suggested[count:]
    return MemberScores(scores[:count], suggested[:count], of_trusted[held_out], suggested_of_trusted[held_out])


def _label_scores(job: Job, scorer: SetScorer, features: Tensor, labels: Tensor) -> Tensor:
    count = int(labels.max()) + 1
    dtype = label_score_dtype(len(labels), count)
    kernels = reproducible_kernels(job.runtime.device, job.runtime.threads)
    with kernels, torch.no_grad(), progress_in(job.runtime):
        return call_score_feature_labels(scorer, features, labels, count, dtype=dtype).cpu()
