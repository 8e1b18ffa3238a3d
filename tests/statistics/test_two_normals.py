import math

import pytest
import torch

from lightning_poison.statistics.two_normals import TwoNormals, fit_two_normals


def normal(count, seed=0):
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize("share", [0.02, 0.1, 0.4])
def test_recovers_a_mixture(side, share):
    values, count = normal(4000), round(4000 * share)
    values[:count] = side * 9 + 0.5 * values[:count]
    found = fit_two_normals(100 + 7 * values)
    parts = [100 + 7 * part for part in (values[count:], values[:count])]
    assert found.share == pytest.approx(share, abs=1e-3)
    assert found.means == pytest.approx([float(part.mean()) for part in parts], abs=0.1)
    assert found.spreads == pytest.approx([float(part.std()) for part in parts], rel=0.02)
    assert found.separation == pytest.approx(math.sqrt(2) * 9 / math.hypot(1, 0.5), rel=0.1)
    assert (found.log_odds(100 + 7 * values) > 0).nonzero().flatten().tolist() == list(range(count))


@pytest.mark.parametrize("seed", range(5))
def test_one_normal_has_no_gap(seed):
    assert fit_two_normals(normal(1000, seed)).separation < 4


def test_equal_values_are_not_infinitely_separate():
    values = normal(500)
    values[:100] = 3.0
    assert fit_two_normals(values).separation < 6
    assert fit_two_normals(torch.ones(20)).separation == 0


def test_log_odds_are_those_of_the_densities_and_monotone():
    mixture = TwoNormals(0.2, (0.0, 6.0), (2.0, 0.5))
    inside = torch.tensor([0.0, 3.0, 6.0], dtype=torch.float64)
    parts = [torch.distributions.Normal(mean, spread).log_prob(inside) for mean, spread in ((0.0, 2.0), (6.0, 0.5))]
    assert torch.allclose(mixture.log_odds(inside), parts[1] - parts[0] + math.log(0.2 / 0.8), atol=1e-6)
    many = mixture.log_odds(torch.linspace(-50, 50, 999))
    assert bool((many.diff() >= 0).all())


@pytest.mark.parametrize(
    ("values", "message"),
    [(torch.zeros(11), "at least 12"), (torch.zeros(4, 4), "a vector"), (torch.full((20,), math.nan), "finite")],
)
def test_refuses_other_values(values, message):
    with pytest.raises(ValueError, match=message):
        fit_two_normals(values)
