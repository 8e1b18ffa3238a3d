import pytest
import torch

from lightning_poison.statistics.arguments import check_fraction, check_integer, check_label_vector, invalid


@pytest.mark.parametrize("value", [0, 1, -0.5, 1.5, float("nan"), True, "0.5", None])
def test_refuses_what_is_no_fraction(value):
    with pytest.raises(ValueError, match=r"Expected `rate` to be a number in \(0, 1\), but got "):
        check_fraction("rate", value)


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "3", None])
def test_refuses_what_is_no_positive_integer(value):
    with pytest.raises(ValueError, match="Expected `bins` to be an integer of at least 1, but got "):
        check_integer("bins", value)


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (torch.zeros(2), r"a float32 tensor of shape \(2,\)"),
        (torch.zeros(2, 1).long(), r"a int64 tensor of shape \(2, 1\)"),
        ([0, 1], "list"),
    ],
)
def test_refuses_what_is_no_label_vector(labels, found):
    with pytest.raises(ValueError, match=f"Expected `labels` to be a one-dimensional int64 tensor, but got {found}"):
        check_label_vector("labels", labels)


@pytest.mark.parametrize("labels", [[0, 3], [-1, 0]])
def test_refuses_labels_out_of_range(labels):
    with pytest.raises(ValueError, match=rf"in \[0, 3\), but got labels from {labels[0]} to {labels[1]}"):
        check_label_vector("labels", torch.tensor(labels), num_classes=3)


def test_accepts_what_is_in_range():
    check_fraction("rate", 0.5)
    check_integer("bins", 0, minimum=0)
    check_label_vector("labels", torch.tensor([0, 2]), num_classes=3)
    check_label_vector("labels", torch.tensor([], dtype=torch.long), num_classes=3)


def test_hint_follows_on_a_new_line():
    assert str(invalid("x", "small", 9, "Divide it.")) == "Expected `x` to be small, but got 9.\nDivide it."
