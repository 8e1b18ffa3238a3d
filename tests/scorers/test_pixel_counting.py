import pytest
import torch
from torch.utils.data import TensorDataset

from lightning_poison.data.pixel_range import PixelRange
from lightning_poison.errors import NotFittedError
from lightning_poison.scorers.pixel_counting import PixelCountingScorer
from lightning_poison.testing.scorers import check_scorer


def test_complies_with_contract():
    check_scorer(PixelCountingScorer)


def test_detects_gray_pixels_in_a_black_background(digits):
    images, labels = digits.tensors
    scorer = PixelCountingScorer(PixelRange(levels=17)).fit(TensorDataset(images[:1500], labels[:1500]))
    clean, touched = images[1500:], (images[1500:] + 1 / 16).clamp(0, 1)
    scores = [scorer.score_batch(each, labels[1500:]) for each in (clean, touched)]
    assert scores[1].median() > 10 * scores[0].median()


def test_scores_match_closed_form():
    black, white = torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)
    images = torch.cat([black, white, black, white])
    scorer = PixelCountingScorer().fit(TensorDataset(images, torch.tensor([0, 0, 1, 1])))
    scores = scorer.score_labels(black)
    assert torch.allclose(scores, torch.full((1, 2), 0.5), atol=1e-3)  # half a unit of the one direction that varies


def test_refuses_unfitted_scorer():
    with pytest.raises(NotFittedError):
        PixelCountingScorer().score_labels(torch.zeros(1, 1, 4, 4))


def test_refuses_vectors():
    with pytest.raises(ValueError, match="images"):
        PixelCountingScorer().fit(TensorDataset(torch.zeros(4, 3), torch.arange(4) % 2))


def test_class_without_samples_is_never_the_least_suspicious(digits):
    images, labels = digits.tensors
    scorer = PixelCountingScorer(PixelRange(levels=17)).fit(TensorDataset(images, 2 * labels))
    scores = scorer.score_labels(images)
    assert not set(scores.argmin(1).tolist()) & set(range(1, 18, 2))
    assert scores.isfinite().all()
