import pickle

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_poison.attacks.objectives import (
    AvailabilityObjective,
    InstancesObjective,
    Objective,
    ProtectedClassObjective,
    TriggerObjective,
    attacker_succeeds,
    objective_kinds,
)
from lightning_poison.attacks.triggers import PatchTrigger

TRIGGER = PatchTrigger(torch.full((1, 1, 1), 255, dtype=torch.uint8))


def halve(image):
    return image.float() / 510


class Images(Dataset):
    """Sample `i` of class `i % 3` is an image of shade `i`, halved by its transform, inside a dict."""

    def __init__(self, count=9, transform=halve):
        self.count, self.transform = count, transform

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        image = torch.full((1, 2, 2), index, dtype=torch.uint8)
        return {"image": image if self.transform is None else self.transform(image), "label": index % 3}


def items(dataset):
    return [dataset[index] for index in range(len(dataset))]


OBJECTIVES = {
    "trigger": TriggerObjective(TRIGGER, 1),
    "trigger from one class": TriggerObjective(TRIGGER, 1, source_class=2),
    "all to all": TriggerObjective(TRIGGER, torch.tensor([1, 2, 0])),
    "instances": InstancesObjective(torch.rand(2, 1, 2, 2), torch.tensor([0, 1]), torch.tensor([2, -1])),
    "raw instances": InstancesObjective(
        torch.full((1, 1, 2, 2), 255, dtype=torch.uint8), torch.tensor([0]), torch.tensor([2]), domain="raw"
    ),
    "protected class": ProtectedClassObjective(2),
    "protected class with target": ProtectedClassObjective(2, target_class=0),
    "availability": AvailabilityObjective(),
}


def test_trigger_precedes_transform_and_skips_target_class():
    found = items(OBJECTIVES["trigger"].evaluation_set(Images()))
    assert [(true, wanted) for _, true, wanted in found] == [(0, 1), (2, 1)] * 3
    assert found[2][0].flatten().tolist() == pytest.approx([3 / 510, 3 / 510, 3 / 510, 0.5])


def test_trigger_of_source_class():
    found = items(OBJECTIVES["trigger from one class"].evaluation_set(Images()))
    assert [(true, wanted) for _, true, wanted in found] == [(2, 1)] * 3


def test_all_to_all_refuses_class_without_target():
    with pytest.raises(ValueError, match="labels below 2, the classes that have a target, but got 2"):
        TriggerObjective(TRIGGER, torch.tensor([1, 0])).evaluation_set(Images())


def test_all_to_all_targets():
    found = items(OBJECTIVES["all to all"].evaluation_set(Images()))
    assert [(true, wanted) for _, true, wanted in found] == [(0, 1), (1, 2), (2, 0)] * 3


def test_trigger_refuses_data_without_raw_images():
    with pytest.raises(TypeError, match="a data set that calls its `transform`"):
        OBJECTIVES["trigger"].evaluation_set(TensorDataset(torch.rand(2, 1, 2, 2), torch.tensor([0, 1])))


def test_instances_are_returned_unchanged():
    objective = OBJECTIVES["instances"]
    found = items(objective.evaluation_set(Images()))
    assert [(true, wanted) for _, true, wanted in found] == [(0, 2), (1, -1)]
    assert torch.equal(torch.stack([image for image, _, _ in found]), objective.inputs)


def test_raw_instances_are_transformed_on_a_copy():
    def in_place(image):
        return image.mul_(0).float()

    objective = OBJECTIVES["raw instances"]
    assert items(objective.evaluation_set(Images()))[0][0].unique().tolist() == [0.5]
    items(objective.evaluation_set(Images(transform=in_place)))
    assert objective.inputs.unique().tolist() == [255]
    with pytest.raises(ValueError, match="a test set with at least one sample"):
        items(objective.evaluation_set(Images(0)))


def test_protected_class_selects_its_samples():
    found = items(OBJECTIVES["protected class"].evaluation_set(Images()))
    assert [(true, wanted) for _, true, wanted in found] == [(2, -1)] * 3
    wanted = [item[2] for item in items(OBJECTIVES["protected class with target"].evaluation_set(Images()))]
    assert wanted == [0] * 3


def test_availability_selects_all_samples():
    found = items(OBJECTIVES["availability"].evaluation_set(Images()))
    assert [(true, wanted) for _, true, wanted in found] == [(0, -1), (1, -1), (2, -1)] * 3


@pytest.mark.parametrize("name", OBJECTIVES)
def test_success_where_predictions_are_wanted_labels(name):
    objective = OBJECTIVES[name]
    assert isinstance(objective, Objective)
    evaluation = items(objective.evaluation_set(Images()))
    true, wanted = (torch.tensor([item[place] for item in evaluation]) for place in (1, 2))
    predictions = torch.where(wanted == -1, (true + 1) % 3, wanted)
    assert objective.success(predictions, true, wanted).all()
    assert objective.success(predictions, true, wanted, reference=true).all()
    assert not objective.success(true, true, wanted).any()
    assert not objective.success(predictions, true, wanted, reference=predictions).any()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_pack_round_trip(name):
    objective = OBJECTIVES[name]
    again = objective_kinds.unpack(*objective_kinds.pack(objective))
    assert repr(again) == repr(objective)
    for old, new in zip(*(items(each.evaluation_set(Images())) for each in (objective, again)), strict=True):
        assert torch.equal(old[0], new[0])
        assert old[1:] == new[1:]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_evaluation_sets_can_be_batched_and_pickled(name):
    evaluation = OBJECTIVES[name].evaluation_set(Images())
    again = pickle.loads(pickle.dumps(evaluation))  # noqa: S301
    inputs, true, wanted = next(iter(DataLoader(again, batch_size=100)))
    assert len(inputs) == len(true) == len(wanted) == len(evaluation)
    assert true.dtype == wanted.dtype == torch.int64


def test_refuses_instances_of_different_lengths():
    with pytest.raises(ValueError, match=r"`wanted` to be as long as `inputs` \(2\), but got 1"):
        InstancesObjective(torch.rand(2, 3), torch.tensor([0, 1]), torch.tensor([2]))


def test_success_known_answers():
    predictions, true = torch.tensor([1, 2, 3, 0]), torch.tensor([0, 2, 0, 0])
    wanted = torch.tensor([1, 1, -1, -1])
    assert attacker_succeeds(predictions, true, wanted).tolist() == [True, False, True, False]


def test_failure_of_reference_model_is_no_success():
    predictions, true = torch.tensor([1, 1, 3, 3]), torch.tensor([0, 0, 0, 0])
    wanted, reference = torch.tensor([1, 1, -1, -1]), torch.tensor([1, 2, 0, 2])
    found = attacker_succeeds(predictions, true, wanted, reference=reference)
    assert found.tolist() == [False, True, True, False]
