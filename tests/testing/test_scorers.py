"""Each rule of the scorer suite is broken once."""

import pytest
import torch

from lightning_poison.data.labels import labels_of
from lightning_poison.errors import NotFittedError, PluginError
from lightning_poison.models.fitting import FitSettings
from lightning_poison.scorers.likelihood import LikelihoodScorer
from lightning_poison.testing.scorers import check_scorer
from lightning_poison.testing.tiny_images import TinyImages


class Center:
    """A lawful scorer: the distance to the mean of the class."""

    name = "center"
    is_control = False

    def __init__(self):
        self.means = None

    @property
    def is_fitted(self):
        return self.means is not None

    def fit(self, trusted, *, runtime=None, generator=None):
        inputs = torch.stack([trusted[index][0].flatten() for index in range(len(trusted))])
        labels = labels_of(trusted)
        self.means = torch.stack([inputs[labels == label].mean(0) for label in labels.unique()])
        return self

    def score_labels(self, inputs):
        return torch.cdist(inputs.flatten(1), self.means)

    def score_batch(self, inputs, labels):
        if self.means is None:
            raise NotFittedError
        return self.score_labels(inputs).gather(1, labels[:, None])[:, 0]

    def settings(self):
        return {"distance": "euclidean"}

    def state(self):
        return {"means": self.means}

    def load(self, state):
        self.means = state["means"]
        return self


def test_a_lawful_scorer_passes_as_class_factory_and_object():
    check_scorer(Center, separates=True)
    check_scorer(lambda: Center())
    check_scorer(Center().fit(TinyImages()), TinyImages(30, channels=3), separates=True)


def test_the_scorer_itself_is_not_fitted():
    scorer = Center()
    check_scorer(scorer)
    assert not scorer.is_fitted


def test_the_likelihood_scorer_passes():
    settings = FitSettings(epochs=5, batch_size=32, min_steps=30)
    check_scorer(lambda: LikelihoodScorer(fit_settings=settings), separates=True)


def after_fit(act):
    def fit(self, trusted, *, runtime=None, generator=None):
        Center.fit(self, trusted)
        return act(self, trusted, generator)

    return fit


def scored(change):
    def score_batch(self, inputs, labels):
        return change(Center.score_batch(self, inputs, labels), labels)

    return score_batch


BROKEN = {
    "settings": ({"settings": lambda self: {"net": self}}, "settings that JSON can hold"),
    "fit returns": ({"fit": after_fit(lambda self, *_: None)}, "return itself from `fit`"),
    "global state": (
        {"fit": after_fit(lambda self, *_: (torch.rand(1), self)[1])},
        "leave the global random states alone",
    ),
    "data": (
        {"fit": after_fit(lambda self, data, _: (data.data[3].zero_(), self)[1])},
        "leave the data as it found them, but got another sample 3",
    ),
    "not repeated": (
        {"fit": after_fit(lambda self, *_: (setattr(self, "means", self.means + id(self) % 9973), self)[1])},
        "score alike after fits with the same generator",
    ),
    "scores unfitted": ({"score_batch": lambda self, inputs, labels: inputs.flatten(1).sum(1)}, "NotFittedError"),
    "shape": ({"score_batch": scored(lambda scores, _: scores[:, None])}, r"float32 scores \(60,\)"),
    "dtype": ({"score_batch": scored(lambda scores, _: scores.double())}, "float32 scores.*float64"),
    "finite": ({"score_batch": scored(lambda scores, _: scores / 0)}, "finite scores"),
    "batch": (
        {"score_batch": scored(lambda scores, _: scores - scores.mean())},
        "alike in any batch",
    ),
    "score_labels": (
        {"score_batch": scored(lambda scores, _: scores + 1)},
        r"agree with `score_batch` in `score_labels`",
    ),
    "state": ({"state": lambda self: {"means": self.means.tolist()}}, "state of tensors"),
    "load": ({"state": lambda self: {"means": self.means + 1}}, r"score alike after `load\(state\(\)\)`"),
    "name": ({"name": 3}, "`name` that is a string"),
    "control": ({"is_control": None}, "True or False"),
    "method": ({"load": None, "state": None}, "all that a Scorer has"),
}


@pytest.mark.parametrize(("parts", "said"), BROKEN.values(), ids=BROKEN.keys())
def test_each_rule_shows(parts, said):
    with pytest.raises(PluginError, match=f"(?s){said}"):
        check_scorer(type("Broken", (Center,), parts), separates=True)


def test_a_wrong_sign_shows_where_separation_is_asked_for():
    class Upside(Center):
        def score_labels(self, inputs):
            return -super().score_labels(inputs)

    check_scorer(Upside)
    with pytest.raises(PluginError, match=r"wrong labels higher.*but got 0\.0"):
        check_scorer(Upside, separates=True)


class Whole:
    name, is_control = "whole", False

    def __init__(self, factor=1.0):
        self.factor = factor

    def score_features(self, features, labels):
        return (features.sum(1) * self.factor).float()


def test_a_scorer_of_feature_sets():
    check_scorer(Whole)
    with pytest.raises(PluginError, match="finite"):
        check_scorer(Whole(float("nan")))


def test_a_scorer_of_feature_sets_that_draws_without_a_generator():
    class Random(Whole):
        def score_features(self, features, labels):
            return torch.rand(len(features))

    with pytest.raises(PluginError, match="the same features alike"):
        check_scorer(Random)


def test_a_scorer_of_feature_sets_that_changes_what_it_is_given():
    class Greedy(Whole):
        def score_features(self, features, labels):
            return features.sub_(features.mean(0)).sum(1)

    with pytest.raises(PluginError, match="leave features and labels as it found them"):
        check_scorer(Greedy)


def test_a_scorer_of_feature_sets_whose_settings_are_no_json():
    class Odd(Whole):
        def settings(self):
            return {"where": torch.zeros(1)}

    with pytest.raises(PluginError, match="settings that JSON can hold"):
        check_scorer(Odd)


def test_a_scorer_of_feature_sets_must_agree_with_itself_under_labels():
    class Labeled(Whole):
        shift = 0.0

        def score_feature_labels(self, features, labels):
            each = self.score_features(features, labels)
            return each[:, None].expand(-1, int(labels.max()) + 1) + self.shift

    class Shifted(Labeled):
        shift = 1.0

    check_scorer(Labeled)
    with pytest.raises(PluginError, match=r"agree with `score_features` in `score_feature_labels` \(N, C\)"):
        check_scorer(Shifted)
