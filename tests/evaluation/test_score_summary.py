import json
import math

import pytest
import torch

from lightning_poison.evaluation.metrics import TPRAtFPR
from lightning_poison.evaluation.score_summary import BINS, FALSE_POSITIVE_RATES, ScoreSummary


@pytest.fixture
def summary():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(600, generator=generator).double()
    poison = torch.arange(600) < 100
    scores[poison] += 2
    return scores, poison, ScoreSummary.of(scores.tolist(), scores.tolist(), poison.tolist(), (~poison).tolist())


def test_curve_is_that_of_the_metric(summary):
    scores, poison, found = summary
    for rate, caught in zip(FALSE_POSITIVE_RATES[:-1], found.true_positive_rates, strict=False):
        metric = TPRAtFPR(rate).set_dtype(torch.float64)
        metric.update(scores, poison)
        assert caught == pytest.approx(float(metric.compute()))
    assert found.true_positive_rates[-1] == 1
    pairs = scores[poison][:, None] > scores[~poison]
    assert found.auroc == pytest.approx(float(pairs.double().mean()))


def test_histograms_contain_all_samples(summary):
    _, _, found = summary
    assert (sum(found.clean), sum(found.poison)) == (500, 100)
    assert len(found.clean) == len(found.poison) == BINS


def test_equal_scores_and_outliers():
    flat = ScoreSummary.of([0.5] * 4, [3.0] * 4, [True, False, False, False], [False, True, True, True])
    assert flat.auroc == 0.5
    assert set(flat.true_positive_rates[:-1]) == {0.0}
    assert sum(flat.clean) == 3
    far = ScoreSummary.of(
        [0.1] * 99 + [0.9], [*(index / 99 for index in range(99)), 1e300], [False] * 99 + [True], [True] * 99 + [False]
    )
    assert far.high < 3
    assert far.poison[-1] == 1


def test_samples_without_a_score_and_cover_are_left_out():
    suspicion = [0.1, math.nan, 0.9, 0.8, 0.7]
    found = ScoreSummary.of(suspicion, suspicion, [False, False, True, True, False], [True, True, False, False, False])
    assert (sum(found.clean), sum(found.poison), found.auroc) == (1, 2, 1.0)
    assert ScoreSummary.of([math.nan, 0.5], [0.0, 0.5], [True, False], [False, True]) is None


def test_json_is_read_again(summary):
    _, _, found = summary
    again = ScoreSummary.from_json(json.loads(json.dumps(found.to_json())))
    assert again.clean == found.clean
    assert again.true_positive_rates == pytest.approx(found.true_positive_rates, abs=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"auroc": None},
        {"low": 5.0, "high": 1.0},
        {"high": math.inf},
        {"clean": [1, 2]},
        {"poison": [-1] * BINS},
        {"clean": [1.5] * BINS},
        {"true_positive_rates": ["<b>"] * len(FALSE_POSITIVE_RATES)},
    ],
)
def test_damaged_values_are_named(summary, changes):
    with pytest.raises(ValueError, match="`scores` of a cell"):
        ScoreSummary.from_json(summary[2].to_json() | changes)
