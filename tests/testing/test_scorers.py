"""Each rule of the conformance suite for scorers is violated once."""

import sys

import pytest
import torch

from lightning_poison.data.labels import labels_of
from lightning_poison.errors import NotFittedError, PluginError
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


def label_scores(change):
    def score_labels(self, inputs):
        self.check_fitted()
        return change(torch.cdist(inputs.flatten(1), self.means))

    return score_labels


def score_own(self, inputs, labels):
    self.check_fitted()
    return torch.cdist(inputs.flatten(1), self.means).gather(1, labels[:, None])[:, 0]


OWN = {"score_batch": score_own}


def raise_(error):
    raise error


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
    "fit without generator": (
        {"fit": lambda self, trusted: self},
        r"define `fit\(self, trusted, \*, runtime=None, generator=None\)`, but got fit\(trusted\)",
    ),
    "score_labels with labels": (
        {"score_labels": lambda self, inputs, labels: inputs},
        r"define `score_labels\(self, inputs\)`, but got score_labels\(inputs, labels\)",
    ),
    "rehearse": (
        {"rehearse": lambda self, trusted: 3},
        r"define `rehearse\(self, trusted, \*, steps=None, runtime=None\)`",
    ),
    "fit raises": (
        {"fit": after_fit(lambda self, *_: self.missing)},
        "`fit` of the scorer `center` to.*AttributeError",
    ),
    "fit exits": ({"fit": after_fit(lambda self, *_: sys.exit(3))}, "`fit` of the scorer `center` to.*SystemExit: 3"),
    "fit raises an error for users": (
        {"fit": after_fit(lambda self, *_: raise_(ValueError("no")))},
        "`fit` of the scorer `center` to succeed, but it raised ValueError: no",
    ),
    "unfitted raises another error": (
        {"score_labels": lambda self, inputs: torch.cdist(inputs.flatten(1), self.means)},
        "raise NotFittedError in `score_batch` before a fit, but got AttributeError: .*means.*`self.check_fitted",
    ),
    "only score_batch checks": (
        {
            "score_batch": lambda self, inputs, labels: (self.check_fitted(), inputs.flatten(1).sum(1))[1],
            "score_labels": lambda self, inputs: torch.cdist(inputs.flatten(1), self.means),
        },
        "raise NotFittedError in `score_labels` before a fit, but got AttributeError",
    ),
    "never fitted": (
        {"score_batch": lambda self, inputs, labels: raise_(NotFittedError("never"))},
        "have a method `score_batch` that runs after a fit, but got a NotFittedError",
    ),
    "scores raise": (
        {"score_batch": with_scores(lambda scores, _: scores.shap)},
        "`score_batch` of the.*AttributeError",
    ),
    "no scores": (
        {"score_batch": with_scores(lambda *_: None)},
        r"float32 scores \(60,\) from `score_batch`, but got None",
    ),
    "a list": ({"score_batch": with_scores(lambda scores, _: scores.tolist())}, "from `score_batch`, but got list"),
    "changes inputs": (
        {"score_batch": lambda self, inputs, labels: (Center.score_batch(self, inputs, labels), inputs.zero_())[0]},
        "leave inputs and labels unchanged in `score_batch`",
    ),
    "draws scores": (
        {"score_batch": with_scores(lambda scores, _: scores + torch.rand(len(scores)))},
        "fits with the same generator|the same scores for the same batch",
    ),
    "label scores of another type": (
        {**OWN, "score_labels": label_scores(torch.Tensor.tolist)},
        r"float32 scores \(60, C\) from `score_labels`, with C of at least 3, but got list",
    ),
    "label scores of double": (
        {**OWN, "score_labels": label_scores(torch.Tensor.double)},
        "from `score_labels`.*float64",
    ),
    "too few columns": (
        {**OWN, "score_labels": label_scores(lambda s: s[:, :2])},
        r"C of at least 3, but got .*\(60, 2\)",
    ),
    "label scores of a vector": ({**OWN, "score_labels": label_scores(lambda s: s[:, 0])}, r"`score_labels`.*\(60,\)"),
    "label scores not finite": (
        {**OWN, "score_labels": label_scores(lambda s: s / 0)},
        "finite scores from `score_labels`",
    ),
    "settings raise": ({"settings": lambda self: self.missing}, "`settings` of the scorer `center` to.*AttributeError"),
    "no settings": ({"settings": lambda self: None}, "`settings` of the scorer `center` to.*TypeError"),
    "is_fitted raises": ({"is_fitted": property(lambda self: 1 / 0)}, "`is_fitted` of the scorer `center` to.*ZeroDiv"),
    "no state": ({"state": lambda self: None}, "have a state of tensors by name, but got None"),
    "load returns nothing": (
        {"load": lambda self, state: None},
        "return itself from `load`, but got None.*return self",
    ),
    "load forgets": ({"load": lambda self, state: self}, r"be fitted after `load\(state\(\)\)`"),
    "no copy": (
        {"__deepcopy__": lambda self, memo: raise_(TypeError("no"))},
        "`__deepcopy__` of the scorer `center`.*TypeE",
    ),
    "name raises": (
        {"name": property(lambda self: 1 / 0)},
        "`name` of `Broken` to succeed, but it raised ZeroDivision",
    ),
    "name with control characters": ({"name": "a\x1b[2J", "fit": lambda self: 0}, r"the scorer `a\\x1b\[2J` to"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("parts", "message"), VIOLATIONS.values(), ids=VIOLATIONS.keys())
def test_reports_each_violation(parts, message):
    with pytest.raises(PluginError, match=f"(?s){message}"):
        check_scorer(type("Broken", (Center,), parts), separates=True)


def test_reports_what_is_no_scorer_and_a_factory_that_fails():
    with pytest.raises(PluginError, match="Expected a scorer or a factory that builds one, but got 3"):
        check_scorer(3)
    with pytest.raises(PluginError, match=r"the factory `raise_` to succeed.*TypeError"):
        check_scorer(raise_)

    class Broken(Center):
        def __init__(self):
            self.missing.more = 3

    with pytest.raises(PluginError, match=r"the factory `Broken` to succeed.*AttributeError"):
        check_scorer(Broken)


SET_VIOLATIONS = {
    "no labels": (
        {"score_features": lambda self, features: features},
        r"define `score_features\(self, features, labels\)`",
    ),
    "raises": (
        {"score_features": lambda self, features, labels: self.missing},
        "`score_features` of the.*AttributeError",
    ),
    "nothing": (
        {"score_features": lambda self, features, labels: None},
        r"\(96,\)|from `score_features`, but got None",
    ),
    "check_set": (
        {"check_set": lambda self, labels: labels.missing},
        "`check_set` of the scorer `total`.*AttributeError",
    ),
    "vector": (
        {"scores_labels": True, "score_feature_labels": lambda self, features, labels: features.sum(1)},
        "float32 scores .*, C.* from `score_feature_labels`",
    ),
    "second": (
        {
            "score_features": lambda self, features, labels: (
                None if vars(self).setdefault("n", []) else (self.n.append(1), features.sum(1))[1]
            )
        },
        "from `score_features`, but got None",
    ),
}


@pytest.mark.parametrize(("parts", "message"), SET_VIOLATIONS.values(), ids=SET_VIOLATIONS.keys())
def test_reports_each_violation_of_set_scorer(parts, message):
    with pytest.raises(PluginError, match=f"(?s)the scorer `total`.*{message}|{message}"):
        check_scorer(type("Broken", (Total,), parts))


def test_process_is_restored():
    class Global(Center):
        def fit(self, trusted, *, runtime=None, generator=None):
            torch.set_grad_enabled(False)
            return super().fit(trusted)

    check_scorer(Global)
    assert torch.is_grad_enabled()


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
