import io

import pytest
import torch

from lightning_poison.sanitization.stored_decision import StoredDecision, marks_of


def stored(**parts):
    keep = torch.arange(13) % 3 > 0
    return StoredDecision(**{"fingerprint": "5f", "settings": {"folds": 3}, "keep": keep, "marks": None, **parts})


@pytest.mark.parametrize("marks", [None, torch.arange(13).to(torch.int16)])
def test_state_survives_a_checkpoint_without_pickled_objects(marks):
    file = io.BytesIO()
    torch.save(stored(marks=marks, file="/runs/verdict.safetensors").state(), file)
    file.seek(0)
    found = StoredDecision.from_state(torch.load(file, weights_only=True))
    assert torch.equal(found.keep, stored().keep)
    assert (found.fingerprint, found.settings, found.file) == ("5f", {"folds": 3}, "/runs/verdict.safetensors")
    assert marks is None if found.marks is None else torch.equal(found.marks, marks)


def test_state_is_small():
    keep = torch.ones(100_000, dtype=torch.bool)
    state = stored(keep=keep, marks=torch.zeros(100_000, dtype=torch.int16)).state()
    assert state["keep"].nbytes + state["marks"].nbytes == 100_000 // 8 + 200_000


def test_marks_are_the_lowest_bits():
    assert marks_of(torch.tensor([2**40 + 5, -2])).tolist() == [5, -2]


@pytest.mark.parametrize(
    "parts", [{"keep": torch.ones(3)}, {"marks": torch.zeros(13)}, {"marks": torch.zeros(2).short()}]
)
def test_refuses_other_tensors(parts):
    with pytest.raises(ValueError, match=r"Expected `(keep|marks)` to be"):
        stored(**parts)
