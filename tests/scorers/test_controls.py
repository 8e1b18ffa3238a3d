import pytest
import torch

from lightning_poison.sanitization.pipeline import sanitize
from lightning_poison.scorers.combined import CombinedScorer
from lightning_poison.scorers.controls import PerfectScorer, RandomScorer
from lightning_poison.testing.scorers import check_scorer

FEATURES, LABELS = torch.zeros(1000, 2), torch.zeros(1000).long()


def test_random_scores_rank_like_chance():
    is_poison = torch.arange(1000) < 300
    scores = RandomScorer(seed=0).score_features(FEATURES, LABELS)
    auroc = float((scores[is_poison][:, None] > scores[~is_poison]).double().mean())
    assert 0.45 < auroc < 0.55
    assert not torch.equal(scores, RandomScorer(seed=1).score_features(FEATURES, LABELS))


def test_perfect_scores_separate_poison():
    is_poison = torch.arange(1000) % 7 == 0
    scores = PerfectScorer(is_poison).score_features(FEATURES, LABELS)
    assert float(scores[is_poison].min()) > float(scores[~is_poison].max())


def test_controls_comply_with_contract():
    check_scorer(RandomScorer())
    check_scorer(PerfectScorer(torch.arange(60) % 7 == 0))


@pytest.mark.parametrize("control", [RandomScorer(), PerfectScorer(torch.zeros(60, dtype=torch.bool))])
def test_sanitize_refuses_controls(blobs, centroid_scorer, control):
    for scorer in (control, CombinedScorer([centroid_scorer(), control])):
        with pytest.raises(ValueError, match="is a control, which may use the ground truth"):
            sanitize(blobs(60), scorer)


def test_refuses_invalid_arguments():
    with pytest.raises(ValueError, match=r"`is_poison` to be a boolean mask \(N,\), but got a float32 tensor"):
        PerfectScorer(torch.zeros(3))
    with pytest.raises(ValueError, match="the labels of the 3 samples in the mask, but got 1000"):
        PerfectScorer(torch.zeros(3, dtype=torch.bool)).score_features(FEATURES, LABELS)
    with pytest.raises(ValueError, match="`seed`"):
        RandomScorer(seed=-1)
