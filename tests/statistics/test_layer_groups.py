import pytest
import torch

from lightning_poison.statistics.layer_groups import deviations, find_layer_groups


def densities(count=900, layers=4, seed=0):
    """Log-densities of standard normal numbers, up to a constant."""
    generator = torch.Generator().manual_seed(seed)
    return -torch.randn(count, layers, generator=generator, dtype=torch.float64).square() / 2


def test_deviations_are_distances_in_standard_deviations():
    numbers = torch.linspace(0, 9, 20, dtype=torch.float64)[:, None]
    log_density = torch.distributions.Normal(2.0, 3.0).log_prob(2 + 3 * numbers)
    assert torch.allclose(deviations(log_density), numbers, atol=1e-5)


def test_finds_a_group_of_all_labels_and_divides_it():
    values, labels = densities(), torch.arange(900) % 9
    values[:90, :3] -= 60
    found = [group for group in find_layer_groups(values, labels, min_separation=6.5) if group.separation >= 6.5]
    assert [group.label for group in found] == list(range(9))
    assert all(group.members.tolist() == list(range(label, 90, 9)) for label, group in enumerate(found))
    assert all(bool((labels[group.positions] == group.label).all()) for group in found)
    assert len({group.separation for group in found}) == 1


def test_leaves_out_last_layers_in_which_the_group_does_not_show():
    values, labels = densities(layers=6), torch.zeros(900, dtype=torch.int64)
    values[:60, 0] -= 60
    values[:, 1:] -= 40 * densities(layers=5, seed=1).square()
    found = find_layer_groups(values, labels, min_separation=6.5)
    assert found[0].members.tolist() == list(range(60))


def test_a_whole_label_is_no_group():
    values, labels = densities(), (torch.arange(900) < 90).long()
    values[:90] -= 60
    assert all(group.label == 0 for group in find_layer_groups(values, labels, min_separation=6.5))


@pytest.mark.parametrize("seed", range(3))
def test_finds_no_group_in_normal_numbers(seed):
    found = find_layer_groups(densities(seed=seed), torch.zeros(900, dtype=torch.int64), min_separation=6.5)
    assert all(group.separation < 6.5 for group in found)


def test_constant_layers_are_passed_over():
    values = torch.cat([torch.zeros(900, 1, dtype=torch.float64), densities()], 1)
    values[:60, 1:] -= 60
    found = find_layer_groups(values, torch.zeros(900, dtype=torch.int64), min_separation=6.5)
    assert found[0].members.tolist() == list(range(60))


def test_many_layers_are_tried_at_even_steps():
    values = densities(count=300, layers=40)
    values[:30] -= 60
    found = find_layer_groups(values, torch.zeros(300, dtype=torch.int64), min_separation=6.5, max_cuts=2)
    assert found[0].members.tolist() == list(range(30))


@pytest.mark.parametrize("name", ["max_share", "max_cuts", "min_size", "min_separation"])
def test_refuses_settings_out_of_range(name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        find_layer_groups(densities(), torch.zeros(900, dtype=torch.int64), **{"min_separation": 6.5, name: 0})
