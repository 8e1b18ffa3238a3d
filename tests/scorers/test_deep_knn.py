import json

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from lightning_poison.scorers.deep_knn import DeepKNNScorer, nearest_neighbors, plurality_disagrees
from lightning_poison.scorers.feature_model import FeatureModel
from lightning_poison.scorers.protocol import LabelFeatureScorer
from lightning_poison.testing.scorers import check_scorer


def test_it_keeps_the_contract():
    check_scorer(DeepKNNScorer)
    check_scorer(DeepKNNScorer(k=3, block=16))


def test_wrong_labels_stand_out(mislabeled_digits):
    images, labels, truth, _, _ = mislabeled_digits
    scorer = DeepKNNScorer(k=20)
    scores = scorer.score_features(images, labels)
    assert isinstance(scorer, LabelFeatureScorer)
    assert not scorer.is_control
    assert scores.dtype == torch.float32
    assert roc_auc_score(labels != truth, scores) > 0.98
    assert len(scores.unique()) == len(scores)


def test_each_label_can_be_asked_for(mislabeled_digits):
    images, labels, truth, _, _ = mislabeled_digits
    scorer = DeepKNNScorer(k=20)
    each = scorer.score_feature_labels(images, labels)
    assert each.shape == (len(labels), 10)
    assert torch.equal(each.gather(1, labels[:, None])[:, 0], scorer.score_features(images, labels))
    assert (each.argmin(1) == truth).float().mean() > 0.95


def test_the_rule_of_the_paper_accuses_nearly_the_same_samples(mislabeled_digits):
    images, labels, truth, _, _ = mislabeled_digits
    _, near = nearest_neighbors(images, images, 20, exclude_self=True)
    accused = plurality_disagrees(labels, labels[near])
    wrong = labels != truth
    assert accused[wrong].float().mean() > 0.95
    assert accused[~wrong].float().mean() < 0.05
    assert roc_auc_score(accused, DeepKNNScorer(k=20).score_features(images, labels)) > 0.99


def test_the_block_bounds_memory_and_not_the_result(mislabeled_digits):
    images, labels = mislabeled_digits[0][:300], mislabeled_digits[1][:300]
    whole, tiled = (DeepKNNScorer(k=10, block=block).score_features(images, labels) for block in (1000, 37))
    torch.testing.assert_close(whole, tiled)


def test_what_it_was_built_with_shows():
    scorer = DeepKNNScorer(FeatureModel(nn.Flatten()), k=7)
    assert repr(scorer) == "DeepKNNScorer(FeatureModel(Flatten, ''), k=7, block=32768)"
    assert json.loads(json.dumps(dict(scorer.settings())))["k"] == 7


@pytest.mark.parametrize(("name", "value"), [("k", 0), ("k", 2.0), ("block", 0)])
def test_numbers_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"`{name}` to be an integer of at least 1"):
        DeepKNNScorer(**{name: value})


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (torch.rand(4, 2), torch.tensor([0, 0, 1, 1]), "smaller than the number of samples, but got 4 with 4 samples"),
        (torch.rand(5, 2), torch.tensor([0, 0, 0, 0, 1]), "at least 2 samples a class"),
        (torch.ones(6, 2), torch.arange(6) % 2, "different from sample to sample"),
        (torch.full((6, 2), torch.nan), torch.arange(6) % 2, "finite"),
        (torch.rand(6, 2), torch.arange(5) % 2, "one for each of the 6"),
        (torch.rand(6, 2), torch.arange(6) % 2 - 1, "at least 0"),
    ],
)
def test_sets_that_it_cannot_judge_are_refused(features, labels, message):
    with pytest.raises(ValueError, match=message):
        DeepKNNScorer(k=4).score_features(features, labels)
