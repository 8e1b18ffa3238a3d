import pytest
import torch
from torch.utils.data import Subset, TensorDataset

from lightning_poison.attacks import PatchTrigger
from lightning_poison.attacks.evaluation_sets import EvaluationSubset, StoredTargets
from lightning_poison.testing.tiny_images import TinyImages

WHITE = PatchTrigger(torch.full((1, 8, 8), 255, dtype=torch.uint8))
RAW = torch.stack([torch.full((1, 8, 8), value, dtype=torch.uint8) for value in (51, 102)])


def test_subset_has_the_chosen_samples_in_order():
    test, indices = TinyImages(9), torch.tensor([7, 2])
    items = EvaluationSubset(test, indices, true=torch.tensor([1, 2]), wanted=torch.tensor([0, -1]))
    assert len(items) == 2
    for position, (image, true, wanted) in enumerate(items[number] for number in range(2)):
        assert torch.equal(image, test[int(indices[position])][0])
        assert (true, wanted) == [(1, 0), (2, -1)][position]


def test_trigger_precedes_the_transform_and_leaves_the_test_set_alone():
    test = TinyImages(9)
    before = test[4][0].clone()
    one = torch.tensor([4])
    assert (EvaluationSubset(test, one, one, one, WHITE)[0][0] == 1).all()
    assert torch.equal(test[4][0], before)


def test_stored_targets_pass_through_the_transform_of_the_test_set():
    labels, wanted = torch.tensor([2, 0]), torch.tensor([-1, 1])
    items = StoredTargets(RAW, labels, wanted, carrier=TinyImages(3))
    assert [items[number][0].unique().tolist() for number in range(2)] == [[pytest.approx(0.2)], [pytest.approx(0.4)]]
    assert [items[number][1:] for number in range(len(items))] == [(2, -1), (0, 1)]
    assert RAW[0].unique().tolist() == [51], "the stored images are unchanged"


def test_targets_without_a_carrier_are_unchanged():
    images, zero = torch.rand(2, 1, 8, 8), torch.zeros(2, dtype=torch.long)
    assert torch.equal(StoredTargets(images, zero, zero, carrier=None)[1][0], images[1])


def test_refuses_an_empty_carrier():
    zero = torch.tensor([0])
    empty = Subset(TensorDataset(torch.rand(1, 1, 8, 8), zero), [])
    with pytest.raises(ValueError, match="a test set with at least one sample, to apply its transform"):
        StoredTargets(RAW[:1], zero, zero, carrier=empty)[0]
