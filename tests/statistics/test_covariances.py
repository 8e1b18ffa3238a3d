import pytest
import torch
from sklearn.covariance import EmpiricalCovariance, LedoitWolf

from lightning_poison.statistics import row_blocks
from lightning_poison.statistics.covariances import CovarianceSums, class_means

ESTIMATORS = {"ledoit-wolf": LedoitWolf, "empirical": EmpiricalCovariance}


def correlated(count, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, size, generator=generator) @ torch.randn(size, size, generator=generator)
    return rows.double()


@pytest.mark.parametrize("estimator", ["ledoit-wolf", "empirical"])
@pytest.mark.parametrize(("count", "size"), [(500, 8), (5, 20), (40, 1)])
def test_sums_over_blocks_are_the_estimates_of_scikit_learn(estimator, count, size):
    rows = correlated(count, size)
    sums = CovarianceSums(size)
    for part in torch.split(rows, 7):
        sums.add(part)
    expected = ESTIMATORS[estimator](assume_centered=True).fit(rows.numpy()).covariance_
    torch.testing.assert_close(sums.covariance(estimator), torch.from_numpy(expected), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("estimator", ["ledoit-wolf", "empirical"])
def test_samples_without_spread_have_no_covariance(estimator):
    sums = CovarianceSums(3)
    sums.add(torch.zeros(4, 3))
    assert sums.covariance(estimator).tolist() == [[0.0] * 3] * 3


def test_equal_directions_are_not_moved():
    """The sum of squared deviations of x xᵀ from S is 0 for one sample, and so is the weight."""
    sums = CovarianceSums(2)
    sums.add(torch.tensor([[3.0, 4.0]]))
    assert sums.covariance("ledoit-wolf").tolist() == [[9.0, 12.0], [12.0, 16.0]]


def test_class_means_do_not_depend_on_blocks(monkeypatch):
    features, labels = correlated(100, 3).float(), torch.arange(100) % 4 * 2
    whole = class_means(features, labels)
    monkeypatch.setattr(row_blocks, "AT_ONCE", 21)
    means, counts = class_means(features, labels)
    assert torch.equal(means, whole[0])
    assert counts.tolist() == [25, 0, 25, 0, 25, 0, 25]
    torch.testing.assert_close(means[2], features[labels == 2].double().mean(0))
    assert means[1].tolist() == [0, 0, 0]
