import io

import pytest
import torch

from lightning_poison.sanitization.stored_decision import StoredDecision, marks_of


def stored(**parts):
    keep = torch.arange(13) % 3 > 0
    return StoredDecision(**{"fingerprint": "5f", "settings": {"folds": 3}, "keep": keep, "marks": None, **parts})


@pytest.mark.parametrize("marks", [None, torch.arange(13).to(torch.int16)])
@pytest.mark.parametrize("by_hand", [None, torch.arange(13) == 3])
def test_state_survives_a_checkpoint_without_pickled_objects(marks, by_hand):
    file = io.BytesIO()
    masks = {"marks": marks, "removed_by_hand": by_hand, "kept_by_hand": None if by_hand is None else by_hand.flip(0)}
    torch.save(stored(file="/runs/verdict.safetensors", **masks).state(), file)
    file.seek(0)
    found = StoredDecision.from_state(torch.load(file, weights_only=True))
    assert torch.equal(found.keep, stored().keep)
    assert (found.fingerprint, found.settings, found.file) == ("5f", {"folds": 3}, "/runs/verdict.safetensors")
    for name, given in masks.items():
        mask = getattr(found, name)
        assert mask is None if given is None else torch.equal(mask, given)


def test_state_of_a_release_without_decisions_by_hand_is_read():
    state = stored().state()
    del state["removed_by_hand"], state["kept_by_hand"]
    found = StoredDecision.from_state(state)
    assert found.removed_by_hand is None
    assert found.kept_by_hand is None


def test_state_is_small():
    keep = torch.ones(100_000, dtype=torch.bool)
    state = stored(keep=keep, marks=torch.zeros(100_000, dtype=torch.int16)).state()
    assert state["keep"].nbytes + state["marks"].nbytes == 100_000 // 8 + 200_000


def test_marks_are_the_lowest_bits():
    assert marks_of(torch.tensor([2**40 + 5, -2])).tolist() == [5, -2]


@pytest.mark.parametrize(
    "parts",
    [
        {"keep": torch.ones(3)},
        {"marks": torch.zeros(13)},
        {"marks": torch.zeros(2).short()},
        {"removed_by_hand": torch.zeros(13)},
        {"removed_by_hand": torch.zeros(2, dtype=torch.bool)},
        {"kept_by_hand": torch.zeros(13)},
    ],
)
def test_refuses_other_tensors(parts):
    with pytest.raises(ValueError, match=r"Expected `(keep|marks|removed_by_hand|kept_by_hand)` to be"):
        stored(**parts)


def test_state_of_a_release_without_samples_kept_by_hand_stays_one():
    state = stored(removed_by_hand=torch.arange(13) == 3).state()
    del state["kept_by_hand"]
    again = StoredDecision.from_state(StoredDecision.from_state(state).state())
    assert not again.knows_kept
    assert again.removed_by_hand.nonzero().flatten().tolist() == [3]
    assert StoredDecision.from_state(stored().state()).knows_kept
