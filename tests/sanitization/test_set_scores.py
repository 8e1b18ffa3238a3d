from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from lightning_poison.data import inference, labeled_data
from lightning_poison.data.copies import Copies
from lightning_poison.data.labeled_data import read_labeled
from lightning_poison.data.source import open_source
from lightning_poison.errors import PluginError
from lightning_poison.models.fitting import FitSettings
from lightning_poison.runtime import LocalRuntime
from lightning_poison.sanitization import with_trusted
from lightning_poison.sanitization.job import Job
from lightning_poison.sanitization.set_scores import group_by_features, set_scores_with_trusted
from lightning_poison.sanitization.settings import DecisionSettings
from lightning_poison.sanitization.with_trusted import judge_with_trusted
from lightning_poison.sanitization.without_trusted import judge_without_trusted
from lightning_poison.scorers.combined import CombinedScorer
from lightning_poison.scorers.feature_model import FeatureModel
from lightning_poison.scorers.protocol import SetScorer

RUNTIME = LocalRuntime(precision="32", threads=1)
QUICK = FitSettings(epochs=1, batch_size=32, min_steps=60)


class Distance(SetScorer):
    """Squared distance to the mean of a class in the set itself."""

    name = "distance"
    scores_labels = True

    def __init__(self, model=None, name="distance"):
        self.name = name
        self.feature_model = model or FeatureModel(feature_size=8, fit_settings=QUICK)
        self.calls = []

    def __deepcopy__(self, memo):
        raise AssertionError("a set scorer has no state to copy")

    def score_features(self, features, labels):
        self.calls.append((features.shape, labels.clone()))
        return self.score_feature_labels(features, labels).gather(1, labels[:, None])[:, 0]

    def score_feature_labels(self, features, labels):
        self.calls.append((features.shape, labels.clone()))
        means = torch.stack([features[labels == number].mean(0) for number in range(int(labels.max()) + 1)])
        return (features[:, None] - means).square().sum(2)


class WithoutLabels(SetScorer):
    name = "alone"

    def __init__(self, model=None):
        self.feature_model = model or FeatureModel(nn.Flatten())
        self.inner = Distance(self.feature_model)

    def score_features(self, features, labels):
        return self.inner.score_features(features, labels)


def labeled(data):
    return read_labeled(open_source(data, sample=None), runtime=RUNTIME, name="data")


def job(data, scorer, *, runtime=RUNTIME, **settings):
    return Job(labeled(data), scorer, runtime, DecisionSettings(**settings))


def with_trusted_data(job, trusted):
    return judge_with_trusted(job, labeled(trusted))


def without_trusted_data(data, scorer, **parts):
    return judge_without_trusted(job(data, scorer, **parts))


def test_training_and_trusted_samples_form_one_set(blobs):
    data, trusted, scorer = blobs(600, flipped=30), blobs(300, seed=1), Distance(FeatureModel(nn.Flatten()))
    found = with_trusted_data(job(data, scorer), trusted)
    shape, labels = scorer.calls[0]
    assert shape == (900, 4)
    assert torch.equal(labels, torch.cat([data.tensors[1], trusted.tensors[1]]))
    assert float((~found.decision.keep)[570:].double().mean()) > 0.95
    assert float((~found.decision.keep)[:570].double().mean()) < 0.05
    assert found.suggested_labels.tolist() == (torch.arange(600) % 3).tolist()


def test_calibrates_on_all_trusted_samples(blobs):
    scorer = Distance(FeatureModel(nn.Flatten()))
    found = set_scores_with_trusted(job(blobs(60), scorer), [scorer], labeled(blobs(90, seed=1)), torch.arange(90), 0)
    assert [len(each.trusted) for each in found] == [90]
    assert [len(each.scores) for each in found] == [60]


def test_realized_rate_matches_stated_rate(blobs):
    found = with_trusted_data(
        job(blobs(3000), Distance(FeatureModel(nn.Flatten())), false_positive_rate=0.05), blobs(3000, seed=1)
    )
    assert 0.025 < float((~found.decision.keep).double().mean()) < 0.075


def test_trains_copy_of_network_on_both_sets(blobs, monkeypatch):
    seen = []
    fit = FeatureModel.fit
    monkeypatch.setattr(
        FeatureModel, "fit", lambda self, data, **parts: (seen.append(len(data)), fit(self, data, **parts))[1]
    )
    scorer = Distance()
    found = with_trusted_data(job(blobs(300, flipped=15), scorer), blobs(600, seed=1))
    assert seen == [900]
    assert not scorer.feature_model.is_fitted
    assert float((~found.decision.keep)[285:].double().mean()) > 0.9


@pytest.mark.slow
def test_result_does_not_depend_on_memory_limit(blobs, monkeypatch):
    data, trusted = blobs(300, flipped=15), blobs(600, seed=1)
    plain = with_trusted_data(job(data, Distance()), trusted)
    monkeypatch.setattr(labeled_data, "MEMORY_LIMIT", 0)
    large = with_trusted_data(job(data, Distance()), trusted)
    assert torch.equal(large.scores, plain.scores)


@pytest.mark.slow
def test_each_fold_is_a_set_without_trusted_data(blobs):
    data, scorer = blobs(600, flipped=30), Distance()
    found = without_trusted_data(data, scorer)
    assert len(scorer.calls) == 3
    assert sum(shape[0] for shape, _ in scorer.calls) == 600
    assert {shape[1] for shape, _ in scorer.calls} == {8}
    assert found.decision.evidence.present
    assert float((~found.decision.keep)[570:].double().mean()) > 0.9
    assert float((~found.decision.keep)[:570].double().mean()) < 0.02


def test_trained_network_reads_all_samples_without_trusted_data(blobs):
    scorer = Distance(FeatureModel(nn.Flatten()))
    found = without_trusted_data(blobs(600, flipped=30), scorer)
    assert [shape for shape, _ in scorer.calls] == [(600, 4)]
    assert found.decision.evidence.present


class KnowingGroups(Distance):
    """Records what it is told about groups."""

    def score_feature_labels(self, features, labels):
        self.known.append(self.sample_groups)
        return super().score_feature_labels(features, labels)


@pytest.mark.parametrize("model", [FeatureModel(nn.Flatten()), None], ids=["trained before", "trained on folds"])
def test_scorer_knows_the_groups_of_the_samples_that_it_scores(blobs, model):
    scorer = KnowingGroups(model)
    scorer.known = []
    data = labeled(blobs(90))
    grouped = replace(data, copies=Copies(torch.arange(90), torch.arange(90) // 6 * 6))
    judge_without_trusted(Job(grouped, scorer, RUNTIME))
    assert scorer.sample_groups is None
    assert sum(map(len, scorer.known)) == 90
    for groups in scorer.known:
        assert groups.unique(return_counts=True)[1].tolist() == [6] * (len(groups) // 6)


def test_scorer_without_label_scores_needs_trusted_data(blobs):
    with pytest.raises(ValueError, match=r"`trusted=` data, since the alone scorer cannot score"):
        without_trusted_data(blobs(60), WithoutLabels())
    found = with_trusted_data(job(blobs(300, flipped=15), WithoutLabels()), blobs(900, seed=1))
    assert found.suggested_labels.unique().tolist() == [-1]
    assert float((~found.decision.keep)[285:].double().mean()) > 0.9


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (torch.zeros(3), r"one for each of 360 samples, but got a float32 tensor"),
        (torch.full((360,), torch.nan), "finite numbers, but got NaN or infinite values at sample 0"),
    ],
)
def test_refuses_invalid_scores(blobs, scores, message):
    class Broken(WithoutLabels):
        name = "bro\x1bken"

        def score_features(self, features, labels):
            return scores

    with pytest.raises((PluginError, ValueError), match=message) as raised:
        with_trusted_data(job(blobs(60), Broken()), blobs(300, seed=1))
    assert "`score_features` of the scorer `bro\\x1bken`" in str(raised.value)


def test_scorers_share_features(blobs, monkeypatch):
    networks = [nn.Flatten(), nn.Flatten()]
    scorers = [
        Distance(FeatureModel(networks[0])),
        Distance(),
        Distance(FeatureModel(networks[1])),
        Distance(FeatureModel(networks[0])),
        Distance(FeatureModel(feature_size=9)),
        Distance(),
    ]
    assert group_by_features(scorers) == [[0, 3], [1, 5], [2], [4]]
    fits = []
    fit = FeatureModel.fit
    monkeypatch.setattr(FeatureModel, "fit", lambda self, data, **parts: (fits.append(1), fit(self, data, **parts))[1])
    with_trusted_data(job(blobs(300), CombinedScorer([Distance(), Distance(name="other")])), blobs(900, seed=1))
    assert len(fits) == 1


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_ranks_agree_with_one(blobs, several_ranks, size, monkeypatch):
    monkeypatch.setattr(inference, "BLOCK_SIZE", 64)
    monkeypatch.setattr(with_trusted, "ENOUGH_PER_CLASS", 0)
    data, trusted = blobs(200, flipped=20), blobs(300, seed=1)
    alone = without_trusted_data(data, Distance()), with_trusted_data(job(data, Distance()), trusted)
    works = (
        lambda runtime: without_trusted_data(data, Distance(), runtime=runtime),
        lambda runtime: with_trusted_data(job(data, Distance(), runtime=runtime), trusted),
    )
    for expected, work in zip(alone, works, strict=True):
        for found in several_ranks(size, work):
            assert torch.equal(found.scores, expected.scores)
            assert torch.equal(found.decision.keep, expected.decision.keep)


def test_combination_of_both_kinds(blobs, centroid_scorer):
    data, trusted = blobs(600, flipped=30), blobs(1500, seed=1)
    scorer = CombinedScorer([centroid_scorer(), Distance(FeatureModel(nn.Flatten()))])
    found = with_trusted_data(job(data, scorer), trusted)
    assert list(found.votes) == ["centroid", "distance"]
    assert all(float(votes[570:].max()) < 0.01 for votes in found.votes.values())
    assert float((~found.decision.keep)[570:].double().mean()) > 0.95
    assert float((~found.decision.keep)[:570].double().mean()) < 0.05
    assert found.suggested_labels.tolist() == (torch.arange(600) % 3).tolist()
    assert not any(getattr(member, "is_fitted", False) for member in scorer.members.values())


class Second(WithoutLabels):
    """Reads only the last coordinate."""

    name = "second"

    def score_features(self, features, labels):
        return features[:, -1].abs()


def test_combination_removes_what_one_member_detects(blobs, centroid_scorer):
    points, labels = blobs(600).tensors
    points[:20, -1] = 9
    scorer = CombinedScorer([Blind(), Second()])
    found = with_trusted_data(job(TensorDataset(points, labels), scorer), blobs(1500, seed=1))
    assert float((~found.decision.keep)[:20].double().mean()) > 0.95
    assert float(found.votes["second"][:20].max()) < 1e-3
    assert float(found.votes["blind"][:20].median()) > 0.05


class Blind(WithoutLabels):
    """Reads only the first coordinate."""

    name = "blind"

    def score_features(self, features, labels):
        return features[:, 0] - 6 * (labels == 0)


def test_combination_without_trusted_data(blobs, centroid_scorer):
    data = blobs(600, flipped=30)
    for how in ("max", "sum"):
        scorer = CombinedScorer([centroid_scorer(), Distance(FeatureModel(nn.Flatten()))], combine=how)
        found = without_trusted_data(data, scorer)
        assert found.decision.evidence.present
        assert float((~found.decision.keep)[570:].double().mean()) > 0.9
        assert float((~found.decision.keep)[:570].double().mean()) < 0.02
        assert list(found.votes) == ["centroid", "distance"]
        assert float(found.votes["centroid"][570:].max()) < float(found.votes["centroid"][:570].median())
    with pytest.raises(ValueError, match="since the alone scorer cannot score"):
        without_trusted_data(data, CombinedScorer([centroid_scorer(), WithoutLabels()]))


def test_refuses_too_few_trusted_samples_for_combination(blobs, centroid_scorer):
    points, labels = blobs(300).tensors
    keep = (labels != 2) | (torch.arange(300) < 9)
    few = TensorDataset(points[keep], labels[keep])
    scorer = CombinedScorer([centroid_scorer(), Distance(FeatureModel(nn.Flatten()))])
    with (
        pytest.warns(UserWarning, match="calibrated on"),
        pytest.raises(
            ValueError,
            match=r"held-out trusted samples of class 2 for a combination, but got 1\.\nMembers are compared",
        ),
    ):
        with_trusted_data(job(blobs(60), scorer), few)


class Checking(Distance):
    """A scorer that needs many samples of each class."""

    def check_set(self, labels):
        if int(labels.bincount().min()) < 50:
            raise ValueError("Expected 50 samples a class.")


@pytest.mark.filterwarnings("ignore:The false-positive rate is calibrated on:UserWarning")
def test_refuses_set_before_training_network(blobs, monkeypatch):
    monkeypatch.setattr(FeatureModel, "fit", lambda *_, **__: pytest.fail("it was trained"))
    with pytest.raises(ValueError, match="50 samples a class"):
        with_trusted_data(job(blobs(60), Checking()), blobs(60, seed=1))
    with pytest.raises(ValueError, match=r"50 samples a class.\nThis is fold 1 of 3: fewer folds leave more"):
        without_trusted_data(blobs(300), Checking())
    with pytest.raises(ValueError, match="50 samples a class"):
        without_trusted_data(blobs(60), Checking(FeatureModel(nn.Flatten())))


def test_ignores_trusted_classes_that_do_not_occur(blobs):
    judged, trusted = blobs(200, classes=2, flipped=10), blobs(600, seed=1)
    scorer = Distance(FeatureModel(nn.Flatten()))
    found = with_trusted_data(job(judged, scorer), trusted)
    assert scorer.calls[0][1].unique().tolist() == [0, 1]
    assert len(scorer.calls[0][1]) == 200 + 400
    assert float((~found.decision.keep)[190:].double().mean()) > 0.9


def test_refuses_member_that_needs_trusted_data_before_fit(blobs, centroid_scorer):
    first = centroid_scorer()
    with pytest.raises(ValueError, match=r"`trusted=` data, since the alone scorer cannot score"):
        without_trusted_data(blobs(60), CombinedScorer([first, WithoutLabels()]))
    assert first.fits == []
