import math

import pytest
import torch

from lightning_poison.statistics.prediction_stability import find_outer_parts, stability


def normal(count, seed=0):
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_is_the_log_odds_of_the_mean_probability():
    log_odds = torch.tensor([[0.0, 2.0], [-1.0, 1.0]], dtype=torch.float64)
    expected = log_odds.sigmoid().mean(1).logit()
    assert torch.allclose(stability(log_odds), expected)


def test_does_not_saturate():
    assert stability(torch.tensor([[300.0], [-300.0]])).tolist() == [300.0, -300.0]


def test_begins_where_enough_predictions_change():
    log_odds = torch.tensor([[9.0, 9.0, -3.0, -4.0, -5.0]] * 7 + [[9.0, 9.0, 3.0, 4.0, 5.0]] * 3)
    assert stability(log_odds, models=1).unique().tolist() == [-3.0, 3.0]
    assert stability(log_odds, changed=0.8, models=1).unique().tolist() == [-5.0, 5.0]


def test_last_models_count_where_too_few_predictions_change():
    log_odds = torch.tensor([[9.0, 9.0, 2.0, 2.0]] * 4, dtype=torch.float64)
    assert stability(log_odds, models=2).tolist() == pytest.approx([2.0] * 4)
    assert stability(log_odds, models=9)[0] == pytest.approx(float(log_odds[0].sigmoid().mean().logit()))


@pytest.mark.parametrize("side", [-1, 1])
def test_takes_the_smaller_part_of_each_class_on_either_side(side):
    values, labels = normal(600), torch.arange(600) % 2
    values[:60:2] += 20 * side
    found = {group.label: group for group in find_outer_parts(values, labels)}
    assert found[0].members.tolist() == list(range(0, 60, 2))
    assert found[0].separation > 10
    assert 1 not in found or found[1].separation < 4
    upper = {group.label: group for group in find_outer_parts(values, labels, upper_only=True)}
    assert (0 in upper) == (side > 0)


def test_refusals():
    with pytest.raises(ValueError, match="at least 12"):
        find_outer_parts(normal(11), torch.zeros(11, dtype=torch.int64))
    with pytest.raises(ValueError, match="finite"):
        find_outer_parts(torch.full((20,), math.inf), torch.zeros(20, dtype=torch.int64))
    with pytest.raises(ValueError, match="`changed`"):
        stability(torch.zeros(4, 2), changed=60)
    with pytest.raises(ValueError, match="`models`"):
        stability(torch.zeros(4, 2), models=0)
