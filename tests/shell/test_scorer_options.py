import pytest

from lightning_poison.scorers import RecommendedScorer, UnionScorer
from lightning_poison.shell.scorer_options import scorer_from_option


@pytest.mark.parametrize("preset", ["fast", "balanced", "thorough"])
def test_presets(preset):
    scorer = scorer_from_option(preset)
    assert isinstance(scorer, RecommendedScorer)
    assert scorer.settings() == RecommendedScorer(preset).settings()


def test_settings_that_are_objects():
    scorer = scorer_from_option({"name": "likelihood", "fit_settings": {"epochs": 3, "min_steps": 7}})
    assert (scorer.fit_settings.epochs, scorer.fit_settings.min_steps) == (3, 7)


def test_several_scorers_are_a_union():
    listed = scorer_from_option([{"name": "confidence"}, "likelihood"])
    named = scorer_from_option("confidence, likelihood")
    assert isinstance(listed, UnionScorer)
    assert list(listed.members) == list(named.members) == ["confidence", "likelihood"]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("", "but got ''"),
        ([], r"but got '\[\]'"),
        ("likelyhood", "Did you mean likelihood"),
        ("balancd", "Did you mean balanced"),
        ({"margin": 1}, "the key `name`, but got margin"),
        ({"name": 3}, "the key `name`"),
        ({"name": "likelihood", "marign": 1}, "but got 'marign'.\nDid you mean margin"),
        ({"name": "likelihood", "margin": -1}, "margin"),
        ({"name": "likelihood", "fit_settings": {"epoch": 1}}, "settings of the scorer likelihood are not accepted"),
        (["confidence", "confidence"], "different scorers, but got confidence twice"),
    ],
)
def test_refuses_what_is_no_scorer(option, message):
    with pytest.raises(ValueError, match=message):
        scorer_from_option(option)


def test_backbone_is_for_presets():
    with pytest.raises(ValueError, match="`backbone` to be without other scorers"):
        scorer_from_option("likelihood", "timm:resnet18")
    with pytest.raises(ValueError, match="Write 'timm:resnet18'"):
        scorer_from_option("balanced", "resnet18")
