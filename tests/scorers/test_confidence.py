import copy
import json

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.utils.data import Subset, TensorDataset

from lightning_poison.errors import NotFittedError
from lightning_poison.models.fitting import FitSettings
from lightning_poison.runtime import LocalRuntime
from lightning_poison.scorers.confidence import ConfidenceScorer
from lightning_poison.testing.scorers import check_scorer

KINDS = ("self-confidence", "margin", "normalized")
QUICK = FitSettings(epochs=1, batch_size=32, min_steps=20)
RUNTIME = LocalRuntime(precision="32", threads=1)


def quick(score="self-confidence", **settings):
    return ConfidenceScorer(score, **{"feature_size": 4, "fit_settings": QUICK, **settings})


def on_logits(score="self-confidence"):
    """Return a scorer whose logits are the inputs."""
    return ConfidenceScorer.from_module(nn.Flatten(), score)


@pytest.fixture(scope="module")
def on_digits(digits):
    """A scorer for each kind of score, fitted on 1,000 digits; the other 797 are for tests."""
    settings = FitSettings(epochs=4, batch_size=64, min_steps=0)
    trusted = Subset(digits, range(1000))
    return {kind: ConfidenceScorer(kind, fit_settings=settings).fit(trusted, runtime=RUNTIME) for kind in KINDS}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_complies_with_contract(kind):
    check_scorer(quick(kind, fit_settings=FitSettings(epochs=1, batch_size=16, min_steps=60)), separates=True)


def test_declares_label_scores():
    assert quick().scores_labels
    assert not quick().is_control


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_detects_flipped_digits(on_digits, digits, kind):
    images, labels = digits[1000:]
    wrong = torch.arange(len(labels)) % 5 == 0
    with torch.no_grad():
        labels = torch.where(wrong, (labels + 1 + torch.arange(len(labels)) % 9) % 10, labels)
        scores = on_digits[kind].score_batch(images, labels)
    assert roc_auc_score(wrong, scores) > 0.97
    assert len(scores.unique()) > 0.99 * len(scores)


def test_self_confidence_and_margin_match_closed_forms():
    logits = torch.tensor([[2.0, 0.0, -1.0]])
    torch.testing.assert_close(on_logits().score_labels(logits), -logits.log_softmax(1))
    assert on_logits("margin").score_labels(logits).tolist() == [[-2.0, 2.0, 3.0]]
    assert on_logits("margin").score_batch(logits, torch.tensor([1])).tolist() == [2.0]


def test_thresholds_are_mean_self_confidences(blobs):
    points, labels = blobs(90)[:]
    scorer = quick("normalized").fit(blobs(90), runtime=RUNTIME)
    plain = quick().load({name: value for name, value in scorer.state().items() if name != "log_thresholds"})
    with torch.no_grad():
        posteriors = (-plain.score_labels(points)).exp()
        means = torch.stack([posteriors[labels == label, label].mean() for label in range(3)])
        torch.testing.assert_close(scorer.state()["log_thresholds"], means.log())
        expected = -(posteriors / means / (posteriors / means).sum(1, keepdim=True)).log()
        torch.testing.assert_close(scorer.score_labels(points), expected, atol=1e-5, rtol=1e-4)


def test_class_without_samples_has_threshold_one(blobs):
    points, labels = blobs(90, classes=2)[:]
    scorer = quick("normalized").fit(TensorDataset(points, 2 * labels), runtime=RUNTIME)
    assert float(scorer.state()["log_thresholds"][1]) == 0


def test_module_is_fitted_and_does_not_change(blobs):
    module = nn.Sequential(nn.Linear(4, 3), nn.Dropout())
    scorer, before = ConfidenceScorer.from_module(module), copy.deepcopy(module.state_dict())
    points, labels = blobs(30)[:]
    assert scorer.is_fitted
    assert scorer.fit(blobs(30)) is scorer
    assert torch.equal(scorer.score_batch(points, labels), scorer.score_batch(points, labels))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert module.training
    assert scorer.settings()["module"] == "Sequential"


def test_loads_state_into_the_module(blobs):
    points = blobs(30)[:][0]
    one, other = ConfidenceScorer.from_module(nn.Linear(4, 3)), ConfidenceScorer.from_module(nn.Linear(4, 3))
    expected = one.score_labels(points)
    assert not torch.equal(other.score_labels(points), expected)
    assert torch.equal(other.load(one.state()).score_labels(points), expected)
    with pytest.raises(ValueError, match=r"the state of ConfidenceScorer.*, but got one of another scorer"):
        ConfidenceScorer.from_module(nn.Linear(4, 2)).load(one.state())


@pytest.mark.slow
def test_scores_depend_on_the_generator(blobs):
    points = blobs(64)[:][0]
    one, two, other = (
        quick().fit(blobs(64), generator=torch.Generator().manual_seed(seed)).score_labels(points) for seed in (1, 1, 2)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_differentiable(on_digits, digits, kind):
    images = digits[1000:1010][0].clone().requires_grad_()
    scores = on_digits[kind].score_batch(images, torch.zeros(10).long())
    (gradient,) = torch.autograd.grad(scores.sum(), images)
    assert (gradient.flatten(1).norm(dim=1) > 0).all()


def test_rehearse_returns_steps_of_a_fit(blobs):
    scorer = quick()
    assert scorer.rehearse(blobs(), steps=2, runtime=RUNTIME) == QUICK.total_steps(600)
    assert not scorer.is_fitted


def test_repr_and_settings_contain_arguments():
    assert repr(ConfidenceScorer("margin", feature_size=4)) == "ConfidenceScorer(score='margin', feature_size=4)"
    settings = json.loads(json.dumps(dict(quick(backbone=nn.Linear(4, 4)).settings())))
    assert settings["score"] == "self-confidence"
    assert settings["module"] is None
    assert settings["backbone"] is not None


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ConfidenceScorer("entropy"), "`score` to be one of 'self-confidence', 'margin', 'normalized'"),
        (lambda: ConfidenceScorer(feature_size=0), "`feature_size`"),
        (lambda: on_logits("normalized"), "needs thresholds of the data"),
        (lambda: on_logits().score_labels(torch.zeros(3, 1)), "a map to logits \\(3, C\\)"),
        (lambda: quick().fit(TensorDataset(torch.rand(4, 2), torch.zeros(4).long())), "at least two classes"),
    ],
)
def test_refuses_invalid_arguments_and_data(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("call", [lambda: quick().score_labels(torch.zeros(1, 4)), lambda: quick().state()])
def test_refuses_unfitted_scorer(call):
    with pytest.raises(NotFittedError):
        call()


def test_refuses_samples_of_another_shape(blobs):
    with pytest.raises(ValueError, match="samples of shape"):
        quick().fit(blobs(64), runtime=RUNTIME).score_labels(torch.zeros(2, 5))


def test_refuses_state_of_another_scorer(blobs):
    state = quick().fit(blobs(64), runtime=RUNTIME).state()
    with pytest.raises(ValueError, match="but got one of another score\\."):
        quick("normalized").load(state)
    with pytest.raises(ValueError, match="one of another scorer or of other settings"):
        quick().load({"means": torch.zeros(2)})
    with pytest.raises(ValueError, match="other settings"):
        quick(feature_size=8).load(state)
