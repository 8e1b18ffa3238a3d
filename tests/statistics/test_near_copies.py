import pytest
import torch

from lightning_poison.data.copies import connected
from lightning_poison.statistics.near_copies import near_copies
from lightning_poison.statistics.stratified import stratified_folds


def images(count=60, side=8):
    return torch.rand(count, 1, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("side", [8, 11, 28])
def test_finds_all_pairs_below_the_distance(side):
    known = images(side=side)
    noise = 0.01 * torch.randn(5, 1, side, side, generator=torch.Generator().manual_seed(1))
    found = near_copies(torch.cat([known, known[10:15] + noise]))
    assert found.tolist() == [[10 + number, 60 + number] for number in range(5)]


def test_exact_copies_are_paired_with_the_first():
    known = images(20)
    assert near_copies(torch.cat([known, known[:1], known[:1]])).tolist() == [[0, 20], [0, 21]]


@pytest.mark.parametrize("given", [images(), images(3), torch.zeros(30, 1, 8, 8)])
def test_finds_none_where_there_are_none(given):
    assert near_copies(given).shape == (0, 2)


def test_folds_keep_groups_together_and_classes_balanced():
    generator = torch.Generator().manual_seed(0)
    labels, groups = torch.arange(300) % 3, torch.randint(60, (300,), generator=generator)
    folds = stratified_folds(labels, 3, generator, groups=groups)
    assert all(len(folds[groups == number].unique()) == 1 for number in groups.unique())
    counts = torch.stack([torch.bincount(folds[labels == number], minlength=3) for number in range(3)])
    assert int(counts.min()) >= 28


def test_folds_of_single_samples_do_not_depend_on_groups():
    labels = torch.arange(50) % 4
    plain, grouped = (
        stratified_folds(labels, 3, torch.Generator().manual_seed(0), groups=groups)
        for groups in (None, 7 * torch.arange(50))
    )
    assert torch.equal(plain, grouped)


def test_refuses_class_in_fewer_groups_than_folds():
    with pytest.raises(ValueError, match="at most the 2 groups of class 1, but got 3"):
        stratified_folds(
            torch.tensor([0, 0, 0, 1, 1, 1]), 3, torch.Generator(), groups=torch.tensor([0, 1, 2, 3, 3, 4])
        )


def test_many_images_that_are_alike_are_connected_in_little_memory():
    generator = torch.Generator().manual_seed(0)
    different = torch.rand(200, 1, 8, 8, generator=generator)
    alike = 0.001 * torch.rand(1500, 1, 8, 8, generator=generator)
    pairs = near_copies(torch.cat([different, alike]))
    assert len(pairs) < 60 * 1500
    groups = connected(torch.arange(1700), pairs)
    assert set(groups[200:].tolist()) == {200}
    assert torch.equal(groups[:200], torch.arange(200))
