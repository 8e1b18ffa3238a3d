import pytest
import torch

from lightning_poison.statistics.intervals import wilson_interval


def interval(count, variance, size, **options):
    as_tensor = [torch.tensor(float(value), dtype=torch.float64) for value in (count, variance)]
    return tuple(end.item() for end in wilson_interval(*as_tensor, size, **options))


def test_binomial_count_matches_wilson():
    low, high = interval(10, 0, 100, confidence=0.95)
    assert (low, high) == pytest.approx((5.522914, 17.436566), abs=1e-5)


def test_measured_variance_only_widens_interval():
    plain = interval(20, 0, 1000)
    assert interval(20, 1.0, 1000) == pytest.approx(plain)
    low, high = interval(20, 100.0, 1000)
    assert low < plain[0]
    assert high > plain[1]


def test_extreme_counts_have_one_sided_interval():
    low, high = interval(0, 0, 1000)
    assert low == 0
    assert 3 < high < 4
    assert interval(0.3, 0, 1000)[0] == 0
    assert interval(1000, 0, 1000)[1] == pytest.approx(1000)
