"""The guard of scorers; most of its checks are tested by the calls in `test_scorer_calls.py`."""

import torch

from lightning_poison.data.blocks import MemoryDataset
from lightning_poison.sanitization.scorer_guard import ScorerCall, copies_for, is_own, with_copied_samples
from lightning_poison.scorers.likelihood import LikelihoodScorer
from lightning_poison.scorers.pixel_counting import PixelCountingScorer


class Derived(PixelCountingScorer):
    pass


def test_derived_scorer_is_of_another_package():
    assert is_own(PixelCountingScorer())
    assert not is_own(Derived())
    assert not is_own(object())


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
