import pytest
import torch

from lightning_poison.errors import InconclusiveError
from lightning_poison.sanitization.trusted_labels import check_numbering, wrong_label_note

LABELS = torch.arange(1_000) % 10


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (lambda labels: (labels + 1) % 10, "10 of 10 classes look like another class of `trusted`, the next one: the"),
        (
            lambda labels: (labels - 1) % 10,
            "10 of 10 classes look like another class of `trusted`, the one before: the",
        ),
        (lambda labels: 9 - labels, "10 of 10 classes look like another class of `trusted`: the classes"),
        (lambda labels: torch.where(labels < 2, 1 - labels, labels), "2 of 10 classes look like another class"),
    ],
)
def test_other_numbers_of_classes_are_named(number, message):
    with pytest.raises(InconclusiveError, match=message):
        check_numbering(LABELS, number(LABELS))


def test_poison_is_no_other_numbering():
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(1_000, generator=generator) < 0.7
    check_numbering(LABELS, torch.where(noise, torch.randint(10, (1_000,), generator=generator), LABELS))
    check_numbering(LABELS, torch.where(LABELS == 3, 5, LABELS))  # a class full of samples of another one
    check_numbering(LABELS, torch.full_like(LABELS, -1))  # a scorer that predicts no labels


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_wrong_labels_are_estimated_and_listed(share):
    generator = torch.Generator().manual_seed(0)
    label_scores = torch.rand(1_000, 10, generator=generator).double() + 5 - 5 * torch.eye(10)[LABELS]
    wrong = torch.arange(1_000) < 1_000 * share
    note = wrong_label_note(
        torch.where(wrong, (LABELS + 3) % 10, LABELS), label_scores, torch.arange(1_000) + 50, natural_error_rate=0.003
    )
    listed = [int(each) for each in note.partition("such as ")[2].partition(".")[0].split(", ")]
    assert note.startswith("`trusted` has wrong labels: an estimated ")
    assert all(50 <= index < 50 + 1_000 * share for index in listed)
    assert len(listed) == 5


def test_correct_labels_are_not_mentioned():
    generator = torch.Generator().manual_seed(0)
    label_scores = torch.rand(1_000, 10, generator=generator).double() + 5 - 5 * torch.eye(10)[LABELS]
    assert wrong_label_note(LABELS, label_scores, LABELS, natural_error_rate=0.003) is None
    assert wrong_label_note(LABELS[:20], label_scores[:20], LABELS, natural_error_rate=0.003) is None
