"""The precision of a share over several passes over the same samples."""

import pytest
import torch

from lightning_poison.sanitization.stream_progress import distinct_samples


@pytest.mark.parametrize(("passes", "more"), [(1, 0), (4, 0), (1, 20), (2, 30), (0, 25)])
def test_distinct_samples_give_the_variance_of_repeated_ones(passes, more):
    """The variance of the mean of values drawn once and counted several times, with weights computed one by one."""
    weights = torch.full((60,), float(passes))
    weights[:more] += 1
    variance = float((weights / weights.sum()).square().sum())
    assert distinct_samples(60 * passes + more, 60) == pytest.approx(1 / variance)


def test_without_a_first_pass_nothing_is_known():
    assert distinct_samples(50, 0) == 1.0
