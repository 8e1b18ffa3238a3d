import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_poison.statistics.p_values import combine_log_p, select_suggestions, share_at_least_as_suspicious


def test_ranking_uses_second_key_for_ties_of_first():
    keys = torch.tensor([[0.0, 9.0], [1.0, 0.0], [1.0, 5.0], [0.0, 9.0]])
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    assert share_at_least_as_suspicious(keys, weights).tolist() == [1.0, 0.5, 0.3, 1.0]


def test_shares_are_positive_if_all_weights_are_zero():
    shares = share_at_least_as_suspicious(torch.rand(4, 1), torch.zeros(4, dtype=torch.float64))
    assert ((shares > 0) & (shares <= 1)).all()


def test_combination_matches_known_values():
    log_p = torch.tensor([[0.1, 1e-4, 1.0], [0.1, 0.1, 1.0]]).log()
    torch.testing.assert_close(combine_log_p(log_p), torch.tensor([1.0, 4.0, 0.0]))
    torch.testing.assert_close(combine_log_p(log_p, "sum"), torch.tensor([2.0, 5.0, 0.0]))


def test_combination_is_elementwise_over_labels():
    log_p = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0)) - 4
    for how in ("max", "sum"):
        each = torch.stack([combine_log_p(log_p[:, :, number], how) for number in range(4)], dim=1)
        torch.testing.assert_close(combine_log_p(log_p, how), each)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-50, 0), min_size=2, max_size=6), st.floats(0.1, 5), st.sampled_from(["max", "sum"]))
def test_combination_is_monotonic(log_p, smaller, how):
    before = torch.tensor(log_p)[:, None]
    after = before.clone()
    after[0] -= smaller
    assert combine_log_p(after, how) >= combine_log_p(before, how)


def test_combination_does_not_saturate():
    assert combine_log_p(torch.tensor([[-1e6], [-2.0]]).double()) > combine_log_p(
        torch.tensor([[-9e5], [-2.0]]).double()
    )


def test_selects_suggestion_of_smallest_p_value():
    log_p = torch.tensor([[-9.0, -1.0, -1.0], [-2.0, -3.0, -9.0]])
    assert select_suggestions(log_p, torch.tensor([[1, 2, -1], [3, 4, -1]])).tolist() == [1, 4, -1]


@pytest.mark.parametrize("place", [0, 1])
def test_ignores_filters_without_suggestion(place):
    suggestions = torch.full((2, 1), -1)
    suggestions[place] = 7
    assert select_suggestions(torch.tensor([[-5.0], [-1.0]]), suggestions).tolist() == [7]
