import pickle

import pytest
import torch

from lightning_poison.attacks.objectives import (
    AvailabilityObjective,
    InstancesObjective,
    ProtectedClassObjective,
    TriggerObjective,
)
from lightning_poison.attacks.poison import COVER, POISON, Poison
from lightning_poison.attacks.triggers import PatchTrigger
from lightning_poison.serialization import read_tensors, write_tensors

TRIGGER = PatchTrigger(torch.randint(256, (3, 2, 2), dtype=torch.uint8), row=0, amplitude=0.7)


def poison(**parts):
    given = {"indices": torch.tensor([3, 8, 10]), "labels": torch.tensor([1, 0, 1]), "attack": "test"}
    return Poison(**{"objective": AvailabilityObjective(), **given, **parts})


@pytest.mark.parametrize(
    "objective",
    [
        AvailabilityObjective(),
        ProtectedClassObjective(3, 4),
        InstancesObjective(torch.rand(2, 3), torch.tensor([0, 1]), torch.tensor([1, -1])),
        TriggerObjective(TRIGGER, 3, source_class=1),
        TriggerObjective(TRIGGER, torch.tensor([1, 2, 0])),
    ],
    ids=repr,
)
@pytest.mark.parametrize("full", [False, True])
def test_round_trip_is_exact(tmp_path, objective, full):
    parts = {}
    if full:
        indices = torch.tensor([3, 8, 10])
        parts = {
            "indices": indices,
            "base_indices": indices,
            "inputs": torch.rand(3, 1, 2, 2).double() / 3,
            "role": torch.tensor([POISON, COVER, POISON]),
        }
    old = poison(objective=objective, settings={"steps": 3, "step_size": 0.1, "nested": {"a": [1, None]}}, **parts)
    old.save(tmp_path / "poison.safetensors")
    new = Poison.load(tmp_path / "poison.safetensors")
    for name in ("indices", "labels", "role", "inputs", "base_indices"):
        one, two = getattr(old, name), getattr(new, name)
        assert (one is None) == (two is None)
        if one is not None:
            assert one.dtype == two.dtype
            assert torch.equal(one, two)
    for name in ("attack", "settings", "domain"):
        assert getattr(new, name) == getattr(old, name)
    assert repr(new) == repr(old)
    assert repr(new.objective) == repr(objective)
    for name, tensor in objective.tensors().items():
        assert torch.equal(new.objective.tensors()[name], tensor)


def test_raw_images_stay_uint8(tmp_path):
    old = poison(inputs=torch.randint(256, (3, 1, 2, 2), dtype=torch.uint8), domain="raw")
    old.save(tmp_path / "p")
    assert Poison.load(tmp_path / "p").inputs.dtype == torch.uint8


def test_refuses_pickle(tmp_path):
    (tmp_path / "p").write_bytes(pickle.dumps(poison()))
    with pytest.raises(ValueError, match="Expected a poison file in safetensors form"):
        Poison.load(tmp_path / "p")


def test_refuses_missing_or_extra_parts(tmp_path):
    poison().save(tmp_path / "p")
    tensors, meta = read_tensors(tmp_path / "p", "poison")
    broken = [
        ({name: tensor for name, tensor in tensors.items() if name != "labels"}, meta),
        ({**tensors, "more": torch.zeros(1)}, meta),
        (tensors, {name: value for name, value in meta.items() if name != "attack"}),
    ]
    for number, (some, header) in enumerate(broken):
        write_tensors(tmp_path / str(number), some, header)
        with pytest.raises(ValueError, match="is incomplete or inconsistent"):
            Poison.load(tmp_path / str(number))


def test_refuses_objective_of_unknown_plugin(tmp_path):
    poison().save(tmp_path / "p")
    tensors, meta = read_tensors(tmp_path / "p", "poison")
    write_tensors(tmp_path / "p", tensors, {**meta, "objective": {"kind": "frog"}})
    with pytest.raises(ValueError, match=r"registered kind of objective[\s\S]*Import the plug-in"):
        Poison.load(tmp_path / "p")


def test_roles_and_appended_samples():
    mixed = poison(role=torch.tensor([POISON, COVER, POISON]))
    assert mixed.appended(9).tolist() == [False, False, True]
    assert mixed.is_poison(10).nonzero().flatten().tolist() == [3, 10]
    assert mixed.is_cover(10).nonzero().flatten().tolist() == [8]
    assert len(mixed.is_poison(10)) == 11
    assert len(mixed.is_poison(20)) == 20
    assert poison().role.tolist() == [POISON] * 3
    assert repr(mixed) == "Poison(test: 3 samples, 1 of them cover, labels only)"


def test_empty_poison():
    none = poison(indices=torch.tensor([], dtype=torch.int64), labels=torch.tensor([], dtype=torch.int64))
    assert len(none) == 0
    assert not none.is_poison(5).any()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"indices": torch.tensor([3, 3, 4])}, "`indices` to be unique, but got 3 twice"),
        ({"indices": torch.tensor([-1, 3, 4])}, "`indices` to be at least 0, but got -1"),
        ({"indices": torch.tensor([3.0, 4, 5])}, "`indices` to be a one-dimensional int64"),
        ({"indices": [3, 4, 5]}, "`indices` to be a one-dimensional int64"),
        ({"labels": torch.tensor([1])}, r"`labels` to be as long as `indices` \(3\), but got 1"),
        ({"role": torch.tensor([1])}, "`role` to be as long as"),
        ({"base_indices": torch.tensor([1])}, "`base_indices` to be as long as"),
        ({"base_indices": torch.zeros(3)}, "`base_indices` to be a one-dimensional int64"),
        ({"domain": "pixels"}, "`domain` to be one of 'raw', 'sample', but got pixels"),
        ({"inputs": torch.zeros(2, 4)}, "`inputs` to be as long as"),
        ({"inputs": torch.zeros(3, 4).long()}, "floating point in the sample domain"),
        ({"inputs": torch.zeros(3, 1, 2, 2), "domain": "raw"}, r"uint8 \(P, C, H, W\) in the raw domain"),
        ({"inputs": torch.zeros(3, 4).byte(), "domain": "raw"}, r"uint8 \(P, C, H, W\) in the raw domain"),
    ],
)
def test_refuses_invalid_arguments(parts, message):
    with pytest.raises(ValueError, match=message):
        poison(**parts)
