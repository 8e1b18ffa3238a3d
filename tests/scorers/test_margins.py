import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_poison.scorers.label_scores import margins_to_best_other


def test_margins_by_hand():
    scores = torch.tensor([[3.0, 1.0, 2.0], [0.0, 0.0, 5.0]])
    assert margins_to_best_other(scores).tolist() == [[2.0, -1.0, 1.0], [0.0, 0.0, 5.0]]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(st.floats(-50, 50), min_size=4, max_size=4), min_size=1, max_size=6))
def test_each_is_against_the_smallest_of_the_others(rows):
    scores = torch.tensor(rows)
    for row, found in zip(scores, margins_to_best_other(scores), strict=True):
        for label in range(4):
            assert found[label] == row[label] - torch.cat([row[:label], row[label + 1 :]]).min()
