import pytest
import torch

from lightning_poison.statistics import row_blocks
from lightning_poison.statistics.lowest_scores import LowestScores


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lowest_scores_are_those_of_sorted_rows(dtype, monkeypatch):
    monkeypatch.setattr(row_blocks, "AT_ONCE", 70)
    scores = torch.randint(0, 5, (100, 7), generator=torch.Generator().manual_seed(0)).to(dtype)  # with ties
    found = LowestScores.of(scores)
    ordered = scores.double().sort(1)
    assert torch.equal(found.lowest, ordered.values[:, 0])
    assert torch.equal(found.second, ordered.values[:, 1])
    assert torch.equal(found.predicted, scores.argmin(1))
    assert found.is_finite


def test_lowest_score_under_another_label():
    scores = torch.randint(0, 4, (60, 5), generator=torch.Generator().manual_seed(1)).double()
    labels = torch.arange(60) % 5
    others = torch.stack([torch.cat([row[:own], row[own + 1 :]]) for row, own in zip(scores, labels, strict=True)])
    assert torch.equal(LowestScores.of(scores).under_other_labels(labels), others.min(1).values)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_one_infinite_score_is_seen(value):
    scores = torch.rand(50, 3)
    scores[31, 1] = value
    assert not LowestScores.of(scores).is_finite
