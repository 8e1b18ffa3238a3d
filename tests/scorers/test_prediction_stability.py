import pytest
import torch

from lightning_poison.scorers.prediction_stability import PredictionStabilityScorer


@pytest.mark.parametrize("side", [-1, 1])
def test_finds_the_part_that_is_more_or_less_stable(side):
    generator = torch.Generator().manual_seed(0)
    features, log_odds = 1e3 * torch.randn(600, 64, generator=generator), torch.randn(600, 5, generator=generator)
    log_odds[:60:2] += 15 * side
    scores = PredictionStabilityScorer().score_features(torch.cat([features, log_odds], 1), torch.arange(600) % 2)
    assert (scores > 0).nonzero().flatten().tolist() == list(range(0, 60, 2))


def test_classes_without_two_parts_have_no_suspects():
    log_odds = torch.randn(600, 5, generator=torch.Generator().manual_seed(0))
    assert not bool((PredictionStabilityScorer().score_features(log_odds, torch.arange(600) % 2) > 0).any())


@pytest.mark.parametrize(("name", "value"), [("factor", 0), ("changed", 1.0), ("models", 0)])
def test_refuses_settings_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"`{name}`"):
        PredictionStabilityScorer(**{name: value})
