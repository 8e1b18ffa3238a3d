import pytest

from lightning_poison.scorers import CombinedScorer, ConfidenceScorer, RandomScorer, RobustFeatureScorer, UnionScorer
from lightning_poison.scorers.inspection import all_members_of, settings_of, weights_of


def test_names_members_after_their_scorers():
    union = UnionScorer([ConfidenceScorer(), RobustFeatureScorer(), ConfidenceScorer("margin")])
    assert list(union.members) == ["confidence", "robust-features", "confidence-2"]


@pytest.mark.parametrize("kind", [CombinedScorer, UnionScorer])
def test_members_have_names_of_the_user(kind):
    named = kind({"labels": ConfidenceScorer(), "groups": RobustFeatureScorer()})
    assert list(named.members) == ["labels", "groups"]
    assert repr(named).startswith(f"{kind.__name__}({{'labels': ConfidenceScorer(")
    assert repr(kind([ConfidenceScorer(), ConfidenceScorer()])).startswith(f"{kind.__name__}([ConfidenceScorer(")
    assert list(settings_of(named)["members"]) == ["labels", "groups"]


def test_combinations_may_be_members():
    combined = CombinedScorer([ConfidenceScorer(), ConfidenceScorer("margin")])
    union = UnionScorer([combined, RobustFeatureScorer()])
    assert [each.name for each in all_members_of(union)] == ["confidence", "confidence", "robust-features"]


def test_settings_distinguish_unions():
    pair = [ConfidenceScorer(), RobustFeatureScorer()]
    settings = [
        settings_of(UnionScorer(pair)),
        settings_of(UnionScorer(pair[::-1])),
        settings_of(UnionScorer(pair, rounds=1)),
    ]
    assert len({str(each) for each in settings}) == 3
    assert weights_of(UnionScorer(pair)) is None


def test_control_makes_a_control():
    assert UnionScorer([ConfidenceScorer(), RandomScorer()]).is_control
    assert not UnionScorer([ConfidenceScorer(), RobustFeatureScorer()]).is_control


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([ConfidenceScorer()],), ValueError, "two scorers or more, but got 1"),
        (([ConfidenceScorer(), ConfidenceScorer],), TypeError, "the class ConfidenceScorer"),
        (([ConfidenceScorer(), UnionScorer([ConfidenceScorer(), RobustFeatureScorer()])],), TypeError, "a combination"),
        (({0: ConfidenceScorer(), 1: ConfidenceScorer()},), TypeError, "Expected `scorers`"),
    ],
)
def test_refuses_invalid_members(arguments, error, message):
    with pytest.raises(error, match=message):
        UnionScorer(*arguments)


@pytest.mark.parametrize("rounds", [0, -1, 1.5])
def test_refuses_invalid_rounds(rounds):
    with pytest.raises((ValueError, TypeError), match="rounds"):
        UnionScorer([ConfidenceScorer(), RobustFeatureScorer()], rounds=rounds)
