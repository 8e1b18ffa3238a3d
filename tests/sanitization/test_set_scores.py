from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from lightning_poison.data import in_memory, inference
from lightning_poison.data.in_memory import Held
from lightning_poison.data.labels import labels_of
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.models.fitting import FitSettings
from lightning_poison.runtime import LocalRuntime
from lightning_poison.sanitization import with_trusted
from lightning_poison.sanitization.job import Job
from lightning_poison.sanitization.set_scores import group_by_features, score_sets_by_trusted
from lightning_poison.sanitization.with_trusted import judge_by_trusted
from lightning_poison.sanitization.without_trusted import judge_untrusted
from lightning_poison.scorers.combined import CombinedScorer
from lightning_poison.scorers.feature_model import FeatureModel

RUNTIME = LocalRuntime(precision="32", threads=1)
QUICK = FitSettings(epochs=1, batch_size=32, min_steps=60)


class Distance:
    """Squared distance to the mean of a class in the very set that it is asked about."""

    is_control = False

    def __init__(self, model=None, name="distance"):
        self.name = name
        self.feature_model = model or FeatureModel(feature_size=8, fit_settings=QUICK)
        self.asked = []

    def __deepcopy__(self, memo):
        raise AssertionError("it has no state, and need not be copied")

    def score_features(self, features, labels):
        self.asked.append((features.shape, labels.clone()))
        return self.score_feature_labels(features, labels).gather(1, labels[:, None])[:, 0]

    def score_feature_labels(self, features, labels):
        self.asked.append((features.shape, labels.clone()))
        means = torch.stack([features[labels == number].mean(0) for number in range(int(labels.max()) + 1)])
        return (features[:, None] - means).square().sum(2)


class WithoutLabels:
    name, is_control = "alone", False

    def __init__(self, model=None):
        self.feature_model = model or FeatureModel(nn.Flatten())
        self.inner = Distance(self.feature_model)

    def score_features(self, features, labels):
        return self.inner.score_features(features, labels)


def job(data, scorer, **parts):
    sample = SampleSpec()
    return replace(Job(data, labels_of(data, sample), scorer, sample, RUNTIME, 0, 0.01, 0.003), **parts)


def held(data):
    return Held(data, SampleSpec(), labels_of(data))


def trusting(job, trusted):
    return judge_by_trusted(job, held(trusted))


def untrusted(data, scorer, **parts):
    return judge_untrusted(job(data, scorer, **parts), folds=3, remove_without_evidence=False)


def test_judged_and_trusted_samples_are_one_set(blobs):
    data, trusted, scorer = blobs(600, flipped=30), blobs(300, seed=1), Distance(FeatureModel(nn.Flatten()))
    found = trusting(job(data, scorer), trusted)
    shape, labels = scorer.asked[0]
    assert shape == (900, 4)
    assert torch.equal(labels, torch.cat([data.tensors[1], trusted.tensors[1]]))
    assert float((~found.decision.keep)[570:].double().mean()) > 0.95
    assert float((~found.decision.keep)[:570].double().mean()) < 0.05
    assert found.suggested_labels.tolist() == (torch.arange(600) % 3).tolist()


def test_all_trusted_samples_calibrate(blobs):
    scorer = Distance(FeatureModel(nn.Flatten()))
    found = score_sets_by_trusted(job(blobs(60), scorer), [scorer], held(blobs(90, seed=1)), torch.arange(90), 0)
    assert [len(each.trusted) for each in found] == [90]
    assert [len(each.scores) for each in found] == [60]


def test_clean_samples_are_lost_as_often_as_stated(blobs):
    found = trusting(
        job(blobs(3000), Distance(FeatureModel(nn.Flatten())), false_positive_rate=0.05), blobs(3000, seed=1)
    )
    assert 0.025 < float((~found.decision.keep).double().mean()) < 0.075


def test_a_network_of_its_own_is_trained_on_both_and_left_unfitted(blobs, monkeypatch):
    seen = []
    fit = FeatureModel.fit
    monkeypatch.setattr(
        FeatureModel, "fit", lambda self, data, **parts: (seen.append(len(data)), fit(self, data, **parts))[1]
    )
    scorer = Distance()
    found = trusting(job(blobs(300, flipped=15), scorer), blobs(600, seed=1))
    assert seen == [900]
    assert not scorer.feature_model.is_fitted
    assert float((~found.decision.keep)[285:].double().mean()) > 0.9


def test_data_of_any_size_give_the_same(blobs, monkeypatch):
    data, trusted = blobs(300, flipped=15), blobs(600, seed=1)
    plain = trusting(job(data, Distance()), trusted)
    monkeypatch.setattr(in_memory, "MEMORY_LIMIT", 0)
    large = trusting(job(data, Distance()), trusted)
    assert torch.equal(large.scores, plain.scores)


def test_without_trusted_data_each_fold_is_a_set(blobs):
    data, scorer = blobs(600, flipped=30), Distance()
    found = untrusted(data, scorer)
    assert len(scorer.asked) == 3
    assert sum(shape[0] for shape, _ in scorer.asked) == 600
    assert {shape[1] for shape, _ in scorer.asked} == {8}
    assert found.decision.evidence.present
    assert float((~found.decision.keep)[570:].double().mean()) > 0.9
    assert float((~found.decision.keep)[:570].double().mean()) < 0.02


def test_without_trusted_data_a_network_that_was_handed_in_sees_all(blobs):
    scorer = Distance(FeatureModel(nn.Flatten()))
    found = untrusted(blobs(600, flipped=30), scorer)
    assert [shape for shape, _ in scorer.asked] == [(600, 4)]
    assert found.decision.evidence.present


def test_one_that_knows_its_own_label_alone_needs_trusted_data(blobs):
    with pytest.raises(ValueError, match=r"`trusted=` data, since the alone scorer cannot be asked"):
        untrusted(blobs(60), WithoutLabels())
    found = trusting(job(blobs(300, flipped=15), WithoutLabels()), blobs(900, seed=1))
    assert found.suggested_labels.unique().tolist() == [-1]
    assert float((~found.decision.keep)[285:].double().mean()) > 0.9


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (torch.zeros(3), "one for each of 360 samples, but got a float32 tensor"),
        (torch.full((360,), torch.nan), "finite"),
    ],
)
def test_scores_that_are_none(blobs, scores, message):
    class Broken(WithoutLabels):
        name = "bro\x1bken"

        def score_features(self, features, labels):
            return scores

    with pytest.raises(ValueError, match=message) as raised:
        trusting(job(blobs(60), Broken()), blobs(300, seed=1))
    assert "the scores of bro\\x1bken" in str(raised.value)


def test_scorers_that_look_at_the_same_features_share_them(blobs, monkeypatch):
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
    trusting(job(blobs(300), CombinedScorer([Distance(), Distance(name="other")])), blobs(900, seed=1))
    assert len(fits) == 1


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_agree_with_one(blobs, several_ranks, size, monkeypatch):
    monkeypatch.setattr(inference, "BLOCK_SIZE", 64)
    monkeypatch.setattr(with_trusted, "ENOUGH_PER_CLASS", 0)
    data, trusted = blobs(200, flipped=20), blobs(300, seed=1)
    alone = untrusted(data, Distance()), trusting(job(data, Distance()), trusted)
    works = (
        lambda runtime: untrusted(data, Distance(), runtime=runtime),
        lambda runtime: trusting(job(data, Distance(), runtime=runtime), trusted),
    )
    for expected, work in zip(alone, works, strict=True):
        for found in several_ranks(size, work):
            assert torch.equal(found.scores, expected.scores)
            assert torch.equal(found.decision.keep, expected.decision.keep)


def test_a_combination_of_both_kinds(blobs, centroid_scorer):
    data, trusted = blobs(600, flipped=30), blobs(1500, seed=1)
    scorer = CombinedScorer([centroid_scorer(), Distance(FeatureModel(nn.Flatten()))])
    found = trusting(job(data, scorer), trusted)
    assert list(found.votes) == ["centroid", "distance"]
    assert all(float(votes[570:].max()) < 0.01 for votes in found.votes.values())
    assert float((~found.decision.keep)[570:].double().mean()) > 0.95
    assert float((~found.decision.keep)[:570].double().mean()) < 0.05
    assert found.suggested_labels.tolist() == (torch.arange(600) % 3).tolist()
    assert not any(getattr(member, "is_fitted", False) for member in scorer.members.values())


class Second(WithoutLabels):
    """Sees the last coordinate alone."""

    name = "second"

    def score_features(self, features, labels):
        return features[:, -1].abs()


def test_what_one_member_alone_sees_is_caught_and_its_vote_kept(blobs, centroid_scorer):
    points, labels = blobs(600).tensors
    points[:20, -1] = 9
    scorer = CombinedScorer([Blind(), Second()])
    found = trusting(job(TensorDataset(points, labels), scorer), blobs(1500, seed=1))
    assert float((~found.decision.keep)[:20].double().mean()) > 0.95
    assert float(found.votes["second"][:20].max()) < 1e-3
    assert float(found.votes["blind"][:20].median()) > 0.05


class Blind(WithoutLabels):
    """Sees the first coordinate alone, and takes nothing from the label."""

    name = "blind"

    def score_features(self, features, labels):
        return features[:, 0] - 6 * (labels == 0)


def test_a_combination_without_trusted_data(blobs, centroid_scorer):
    data = blobs(600, flipped=30)
    for how in ("max", "sum"):
        scorer = CombinedScorer([centroid_scorer(), Distance(FeatureModel(nn.Flatten()))], combine=how)
        found = untrusted(data, scorer)
        assert found.decision.evidence.present
        assert float((~found.decision.keep)[570:].double().mean()) > 0.9
        assert float((~found.decision.keep)[:570].double().mean()) < 0.02
        assert list(found.votes) == ["centroid", "distance"]
        assert float(found.votes["centroid"][570:].max()) < float(found.votes["centroid"][:570].median())
    with pytest.raises(ValueError, match="since the alone scorer cannot be asked"):
        untrusted(data, CombinedScorer([centroid_scorer(), WithoutLabels()]))


def test_too_few_trusted_samples_for_two_halves(blobs, centroid_scorer):
    points, labels = blobs(300).tensors
    keep = (labels != 2) | (torch.arange(300) < 9)
    few = TensorDataset(points[keep], labels[keep])
    scorer = CombinedScorer([centroid_scorer(), Distance(FeatureModel(nn.Flatten()))])
    with (
        pytest.warns(UserWarning, match="calibrated on"),
        pytest.raises(
            ValueError, match=r"held-out trusted samples of class 2 for a combination, but got 1\.\nOne half"
        ),
    ):
        trusting(job(blobs(60), scorer), few)


class Checking(Distance):
    """One that wants many samples of each class, and says so beforehand."""

    def check_labels(self, labels):
        if int(labels.bincount().min()) < 50:
            raise ValueError("Expected 50 samples a class.")


@pytest.mark.filterwarnings("ignore:The false-positive rate is calibrated on:UserWarning")
def test_a_set_that_cannot_be_judged_is_refused_before_a_network_is_trained(blobs, monkeypatch):
    monkeypatch.setattr(FeatureModel, "fit", lambda *_, **__: pytest.fail("it was trained"))
    with pytest.raises(ValueError, match="50 samples a class"):
        trusting(job(blobs(60), Checking()), blobs(60, seed=1))
    with pytest.raises(ValueError, match=r"50 samples a class.\nThat is fold 1 of 3: fewer folds leave more"):
        untrusted(blobs(300), Checking())
    with pytest.raises(ValueError, match="50 samples a class"):
        untrusted(blobs(60), Checking(FeatureModel(nn.Flatten())))


def test_trusted_classes_that_are_not_judged_are_left_out(blobs):
    judged, trusted = blobs(200, classes=2, flipped=10), blobs(600, seed=1)
    scorer = Distance(FeatureModel(nn.Flatten()))
    found = trusting(job(judged, scorer), trusted)
    assert scorer.asked[0][1].unique().tolist() == [0, 1]
    assert len(scorer.asked[0][1]) == 200 + 400
    assert float((~found.decision.keep)[190:].double().mean()) > 0.9


def test_members_that_need_trusted_data_are_named_before_anything_is_fitted(blobs, centroid_scorer):
    first = centroid_scorer()
    with pytest.raises(ValueError, match=r"`trusted=` data, since the alone scorer cannot be asked"):
        untrusted(blobs(60), CombinedScorer([first, WithoutLabels()]))
    assert first.fits == []
