import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_poison.statistics.stratified import stratified_folds, stratified_part


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(2, 4), st.integers(0, 99))
def test_folds_spread_each_class_evenly(values, folds, seed):
    labels = torch.tensor(values * folds)
    assigned = stratified_folds(labels, folds, seeded(seed))
    for number in labels.unique():
        counts = assigned[labels == number].bincount(minlength=folds)
        assert len(counts) == folds
        assert int(counts.max() - counts.min()) <= 1
    assert torch.equal(assigned, stratified_folds(labels, folds, seeded(seed)))


def test_remainders_are_spread_over_folds():
    labels = torch.arange(100).repeat_interleave(4)
    counts = stratified_folds(labels, 3, seeded()).bincount()
    assert int(counts.max() - counts.min()) < 60


def test_refuses_class_smaller_than_folds():
    with pytest.raises(ValueError, match=r"at most the 2 samples of class 5, but got 3\.\nUse fewer folds"):
        stratified_folds(torch.tensor([0, 0, 0, 5, 5]), 3, seeded())


@pytest.mark.parametrize("folds", [1, 0, 2.5])
def test_refuses_invalid_number_of_folds(folds):
    with pytest.raises(ValueError, match="`folds` to be an integer of at least 2"):
        stratified_folds(torch.zeros(9).long(), folds, seeded())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.floats(0.05, 0.95), st.integers(0, 99))
def test_part_has_share_of_each_class(values, share, seed):
    labels = torch.tensor(values * 2)
    chosen = stratified_part(labels, share, seeded(seed), among=labels)
    for number in labels.unique():
        of_class = chosen[labels == number]
        assert 1 <= int(of_class.sum()) <= max(1, round(share * len(of_class)))
    assert torch.equal(chosen, stratified_part(labels, share, seeded(seed), among=labels))


def test_part_excludes_other_classes():
    labels = torch.tensor([0, 0, 1, 2, 2, 2])
    assert not stratified_part(labels, 0.5, seeded(), among=torch.tensor([0, 2]))[2]


def test_refuses_class_of_one_sample():
    with pytest.raises(ValueError, match="at least two samples of class 1, but got 1"):
        stratified_part(torch.tensor([0, 0, 1]), 0.3, seeded(), among=torch.tensor([0, 1]))


@pytest.mark.parametrize("size", [2, 3, 5])
def test_part_never_has_all_of_a_class(size):
    chosen = stratified_part(torch.zeros(size).long(), 0.99, seeded(), among=torch.tensor([0]))
    assert 1 <= int(chosen.sum()) < size
