import pytest
import torch

from lightning_poison.scorers.feature_model import FeatureModel
from lightning_poison.scorers.network_groups import NetworkGroupScorer
from lightning_poison.testing.scorers import check_scorer


def rows(count=600, size=8):
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(count, size, generator=generator), torch.arange(count) % 2
    return features, -torch.randn(count, 5, generator=generator).square(), labels


def found(features, densities, labels):
    scorer = NetworkGroupScorer(FeatureModel(feature_size=8))
    groups = scorer.find_groups(torch.cat([features, densities], 1), labels)
    return [group for group in groups if scorer.stands_apart(group)]


@pytest.mark.slow
def test_satisfies_contract():
    check_scorer(NetworkGroupScorer)


def test_finds_groups_in_features():
    features, densities, labels = rows()
    features[:80:2, 0] += 15
    (group,) = found(features, densities, labels)
    assert group.members.sort().values.tolist() == list(range(0, 80, 2))


def test_finds_groups_in_layers_and_divides_them_by_label():
    features, densities, labels = rows()
    densities[100:160] -= 200
    groups = found(features, densities, labels)
    assert [(group.label, group.members.sort().values.tolist()) for group in groups] == [
        (0, list(range(100, 160, 2))),
        (1, list(range(101, 160, 2))),
    ]


def test_finds_none_in_clean_samples():
    assert found(*rows()) == []


def test_densities_alone_suffice():
    _, densities, labels = rows()
    densities[100:160] -= 200
    scorer = NetworkGroupScorer()
    assert {group.label for group in scorer.find_groups(densities, labels)} == {0, 1}


@pytest.mark.parametrize("argument", [{"components": 0}, {"restarts": 0}, {"min_size": 0}, {"min_transfer": 2.0}])
def test_refuses_invalid_arguments(argument):
    with pytest.raises(ValueError, match=next(iter(argument))):
        NetworkGroupScorer(**argument)
