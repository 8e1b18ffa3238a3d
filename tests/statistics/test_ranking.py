import torch

from lightning_poison.statistics.p_values import share_at_least_as_suspicious


def test_first_key_rules_and_the_second_breaks_its_ties():
    keys = torch.tensor([[0.0, 9.0], [1.0, 0.0], [1.0, 5.0], [0.0, 9.0]])
    right = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    assert share_at_least_as_suspicious(keys, right).tolist() == [1.0, 0.5, 0.3, 1.0]


def test_shares_are_positive_where_all_weight_is_gone():
    shares = share_at_least_as_suspicious(torch.rand(4, 1), torch.zeros(4, dtype=torch.float64))
    assert ((shares > 0) & (shares <= 1)).all()
