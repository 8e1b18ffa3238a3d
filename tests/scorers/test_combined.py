import json

import pytest

from lightning_poison.scorers.combined import CombinedScorer
from lightning_poison.scorers.deep_knn import DeepKNNScorer
from lightning_poison.scorers.inspection import settings_of
from lightning_poison.scorers.likelihood import LikelihoodScorer
from lightning_poison.scorers.pixel_counting import PixelCountingScorer


def named(name):
    scorer = DeepKNNScorer()
    scorer.name = name
    return scorer


def test_numbers_members_with_the_same_name():
    scorers = [LikelihoodScorer(), PixelCountingScorer(), LikelihoodScorer("posterior"), LikelihoodScorer()]
    combined = CombinedScorer(scorers)
    assert list(combined.members) == ["likelihood", "pixel-counting", "likelihood-2", "likelihood-3"]
    assert list(combined.members.values()) == scorers


@pytest.mark.parametrize(
    ("names", "expected"),
    [(("x", "x", "x-2"), ["x", "x-2", "x-2-2"]), (("x-2", "x", "x"), ["x-2", "x", "x-3"])],
)
def test_member_names_are_unique(names, expected):
    assert list(CombinedScorer([named(name) for name in names]).members) == expected


def test_is_control_if_a_member_is():
    control = PixelCountingScorer()
    control.is_control = True
    assert CombinedScorer([control, DeepKNNScorer()]).is_control
    assert not CombinedScorer([PixelCountingScorer(), DeepKNNScorer()]).is_control


def test_repr_and_settings_contain_members():
    combined = CombinedScorer([LikelihoodScorer("posterior"), DeepKNNScorer(k=7)], combine="sum")
    model = "FeatureModel(feature_size=64)"
    members = f"LikelihoodScorer(score='posterior'), DeepKNNScorer(feature_model={model}, k=7)"
    assert repr(combined) == f"CombinedScorer([{members}], combine='sum')"
    settings = json.loads(json.dumps(settings_of(combined)))
    assert settings["combine"] == "sum"
    assert settings["members"]["likelihood"]["score"] == "posterior"
    assert settings["members"]["deep-knn"]["k"] == 7


@pytest.mark.parametrize(
    ("scorers", "error", "message"),
    [
        ([DeepKNNScorer()], ValueError, "two scorers or more, but got 1"),
        ([], ValueError, "two scorers or more, but got 0"),
        ([DeepKNNScorer(), "likelihood"], TypeError, "but got 'likelihood'"),
        ([DeepKNNScorer(), LikelihoodScorer], TypeError, "but got the class LikelihoodScorer"),
        ([DeepKNNScorer(), CombinedScorer([DeepKNNScorer()] * 2)], TypeError, "List its members instead"),
    ],
)
def test_refuses_invalid_members(scorers, error, message):
    with pytest.raises(error, match=message):
        CombinedScorer(scorers)


def test_refuses_unknown_combination():
    with pytest.raises(ValueError, match="`combine` to be one of 'max', 'sum', but got mean"):
        CombinedScorer([DeepKNNScorer(), PixelCountingScorer()], combine="mean")
