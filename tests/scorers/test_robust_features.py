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


def test_only_members_of_separated_groups_score_above_zero():
    features = torch.cat([features_with_a_group(), features_with_a_group(members=0)])
    labels = torch.arange(600) // 300
    scores = RobustFeatureScorer().score_features(features, labels)
    assert scores.dtype == torch.float32
    assert (scores > 0).nonzero().flatten().tolist() == list(range(30))
    assert len(torch.unique(scores[300:])) > 290


def test_scores_do_not_depend_on_the_order():
    features, labels = features_with_a_group(), torch.zeros(300, dtype=torch.int64)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    scorer = RobustFeatureScorer()
    one, other = scorer.score_features(features, labels) > 0, scorer.score_features(features[order], labels) > 0
    assert torch.equal(one[order], other)


def test_complies_with_contract():
    check_scorer(RobustFeatureScorer)


def test_is_registered_by_name():
    scorer = get_scorer("robust-features")
    assert isinstance(scorer, RobustFeatureScorer)
    assert scorer.feature_model.adversary == FGSM(8 / 255)
    assert scorer.exclusion_model.adversary is None


def test_exclusion_model_has_the_settings_of_the_feature_model():
    backbone, settings = nn.Flatten(), FitSettings(epochs=3)
    model = FeatureModel(backbone=backbone, feature_size=9, fit_settings=settings, adversary=FGSM(0.3))
    exclusion = RobustFeatureScorer(model).exclusion_model
    assert (exclusion.backbone, exclusion.feature_size, exclusion.fit_settings) == (backbone, 9, settings)
    assert exclusion.adversary is None
    assert RobustFeatureScorer(FeatureModel(nn.Linear(4, 4), "")).exclusion_model.model is None


def test_minimums_determine_poison_and_groups():
    scorer = RobustFeatureScorer(min_transfer=0.6, min_resemblance=0.4)
    assert scorer.is_poison(transfer=0.6, resemblance=0)
    assert scorer.is_poison(transfer=0, resemblance=0.4)
    assert not scorer.is_poison(transfer=0.59, resemblance=0.39)
    positions, log_odds = torch.arange(99), torch.where(torch.arange(99) < 30, 1.0, -1.0).double()
    assert scorer.stands_apart(Subgroup(0, positions, log_odds, 6.5))
    assert not scorer.stands_apart(Subgroup(0, positions, log_odds, 6.4))
    assert not scorer.stands_apart(Subgroup(0, positions[1:], log_odds[1:], 6.5))


def test_settings_are_json_and_distinguish_scorers():
    kinds = [RobustFeatureScorer(), RobustFeatureScorer(min_transfer=0.7), RobustFeatureScorer(FeatureModel())]
    texts = [json.dumps(kind.settings(), sort_keys=True) for kind in kinds]
    assert len(set(texts)) == 3
    assert json.dumps(copy.deepcopy(kinds[0]).settings(), sort_keys=True) == texts[0]
    assert "min_transfer=0.7" in repr(kinds[1])


def test_refuses_small_classes():
    with pytest.raises(ValueError, match="at least 12 samples per class, but got 11 of class 4"):
        RobustFeatureScorer().check_set(torch.tensor([0] * 30 + [4] * 11))


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
def test_refuses_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=f"`{message}`"):
        RobustFeatureScorer(**settings)


@pytest.mark.parametrize(
    ("name", "value", "received"),
    [
        ("feature_model", FGSM(0.3), r"FGSM\.\nWrite `feature_model=FeatureModel\(adversary=FGSM\(0\.3\)\)`"),
        ("feature_model", nn.Linear(4, 4), r"Linear\.\n.* for a trained network, `FeatureModel\(network, \"layer\"\)`"),
        ("exclusion_model", "plain", r"the str 'plain'\.\nWrite `exclusion_model=FeatureModel\(\)`"),
    ],
)
def test_refuses_other_feature_models(name, value, received):
    with pytest.raises(TypeError, match=f"Expected `{name}` to be a `FeatureModel`, but got {received}"):
        RobustFeatureScorer(**{name: value})
