from contextlib import contextmanager
from itertools import takewhile

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.utils.data import TensorDataset

from lightning_poison.runtime import LocalRuntime, SilentProgress
from lightning_poison.sanitization.pipeline import sanitize
from lightning_poison.scorers import linear_probe
from lightning_poison.scorers.feature_model import FeatureModel
from lightning_poison.scorers.linear_probe import LinearProbeScorer
from lightning_poison.statistics import row_blocks
from lightning_poison.testing.scorers import check_scorer


def blobs(count=300, classes=3, size=6, distance=4.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    return torch.randn(count, size, generator=generator) + distance * torch.eye(size)[labels], labels


def flipped(labels, count, classes=3):
    wrong = labels.clone()
    wrong[:count] = (wrong[:count] + 1) % classes
    return wrong


def test_scorer_fulfills_the_contract():
    check_scorer(LinearProbeScorer(FeatureModel(nn.Flatten())))


def test_scores_are_out_of_fold_probabilities():
    features, labels = blobs()
    scores = LinearProbeScorer().score_feature_labels(features, labels)
    assert scores.shape == (300, 3)
    torch.testing.assert_close((-scores).exp().sum(1), torch.ones(300))
    own = LinearProbeScorer().score_features(features, labels)
    assert torch.equal(own, scores.gather(1, labels[:, None])[:, 0])


def test_progress_is_shown_for_each_classifier(monkeypatch):
    seen = []

    class Recording(LocalRuntime):
        @contextmanager
        def progress(self, total, description):
            seen.append((description, total))
            yield self

        def advance(self, steps=1):
            seen.append(steps)

    data = TensorDataset(*blobs())
    sanitize(data, LinearProbeScorer(FeatureModel(nn.Flatten())), runtime=Recording())
    (place,) = (place for place, each in enumerate(seen) if each == ("Fitting linear classifiers", 13))
    (_, total), steps = seen[place], list(takewhile(lambda each: isinstance(each, int), seen[place + 1 :]))
    assert sum(steps) == total
    assert len(steps) >= 6  # at least two penalties, and four other folds


def test_wrong_labels_rank_first():
    features, labels = blobs()
    scores = LinearProbeScorer().score_features(features, flipped(labels, 30))
    assert roc_auc_score(torch.arange(300) < 30, scores) > 0.95


def test_random_labels_are_not_learned():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(200, 150, generator=generator)
    scores = LinearProbeScorer().score_feature_labels(features, torch.arange(200) % 2)
    correct = float((scores.argmin(1) == torch.arange(200) % 2).double().mean())
    assert 0.3 < correct < 0.65  # in-sample, 150 features separate 200 points


def test_no_model_scores_a_copy_of_what_it_was_fitted_on():
    features, labels = blobs(120, size=80)
    labels = flipped(labels, 12)
    wrong = torch.arange(120) < 12
    alone = roc_auc_score(wrong, LinearProbeScorer().score_features(features, labels))
    copied = roc_auc_score(wrong.repeat(6), LinearProbeScorer().score_features(features.repeat(6, 1), labels.repeat(6)))
    assert alone > 0.8
    assert copied > alone - 0.05


def test_scale_and_constant_features_do_not_matter():
    features, labels = blobs()
    scale = torch.logspace(-3, 3, 6)
    odd = torch.cat([scale * (10 + features), torch.full((300, 1), 7.0)], 1)
    expected = LinearProbeScorer().score_feature_labels(features, labels)
    torch.testing.assert_close(LinearProbeScorer().score_feature_labels(odd, labels), expected, rtol=0.05, atol=0.05)


def test_same_seed_gives_the_same_scores_and_another_one_other_folds():
    features, labels = blobs()
    first, second, other = (LinearProbeScorer(seed=seed).score_features(features, labels) for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_small_classes_reduce_the_number_of_folds():
    features, labels = blobs(60)
    labels = torch.where(torch.arange(60) < 57, labels % 2, 2)
    assert LinearProbeScorer(folds=5).score_feature_labels(features, labels).shape == (60, 3)


def test_gaps_in_the_labels():
    features, labels = blobs(100, classes=2)
    scores = LinearProbeScorer().score_feature_labels(features, labels * 4)
    assert scores.shape == (100, 5)
    assert torch.isfinite(scores).all()
    assert set(scores.argmin(1).tolist()) == {0, 4}


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (torch.eye(4), torch.tensor([0, 0, 0, 1]), "at least 2 samples per class"),
        (torch.ones(4, 3), torch.tensor([0, 0, 1, 1]), "different from sample to sample"),
        (torch.eye(4) / 0, torch.tensor([0, 0, 1, 1]), "finite"),
        (torch.eye(4), torch.tensor([0, 0, 1]), "one for each of the 4"),
    ],
)
def test_sets_that_cannot_be_scored(features, labels, message):
    with pytest.raises(ValueError, match=message):
        LinearProbeScorer().score_features(features, labels)


@pytest.mark.parametrize("settings", [{"folds": 1}, {"folds": 2.5}, {"seed": -1}])
def test_arguments_out_of_range(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        LinearProbeScorer(**settings)


def test_settings_and_repr():
    assert repr(LinearProbeScorer()) == "LinearProbeScorer(feature_model=FeatureModel('auto'))"
    settings = LinearProbeScorer(folds=3).settings()
    assert settings["folds"] == 3
    assert settings["feature_model"]["model"] == "auto"


def test_groups_are_not_separated():
    """Each patient has features of its own, by which a classifier recognizes its wrong label."""
    generator = torch.Generator().manual_seed(0)
    patient = torch.arange(600) // 10
    truth = patient % 2
    features = torch.randn(60, 40, generator=generator)[patient] + 0.1 * torch.randn(600, 40, generator=generator)
    features[:, 0] += 8 * truth
    labels = truth.clone()
    labels[:20] = 1 - labels[:20]  # two patients
    alone, grouped = LinearProbeScorer(), LinearProbeScorer()
    grouped.sample_groups = patient
    found = [scorer.score_features(features, labels)[:20].mean() for scorer in (alone, grouped)]
    assert found[1] > found[0] + 1


def test_blocks_of_samples_do_not_matter(monkeypatch):
    features, labels = blobs()
    whole = LinearProbeScorer().score_feature_labels(features, labels)
    for module in (row_blocks, linear_probe):
        monkeypatch.setattr(module, "AT_ONCE", 100)
    parts = LinearProbeScorer().score_feature_labels(features, labels)
    torch.testing.assert_close((-parts).exp(), (-whole).exp(), rtol=0, atol=5e-3)  # fits end where they are nearly flat


@pytest.mark.parametrize(("distance", "is_strong"), [(4.0, False), (0.0, True)])
def test_search_that_begins_in_the_middle_finds_the_same_penalty(distance, is_strong, monkeypatch):
    """Labels that the features do not show ask for a stronger penalty than that in the middle."""
    features, labels = blobs(distance=distance)
    fit = linear_probe._fit_of(features[100:], labels[100:], 3)
    parts = (fit, features[:100], labels[:100], 300, 3)
    penalty, coefficients = linear_probe._fit_best(*parts, SilentProgress())
    monkeypatch.setattr(linear_probe, "_MANY", 0)
    found, others = linear_probe._fit_best(*parts, SilentProgress())
    assert found == penalty
    assert (penalty > linear_probe._PENALTIES[linear_probe._MIDDLE]) == is_strong
    torch.testing.assert_close(others, coefficients, rtol=0, atol=2e-3)


def test_accelerated_fits_give_the_same_scores(monkeypatch):
    features, labels = blobs(distance=2.0)
    expected = LinearProbeScorer().score_feature_labels(features, labels)
    monkeypatch.setattr(linear_probe, "_MANY_CLASSES", 2)
    scores = LinearProbeScorer().score_feature_labels(features, labels)
    assert not torch.equal(scores, expected)
    torch.testing.assert_close((-scores).exp(), (-expected).exp(), rtol=0, atol=5e-3)


def test_many_classes_of_two_samples():
    """Each fold has one sample of a class, some features do not vary, and others depend on each other."""
    features = torch.eye(30).repeat_interleave(5, 0) + 0.05 * torch.randn(
        150, 30, generator=torch.Generator().manual_seed(0)
    )
    features = torch.cat([features, features[:, :3], torch.ones(150, 2)], 1).repeat(2, 1)
    features[150:] += 1e-3
    labels = torch.arange(150).repeat(2)
    scores = LinearProbeScorer().score_feature_labels(features, labels)
    assert bool(scores.isfinite().all())
    assert float((scores.argmin(1) // 5 == labels // 5).double().mean()) == 1
