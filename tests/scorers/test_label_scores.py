import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_poison.scorers.label_scores import surprisals


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-200, 200), min_size=2, max_size=6))
def test_it_is_minus_log_softmax_in_higher_precision(values):
    logits = torch.tensor([values])
    torch.testing.assert_close(surprisals(logits).double(), -logits.double().log_softmax(1), rtol=1e-5, atol=1e-6)


def test_samples_that_are_all_but_certain_stay_in_order():
    logits = torch.tensor([[20.0, 0.0], [30.0, 0.0], [60.0, 0.0]])
    assert (-logits.log_softmax(1))[1:, 0].abs().max() == 0
    found = surprisals(logits)[:, 0]
    torch.testing.assert_close(found, torch.tensor([-20.0, -30.0, -60.0]).exp())


def test_two_likeliest_labels_and_gradients():
    logits = torch.tensor([[2.0, 2.0, -1.0]], requires_grad=True)
    found = surprisals(logits)
    torch.testing.assert_close(found, -logits.log_softmax(1))
    (gradient,) = torch.autograd.grad(found[0, 1], logits)
    torch.testing.assert_close(gradient, logits.softmax(1) - torch.tensor([[0.0, 1.0, 0.0]]))
