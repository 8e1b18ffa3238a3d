import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_poison.scorers.label_scores import margins_to_best_other, surprisals


def test_margins_match_closed_form():
    scores = torch.tensor([[3.0, 1.0, 2.0], [0.0, 0.0, 5.0]])
    assert margins_to_best_other(scores).tolist() == [[2.0, -1.0, 1.0], [0.0, 0.0, 5.0]]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(st.floats(-50, 50), min_size=4, max_size=4), min_size=1, max_size=6))
def test_margins_subtract_the_smallest_other_score(rows):
    scores = torch.tensor(rows)
    for row, found in zip(scores, margins_to_best_other(scores), strict=True):
        for label in range(4):
            assert found[label] == row[label] - torch.cat([row[:label], row[label + 1 :]]).min()


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-200, 200), min_size=2, max_size=6))
def test_surprisals_match_log_softmax_in_double(values):
    logits = torch.tensor([values])
    torch.testing.assert_close(surprisals(logits).double(), -logits.double().log_softmax(1), rtol=1e-5, atol=1e-6)


def test_surprisals_separate_nearly_certain_samples():
    logits = torch.tensor([[20.0, 0.0], [30.0, 0.0], [60.0, 0.0]])
    assert (-logits.log_softmax(1))[1:, 0].abs().max() == 0
    found = surprisals(logits)[:, 0]
    torch.testing.assert_close(found, torch.tensor([-20.0, -30.0, -60.0]).exp())


def test_surprisals_of_two_likeliest_labels_and_gradients():
    logits = torch.tensor([[2.0, 2.0, -1.0]], requires_grad=True)
    found = surprisals(logits)
    torch.testing.assert_close(found, -logits.log_softmax(1))
    (gradient,) = torch.autograd.grad(found[0, 1], logits)
    torch.testing.assert_close(gradient, logits.softmax(1) - torch.tensor([[0.0, 1.0, 0.0]]))
