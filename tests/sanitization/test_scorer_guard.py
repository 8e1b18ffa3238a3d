"""The guard of scorers; most of its checks are tested by the calls in `test_scorer_calls.py`."""

import pytest
import torch

from lightning_poison.data.blocks import MemoryDataset
from lightning_poison.errors import PluginError
from lightning_poison.sanitization.scorer_guard import (
    ScorerCall,
    check_declarations,
    copies_for,
    with_copied_samples,
)
from lightning_poison.scorers.likelihood import LikelihoodScorer
from lightning_poison.scorers.pixel_counting import PixelCountingScorer


class Derived(PixelCountingScorer):
    pass


def test_own_scorers_get_no_copies():
    tensor = torch.zeros(2)
    assert copies_for(PixelCountingScorer(), tensor)[0] is tensor
    assert copies_for(Derived(), tensor)[0] is not tensor


def test_own_calls_are_not_guarded():
    states = []
    ScorerCall(LikelihoodScorer(), "fit").run(lambda: states.append(torch.manual_seed(5).get_state()))
    assert torch.equal(torch.get_rng_state(), states[0])


def test_result_of_own_scorer_is_not_copied():
    scores = torch.zeros(2, dtype=torch.float64)
    assert (
        ScorerCall(LikelihoodScorer(), "score_batch").vector(scores, torch.zeros(2, 3)).data_ptr() == scores.data_ptr()
    )


def test_samples_in_memory_are_copies():
    memory = MemoryDataset(torch.zeros(2, 3), torch.zeros(2).long())
    copied = with_copied_samples(memory)
    assert isinstance(copied, MemoryDataset)
    for part in copied[1]:
        part.add_(1)
    copied.targets.add_(1)
    assert memory.inputs.sum() == memory.targets.sum() == 0


def fails(scorer):
    raise ZeroDivisionError


@pytest.mark.parametrize("name", ["name", "is_fitted", "is_control", "scores_labels", "finds_groups", "feature_model"])
def test_property_that_fails_is_named(name):
    scorer = type("Mine", (Derived,), {name: property(fails)})()
    what = "`name` of Mine" if name == "name" else f"`{name}` of the scorer `pixel-counting`"
    with pytest.raises(PluginError, match=f"Expected {what} to succeed, but it raised ZeroDivisionError"):
        check_declarations(scorer)
    check_declarations(Derived())
    check_declarations(PixelCountingScorer())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (fails, "to succeed, but it raised ZeroDivisionError"),
        (lambda scorer: None, "to return a dict of JSON values, but got None"),
        (lambda scorer: [1], "to return a dict of JSON values, but got list"),
    ],
)
def test_settings_that_fail_are_named(settings, message):
    with pytest.raises(PluginError, match=f"Expected `settings` of the scorer `pixel-counting` {message}"):
        check_declarations(type("Mine", (Derived,), {"settings": settings})())


def test_settings_of_a_feature_model_that_fail_are_named():
    scorer = type("Mine", (Derived,), {"feature_model": type("Network", (), {"settings": fails})()})()
    with pytest.raises(PluginError, match="Expected `settings` of the feature model `Network` to succeed"):
        check_declarations(scorer)
