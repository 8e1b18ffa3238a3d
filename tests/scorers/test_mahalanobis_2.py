import pytest
import torch
from torch.distributions import MultivariateNormal

from lightning_poison.scorers.mahalanobis import ClassNormals, fit_normals, mahalanobis_scores

LABELS = torch.arange(300) % 3


def skewed(seed=0, features=4):
    """Return 300 samples of three classes, one wider than the others, and correlated features."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(300, features, generator=generator)
    mixing = torch.randn(features, features, generator=generator)
    points[LABELS == 2] *= 4
    return points @ mixing + 10 * torch.eye(features)[LABELS]


def by_hand(features, covariance):
    """Return squared Mahalanobis distances, and log-determinants where each class has a covariance of its own."""
    rows = features.double()
    means = torch.stack([rows[label == LABELS].mean(0) for label in range(3)])
    away = rows - means[LABELS]
    groups = [away] * 3 if covariance == "shared" else [away[label == LABELS] for label in range(3)]
    sigmas = [group.T @ group / len(group) for group in groups]
    columns = []
    for mean, sigma in zip(means, sigmas, strict=True):
        difference = rows - mean
        column = (difference @ torch.linalg.inv(sigma) * difference).sum(1)
        columns.append(column + (torch.logdet(sigma) if covariance == "class" else 0))
    return torch.stack(columns, 1)


@pytest.mark.parametrize("covariance", ["shared", "class"])
def test_the_distance_is_the_textbooks(covariance):
    features = skewed()
    normals = fit_normals(features, LABELS, covariance=covariance, estimator="empirical")
    expected = by_hand(features, covariance)
    torch.testing.assert_close(mahalanobis_scores(features, normals).double(), expected, rtol=1e-4, atol=1e-3)


def test_with_own_covariances_it_is_twice_the_negative_log_likelihood():
    features = skewed()
    normals = fit_normals(features, LABELS, covariance="class")
    scores = mahalanobis_scores(features, normals).double()
    for label in range(3):
        factor = normals.factors[label].double()
        normal = MultivariateNormal(normals.means[label].double(), precision_matrix=factor @ factor.T)
        expected = -2 * normal.log_prob(features.double())
        constant = 4 * torch.log(torch.tensor(2 * torch.pi, dtype=torch.float64))
        torch.testing.assert_close(scores[:, label] + constant, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("covariance", ["shared", "class"])
def test_a_linear_map_of_the_features_does_nothing(covariance):
    features, mixing = skewed().double(), torch.tensor([[2.0, 1, 0, 0], [0, 1, 0, 0], [0, 3, 1, 0], [1, 0, 0, 5]])
    moved = features @ mixing.double() + 7
    before, after = (
        mahalanobis_scores(rows, fit_normals(rows, LABELS, covariance=covariance, estimator="empirical"))
        for rows in (features, moved)
    )
    constant = 2 * torch.logdet(mixing) if covariance == "class" else 0
    torch.testing.assert_close(after, before + constant, rtol=1e-3, atol=1e-2)


def test_ledoit_wolf_needs_fewer_samples_than_features():
    features, labels = skewed(features=40)[:12], torch.arange(12) % 3
    scores = mahalanobis_scores(features, fit_normals(features, labels, covariance="class"))
    assert scores.isfinite().all()
    assert torch.equal(scores.argmin(1), labels)
    with pytest.raises(ValueError, match="covariance with an inverse, but got those of class 0"):
        fit_normals(features, labels, covariance="class", estimator="empirical")
    with pytest.raises(ValueError, match="those of all classes"):
        fit_normals(features, labels, estimator="empirical")


def test_a_class_without_samples_is_the_least_likely():
    features, labels = skewed(), torch.where(LABELS == 1, 2, LABELS)
    for covariance in ("shared", "class"):
        normals = fit_normals(features, labels, covariance=covariance)
        assert normals.present.tolist() == [True, False, True]
        scores = mahalanobis_scores(features, normals)
        assert torch.equal(scores.argmax(1), torch.ones(300).long())
        assert scores.isfinite().all()


def test_gradients_and_autocast():
    features = skewed()
    normals = fit_normals(features, LABELS)
    moving = features.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = mahalanobis_scores(moving, normals)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, mahalanobis_scores(features, normals))
    (gradient,) = torch.autograd.grad(scores[:, 0].sum(), moving)
    factor = normals.factors[0]
    expected = 2 * (features - normals.means[0]) @ factor @ factor.T
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("features", "labels", "settings", "message"),
    [
        (skewed()[:3], torch.tensor([0, 0, 1]), {}, "at least 2 samples a class, but got 1 of class 1"),
        (torch.ones(4, 2), torch.tensor([0, 0, 1, 1]), {}, "different from sample to sample"),
        (torch.full((4, 2), torch.nan), torch.tensor([0, 0, 1, 1]), {}, "finite"),
        (skewed(), LABELS[:5], {}, "one for each of the 300"),
        (skewed(), LABELS - 1, {}, "at least 0"),
        (skewed(), LABELS, {"covariance": "diagonal"}, "one of 'shared', 'class'"),
        (skewed(), LABELS, {"estimator": "mcd"}, "one of 'ledoit-wolf', 'empirical'"),
        (torch.arange(2.0).repeat(3)[:, None].repeat(1, 2), torch.arange(2).repeat(3), {}, "an inverse"),
    ],
)
def test_what_has_no_normal_distribution_is_refused(features, labels, settings, message):
    with pytest.raises(ValueError, match=message):
        fit_normals(features, labels, **settings)


def test_features_of_another_length_are_refused():
    normals = ClassNormals(torch.zeros(2, 3), torch.eye(3)[None], torch.zeros(1), torch.ones(2, dtype=torch.bool))
    with pytest.raises(ValueError, match="of shape \\(B, 3\\)"):
        mahalanobis_scores(torch.zeros(5, 4), normals)
