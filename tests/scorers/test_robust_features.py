import copy
import json

import pytest
import torch
from torch import nn

from lightning_poison.adversarial.adversaries import FGSM
from lightning_poison.models.fitting import FitSettings
from lightning_poison.registry.registry import get_scorer
from lightning_poison.scorers.feature_model import FeatureModel
from lightning_poison.scorers.robust_features import RobustFeatureScorer
from lightning_poison.statistics.subgroups import Subgroup
from lightning_poison.testing.scorers import check_scorer


def features_with_a_group(count=300, members=30):
    features = torch.randn(count, 12, generator=torch.Generator().manual_seed(0))
    features[:members, 2] += 15
    return features


def test_members_of_a_group_that_stands_apart_are_above_zero_and_nothing_else():
    features = torch.cat([features_with_a_group(), features_with_a_group(members=0)])
    labels = torch.arange(600) // 300
    scores = RobustFeatureScorer().score_features(features, labels)
    assert scores.dtype == torch.float32
    assert (scores > 0).nonzero().flatten().tolist() == list(range(30))
    assert len(torch.unique(scores[300:])) > 290


def test_it_does_not_depend_on_the_order_of_the_samples():
    features, labels = features_with_a_group(), torch.zeros(300, dtype=torch.int64)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    scorer = RobustFeatureScorer()
    one, other = scorer.score_features(features, labels) > 0, scorer.score_features(features[order], labels) > 0
    assert torch.equal(one[order], other)


def test_the_contract_of_scorers():
    check_scorer(RobustFeatureScorer)


def test_by_name():
    scorer = get_scorer("robust-features")
    assert isinstance(scorer, RobustFeatureScorer)
    assert scorer.feature_model.adversary == FGSM(8 / 255)
    assert scorer.exclusion_model.adversary is None


def test_the_network_that_reads_the_groups_is_like_the_one_that_is_looked_at():
    backbone, settings = nn.Flatten(), FitSettings(epochs=3)
    looked_at = FeatureModel(backbone=backbone, feature_size=9, fit_settings=settings, adversary=FGSM(0.3))
    reads = RobustFeatureScorer(looked_at).exclusion_model
    assert (reads.backbone, reads.feature_size, reads.fit_settings) == (backbone, 9, settings)
    assert reads.model is None
    handed_in = RobustFeatureScorer(FeatureModel(nn.Linear(4, 4), ""))
    assert handed_in.exclusion_model.model is None


def test_what_counts_as_poison():
    scorer = RobustFeatureScorer(min_transfer=0.6, min_resemblance=0.4)
    assert scorer.is_poison(transfer=0.6, resemblance=0)
    assert scorer.is_poison(transfer=0, resemblance=0.4)
    assert not scorer.is_poison(transfer=0.59, resemblance=0.39)
    positions, log_odds = torch.arange(99), torch.where(torch.arange(99) < 30, 1.0, -1.0).double()
    assert scorer.stands_apart(Subgroup(0, positions, log_odds, 6.5))
    assert not scorer.stands_apart(Subgroup(0, positions, log_odds, 6.4))
    assert not scorer.stands_apart(Subgroup(0, positions[1:], log_odds[1:], 6.5))


def test_settings_are_json_and_tell_scorers_apart():
    kinds = [RobustFeatureScorer(), RobustFeatureScorer(min_transfer=0.7), RobustFeatureScorer(FeatureModel())]
    texts = [json.dumps(kind.settings(), sort_keys=True) for kind in kinds]
    assert len(set(texts)) == 3
    assert json.dumps(copy.deepcopy(kinds[0]).settings(), sort_keys=True) == texts[0]
    assert "min_separation=6.5" in repr(kinds[0])


def test_classes_that_are_too_small():
    with pytest.raises(ValueError, match="at least 12 samples a class, but got 11 of class 4"):
        RobustFeatureScorer().check_labels(torch.tensor([0] * 30 + [4] * 11))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"components": 0}, "components"),
        ({"restarts": 0}, "restarts"),
        ({"min_separation": 0}, "min_separation"),
        ({"min_size": 0}, "min_size"),
        ({"min_transfer": 60}, "min_transfer"),
        ({"min_resemblance": 1.0}, "min_resemblance"),
        ({"seed": -1}, "seed"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=f"`{message}`"):
        RobustFeatureScorer(**settings)


@pytest.mark.parametrize(
    ("name", "value", "came"),
    [
        ("feature_model", FGSM(0.3), r"FGSM\.\nWrite `feature_model=FeatureModel\(adversary=FGSM\(0\.3\)\)`"),
        ("feature_model", nn.Linear(4, 4), r"Linear\.\n.* for a trained network, `FeatureModel\(network, \"layer\"\)`"),
        ("exclusion_model", "plain", r"the str 'plain'\.\nWrite `exclusion_model=FeatureModel\(\)`"),
    ],
)
def test_what_is_no_feature_model_is_refused(name, value, came):
    with pytest.raises(TypeError, match=f"Expected `{name}` to be a `FeatureModel`, but got {came}"):
        RobustFeatureScorer(**{name: value})
