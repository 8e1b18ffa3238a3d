import math

import pytest
import torch

from lightning_poison.statistics import quantum_entropy
from lightning_poison.statistics.quantum_entropy import principal_sizes, quantum_entropy_scores, robust_moments


def normal(count, size, seed=0):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_score_is_that_of_the_matrix_exponential():
    covariance = torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=torch.float64)  # eigenvalues 1.5 and .5
    rows = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    # With alpha 2 and the excess .5, Q has the eigenvalues exp(2) along (1, 1) and exp(-2) along (1, -1).
    trace = math.exp(2) + math.exp(-2)
    expected = torch.tensor([2 * math.exp(2) / trace, 2 * math.exp(-2) / trace], dtype=torch.float64)
    assert torch.allclose(quantum_entropy._entropy_scores(rows, covariance, 2.0), expected)
    elementwise = torch.exp(2 * (covariance - torch.eye(2)) / 0.5)
    assert not torch.allclose(torch.einsum("nd,de,ne->n", rows, elementwise, rows) / elementwise.trace(), expected)


def test_alpha_0_gives_mahalanobis_distances():
    rows = normal(3000, 4) @ torch.diag(torch.tensor([1.0, 5.0, 0.1, 2.0], dtype=torch.float64))
    mean, covariance = robust_moments(rows)
    distances = ((rows - mean) * torch.linalg.solve(covariance, (rows - mean).T).T).sum(1)
    assert torch.allclose(quantum_entropy_scores(rows, alpha=0.0), distances / 4, rtol=1e-6)


def test_few_outlying_rows_are_ranked_first_in_any_basis():
    rows = normal(1000, 8)
    rows[:30, 3] += 7
    turned = rows @ torch.linalg.qr(normal(8, 8, 1)).Q * 40 + 3
    for each in (rows, turned):
        assert set(quantum_entropy_scores(each).topk(30).indices.tolist()) == set(range(30))


def test_robust_moments_of_normal_rows_are_consistent():
    factor = normal(3, 3, 1)
    rows = normal(20_000, 3) @ factor.T + 5
    mean, covariance = robust_moments(rows)
    assert torch.allclose(mean, torch.full((3,), 5.0, dtype=torch.float64), atol=0.1)
    assert torch.allclose(covariance, factor @ factor.T, rtol=0.1, atol=0.05)


def test_robust_moments_ignore_outlying_rows():
    rows = normal(2000, 3)
    rows[:150] = 1e4
    mean, covariance = robust_moments(rows)
    assert float(mean.abs().max()) < 0.1
    assert float((covariance - torch.eye(3)).abs().max()) < 0.2


def test_a_direction_without_variance_is_finite():
    rows = normal(200, 4)
    rows[:, 2] = 1.0
    assert bool(quantum_entropy_scores(rows).isfinite().all())


def test_normal_rows_have_no_large_scores():
    assert float(quantum_entropy_scores(normal(1000, 16)).log().max()) < 3


def test_sizes_are_powers_of_two_and_the_largest():
    assert principal_sizes(6000, 64) == (2, 4, 8, 16, 32, 64)
    assert principal_sizes(100, 64) == (2, 4, 8, 16)
    assert principal_sizes(12, 64) == (2,)


def test_refusals():
    with pytest.raises(ValueError, match="`rows` to be at least 6 of 4 numbers, but got 5"):
        robust_moments(normal(5, 4))
    with pytest.raises(ValueError, match="`support`"):
        robust_moments(normal(50, 4), support=1.0)
    with pytest.raises(ValueError, match="`alpha`"):
        quantum_entropy_scores(normal(50, 4), alpha=-1)
    with pytest.raises(ValueError, match="`largest`"):
        principal_sizes(10, 3, largest=0)
