import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_poison.statistics.p_values import combine_log_p, suggested_by


def test_known_values():
    log_p = torch.tensor([[0.1, 1e-4, 1.0], [0.1, 0.1, 1.0]]).log()
    torch.testing.assert_close(combine_log_p(log_p), torch.tensor([1.0, 4.0, 0.0]))
    torch.testing.assert_close(combine_log_p(log_p, "sum"), torch.tensor([2.0, 5.0, 0.0]))


def test_label_scores_are_combined_place_by_place():
    log_p = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0)) - 4
    for how in ("max", "sum"):
        each = torch.stack([combine_log_p(log_p[:, :, number], how) for number in range(4)], dim=1)
        torch.testing.assert_close(combine_log_p(log_p, how), each)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-50, 0), min_size=2, max_size=6), st.floats(0.1, 5), st.sampled_from(["max", "sum"]))
def test_a_smaller_p_value_is_never_less_suspicious(log_p, smaller, how):
    before = torch.tensor(log_p)[:, None]
    after = before.clone()
    after[0] -= smaller
    assert combine_log_p(after, how) >= combine_log_p(before, how)


def test_far_out_it_goes_on():
    assert combine_log_p(torch.tensor([[-1e6], [-2.0]]).double()) > combine_log_p(
        torch.tensor([[-9e5], [-2.0]]).double()
    )


def test_who_accuses_most_is_asked():
    log_p = torch.tensor([[-9.0, -1.0, -1.0], [-2.0, -3.0, -9.0]])
    assert suggested_by(log_p, torch.tensor([[1, 2, -1], [3, 4, -1]])).tolist() == [1, 4, -1]


@pytest.mark.parametrize("place", [0, 1])
def test_who_suggests_nothing_is_not_asked(place):
    suggestions = torch.full((2, 1), -1)
    suggestions[place] = 7
    assert suggested_by(torch.tensor([[-5.0], [-1.0]]), suggestions).tolist() == [7]
