"""Each rule of the conformance suite for scorers is violated once."""

import pytest
import torch

from lightning_poison.data.labels import labels_of
from lightning_poison.errors import PluginError
from lightning_poison.models.fitting import FitSettings
from lightning_poison.scorers.combined import CombinedScorer
from lightning_poison.scorers.likelihood import LikelihoodScorer
from lightning_poison.scorers.protocol import Scorer, SetScorer
from lightning_poison.testing.scorers import check_scorer
from lightning_poison.testing.tiny_images import TinyImages


class Center(Scorer):
    """A compliant scorer: the distance to the mean of the class."""

    name = "center"
    scores_labels = True
    fitted_tensors = ("means",)

    def fit(self, trusted, *, runtime=None, generator=None):
        inputs = torch.stack([trusted[index][0].flatten() for index in range(len(trusted))])
        labels = labels_of(trusted)
        self.means = torch.stack([inputs[labels == label].mean(0) for label in labels.unique()])
        return self

    def score_labels(self, inputs):
        self.check_fitted()
        return torch.cdist(inputs.flatten(1), self.means)


class Total(SetScorer):
    """A compliant set scorer: the sum of the features."""

    name = "total"

    def __init__(self, factor=1.0):
        self.factor = factor

    def score_features(self, features, labels):
        return (features.sum(1) * self.factor).float()


def test_compliant_scorer_passes_as_class_factory_and_object():
    check_scorer(Center, separates=True)
    check_scorer(lambda: Center())
    check_scorer(Center().fit(TinyImages()), TinyImages(30, channels=3), separates=True)


def test_scorer_does_not_change():
    scorer = Center()
    check_scorer(scorer)
    assert not scorer.is_fitted


@pytest.mark.slow
def test_likelihood_scorer_passes():
    settings = FitSettings(epochs=5, batch_size=32, min_steps=30)
    check_scorer(lambda: LikelihoodScorer(fit_settings=settings), separates=True)


def after_fit(act):
    def fit(self, trusted, *, runtime=None, generator=None):
        Center.fit(self, trusted)
        return act(self, trusted, generator)

    return fit


def with_scores(change):
    def score_batch(self, inputs, labels):
        return change(Center.score_batch(self, inputs, labels), labels)

    return score_batch


VIOLATIONS = {
    "settings": ({"settings": lambda self: {"net": self}}, "have settings of JSON values"),
    "fit returns": ({"fit": after_fit(lambda self, *_: None)}, "return itself from `fit`"),
    "global state": (
        {"fit": after_fit(lambda self, *_: (torch.rand(1), self)[1])},
        "leave the global random states unchanged",
    ),
    "data": (
        {"fit": after_fit(lambda self, data, _: (data.data[3].zero_(), self)[1])},
        "leave the data unchanged, but got a change of sample 3",
    ),
    "not repeated": (
        {"fit": after_fit(lambda self, *_: (setattr(self, "means", self.means + id(self) % 9973), self)[1])},
        "give the same scores after fits with the same generator",
    ),
    "not fitted": ({"fit": lambda self, trusted, **_: self}, "be fitted after `fit`"),
    "scores unfitted": ({"score_batch": lambda self, inputs, labels: inputs.flatten(1).sum(1)}, "NotFittedError"),
    "shape": ({"score_batch": with_scores(lambda scores, _: scores[:, None])}, r"float32 scores \(60,\)"),
    "dtype": ({"score_batch": with_scores(lambda scores, _: scores.double())}, "float32 scores.*float64"),
    "finite": ({"score_batch": with_scores(lambda scores, _: scores / 0)}, "finite scores"),
    "batch": (
        {"score_batch": with_scores(lambda scores, _: scores - scores.mean())},
        "the same score in any batch",
    ),
    "score_labels": (
        {"score_batch": with_scores(lambda scores, _: scores + 1)},
        r"agree with `score_batch` in `score_labels`",
    ),
    "state": ({"state": lambda self: {"means": self.means.tolist()}}, "state of tensors"),
    "load": ({"state": lambda self: {"means": self.means + 1}}, r"the same scores after `load\(state\(\)\)`"),
    "name": ({"name": 3}, "`name` that is a string"),
    "control": ({"is_control": None}, "True or False"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("parts", "message"), VIOLATIONS.values(), ids=VIOLATIONS.keys())
def test_reports_each_violation(parts, message):
    with pytest.raises(PluginError, match=f"(?s){message}"):
        check_scorer(type("Broken", (Center,), parts), separates=True)


def test_reports_class_without_base():
    class Unrelated:
        name, is_control = "unrelated", False

        def score_features(self, features, labels):
            return features.sum(1)

    with pytest.raises(PluginError, match="`unrelated` to be derived from `Scorer` or `SetScorer`, but got Unrelated"):
        check_scorer(Unrelated)


def test_reports_wrong_sign_if_separates_is_set():
    class Inverted(Center):
        def score_labels(self, inputs):
            return -super().score_labels(inputs)

    check_scorer(Inverted)
    with pytest.raises(PluginError, match=r"wrong labels higher.*but got 0\.0"):
        check_scorer(Inverted, separates=True)


def test_compliant_set_scorer_passes():
    check_scorer(Total)
    with pytest.raises(PluginError, match="finite"):
        check_scorer(Total(1e39))


def test_checks_members_of_a_combination():
    check_scorer(CombinedScorer([Center(), Total()]))
    with pytest.raises(PluginError, match="the scorer `total` to return finite scores"):
        check_scorer(CombinedScorer([Center(), Total(1e39)]))


def test_reports_set_scorer_that_draws_without_a_generator():
    class Random(Total):
        def score_features(self, features, labels):
            return torch.rand(len(features))

    with pytest.raises(PluginError, match="the same scores for the same features"):
        check_scorer(Random)


def test_reports_set_scorer_that_changes_features():
    class InPlace(Total):
        def score_features(self, features, labels):
            return features.sub_(features.mean(0)).sum(1)

    with pytest.raises(PluginError, match="leave features and labels unchanged"):
        check_scorer(InPlace)


def test_reports_set_scorer_whose_settings_are_not_json():
    class WithTensor(Total):
        def settings(self):
            return {"where": torch.zeros(1)}

    with pytest.raises(PluginError, match="have settings of JSON values"):
        check_scorer(WithTensor)


def test_reports_set_scorer_whose_label_scores_disagree():
    class Labeled(Total):
        scores_labels = True
        shift = 0.0

        def score_feature_labels(self, features, labels):
            scores = self.score_features(features, labels)
            return scores[:, None].expand(-1, int(labels.max()) + 1) + self.shift

    class Shifted(Labeled):
        shift = 1.0

    check_scorer(Labeled)
    with pytest.raises(PluginError, match=r"agree with `score_features` in `score_feature_labels` \(N, C\)"):
        check_scorer(Shifted)
