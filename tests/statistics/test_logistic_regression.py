import pytest
import torch
from sklearn.linear_model import LogisticRegression

from lightning_poison.statistics import row_blocks
from lightning_poison.statistics.logistic_regression import fit_logistic_regression, logits_of


def blobs(count=200, classes=3, size=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    return torch.randn(count, size, generator=generator) + 1.5 * torch.eye(size)[labels], labels


@pytest.mark.parametrize("penalty", [1.0, 0.1, 0.01])
def test_agrees_with_scikit_learn(penalty):
    points, labels = blobs()
    ours = fit_logistic_regression(points, labels, num_classes=3, penalty=penalty)
    theirs = LogisticRegression(C=1 / (penalty * len(labels)), max_iter=1000, tol=1e-8).fit(points, labels)
    probabilities = torch.from_numpy(theirs.predict_proba(points)).float()
    torch.testing.assert_close(logits_of(ours, points).softmax(1), probabilities, rtol=0, atol=2e-3)


def test_start_saves_steps_and_does_not_change_the_result():
    points, labels = blobs()
    best = fit_logistic_regression(points, labels, num_classes=3, penalty=0.1)
    again = fit_logistic_regression(points, labels, num_classes=3, penalty=0.1, start=best)
    torch.testing.assert_close(again, best, rtol=0, atol=1e-2)


def test_a_class_without_samples_is_unlikely():
    points, labels = blobs()
    probabilities = logits_of(fit_logistic_regression(points, labels, num_classes=4, penalty=0.1), points).softmax(1)
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
