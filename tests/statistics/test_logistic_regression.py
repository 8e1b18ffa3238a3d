from functools import partial

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from lightning_poison.statistics import logistic_regression, row_blocks
from lightning_poison.statistics.logistic_regression import fit_logistic_regression, logits_of
from lightning_poison.statistics.loss_curvature import LossCurvature


def blobs(count=200, classes=3, size=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    return torch.randn(count, size, generator=generator) + 1.5 * torch.eye(size)[labels], labels


def known(points, labels, classes, is_known):
    return LossCurvature.of(points, labels, classes) if is_known else None


def counted(steps, evaluate, *arguments, **settings):
    steps.append(1)
    return evaluate(*arguments, **settings)


@pytest.mark.parametrize("is_known", [False, True])
@pytest.mark.parametrize("penalty", [1.0, 0.1, 0.01])
def test_agrees_with_scikit_learn(penalty, is_known):
    points, labels = blobs()
    curvature = known(points, labels, 3, is_known)
    ours = fit_logistic_regression(points, labels, num_classes=3, penalty=penalty, curvature=curvature)
    theirs = LogisticRegression(C=1 / (penalty * len(labels)), max_iter=1000, tol=1e-8).fit(points, labels)
    probabilities = torch.from_numpy(theirs.predict_proba(points)).float()
    torch.testing.assert_close(logits_of(ours, points).softmax(1), probabilities, rtol=0, atol=2e-3)


def test_start_saves_steps_and_does_not_change_the_result():
    points, labels = blobs()
    best = fit_logistic_regression(points, labels, num_classes=3, penalty=0.1)
    again = fit_logistic_regression(points, labels, num_classes=3, penalty=0.1, start=best)
    torch.testing.assert_close(again, best, rtol=0, atol=1e-2)


@pytest.mark.parametrize("is_known", [False, True])
def test_a_class_without_samples_is_unlikely(is_known):
    points, labels = blobs()
    curvature = known(points, labels, 4, is_known)
    found = fit_logistic_regression(points, labels, num_classes=4, penalty=0.1, curvature=curvature)
    probabilities = logits_of(found, points).softmax(1)
    assert float(probabilities[:, 3].max()) < 0.05


def test_runs_without_gradients_and_leaves_its_arguments():
    points, labels = blobs()
    start, before = torch.ones(6, 3), points.clone()
    with torch.no_grad():
        found = fit_logistic_regression(points, labels, num_classes=3, penalty=0.1, start=start)
    assert not found.requires_grad
    assert torch.equal(start, torch.ones(6, 3))
    assert torch.equal(points, before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": 2}, "labels"),
        ({"num_classes": 1}, "num_classes"),
        ({"penalty": 0}, "above 0"),
        ({"penalty": float("nan")}, "above 0"),
    ],
)
def test_arguments_out_of_range(settings, message):
    points, labels = blobs()
    with pytest.raises(ValueError, match=message):
        fit_logistic_regression(points, labels, **{"num_classes": 3, "penalty": 0.1, **settings})


def test_blocks_of_samples_do_not_matter(monkeypatch):
    points, labels = blobs()
    whole = fit_logistic_regression(points, labels, num_classes=3, penalty=0.1)
    monkeypatch.setattr(row_blocks, "AT_ONCE", 50)
    parts = fit_logistic_regression(points, labels, num_classes=3, penalty=0.1)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-4)


def test_start_with_known_curvature_does_not_change_the_result():
    points, labels = blobs()
    curvature = known(points, labels, 3, True)
    begun = [
        fit_logistic_regression(points, labels, num_classes=3, penalty=0.1, curvature=curvature, start=start)
        for start in (None, torch.ones(6, 3))
    ]
    torch.testing.assert_close(*(logits_of(each, points).softmax(1) for each in begun), rtol=0, atol=2e-3)


def test_known_curvature_saves_steps(monkeypatch):
    """Of features that vary little along most axes, as those of a network do."""
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(12, 12, generator=generator) @ torch.diag(torch.logspace(0, -3, 12))
    points, labels = blobs(600, classes=6, size=12)
    points = points @ mixed
    points = (points - points.mean(0)) / points.std(0)
    steps = []
    for name in ("_cross_entropy", "_cross_entropy_of_many"):
        evaluate = getattr(logistic_regression, name)
        monkeypatch.setattr(logistic_regression, name, partial(counted, steps, evaluate))
    counts, found = [], []
    for is_known in (False, True):
        steps.clear()
        curvature = known(points, labels, 6, is_known)
        found.append(fit_logistic_regression(points, labels, num_classes=6, penalty=1e-3, curvature=curvature))
        counts.append(len(steps))
    assert counts[1] < 0.7 * counts[0]
    torch.testing.assert_close(*(logits_of(each, points).softmax(1) for each in found), rtol=0, atol=2e-2)


def test_labels_of_almost_no_probability():
    """Their probabilities underflow in single precision, and the loss stays finite."""
    features, labels = torch.tensor([[300.0], [-300.0], [1.0]]), torch.tensor([0, 1, 1])
    coefficients, buffers = torch.tensor([[-1.0, 1.0], [0.0, 0.0]]), torch.empty(2, 3, 2)
    expected = logistic_regression._cross_entropy(coefficients, features, labels, 3, buffers, truth=None)
    found = logistic_regression._cross_entropy_of_many(coefficients, features, labels, 3, buffers.clone())
    assert float(found[0]) > 300
    torch.testing.assert_close(found, expected)
