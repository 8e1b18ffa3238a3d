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
        with pytest.raises(
            ValueError,
            match=r"a valid poison file, but .* `poison` to be an object with the fields",
        ):
            Poison.load(tmp_path / str(number))


TARGETS = {"inputs": torch.rand(2, 3), "labels": torch.tensor([0, 1]), "wanted": torch.tensor([1, -1])}
INVALID_OBJECTIVES = [
    (AvailabilityObjective, {"odd": 1}, "`objective` to be an object with no fields, but got one with `odd`"),
    (ProtectedClassObjective, {"protected_class": -1}, "`protected_class` to be an integer of at least 0, but got -1"),
    (ProtectedClassObjective, {"protected_class": True}, "`protected_class` to be an integer of at least 0"),
    (
        ProtectedClassObjective,
        {"protected_class": 1, "target_class": -2},
        "`target_class` to be an integer of at least -1",
    ),
    (ProtectedClassObjective, {}, "but got one without `protected_class`"),
    (InstancesObjective, {**TARGETS, "domain": "odd"}, "`domain` to be one of 'raw', 'sample'"),
    (InstancesObjective, {**TARGETS, "domain": "raw"}, r"`inputs` to be uint8 \(T, C, H, W\) in the raw domain"),
    (
        InstancesObjective,
        {**TARGETS, "labels": torch.tensor([0, -1])},
        "`labels` to be a class, at least 0, but got -1",
    ),
    (InstancesObjective, {**TARGETS, "wanted": torch.tensor([0, -2])}, "`wanted` to be a class, or -1 for any other"),
    (InstancesObjective, {**TARGETS, "wanted": torch.tensor([0])}, r"`wanted` to be as long as `inputs` \(2\)"),
    (InstancesObjective, {**TARGETS, "inputs": torch.full((2, 3), float("inf"))}, "`inputs` to be finite, but got inf"),
    (TriggerObjective, {"trigger": 5, "target_class": 1}, "`trigger` to be a `Trigger`|`trigger` to be a JSON object"),
    (TriggerObjective, {"trigger": TRIGGER, "target_class": 1.5}, "`target_class` to be an integer of at least 0"),
    (TriggerObjective, {"trigger": TRIGGER, "target_class": torch.tensor([0, -1])}, "`target_class` to be a class"),
    (TriggerObjective, {"trigger": TRIGGER, "target_class": 1, "source_class": "a"}, "`source_class` to be an integer"),
]


@pytest.mark.parametrize(("kind", "arguments", "message"), INVALID_OBJECTIVES)
def test_invalid_objectives_are_refused_when_made_and_in_files(tmp_path, kind, arguments, message):
    if arguments not in ({}, {"odd": 1}):
        with pytest.raises((ValueError, TypeError), match=message):
            kind(**arguments)
    poison().save(tmp_path / "p")
    tensors, meta = read_tensors(tmp_path / "p", "poison")
    packed = {"kind": kind.kind}
    for name, value in arguments.items():
        if isinstance(value, PatchTrigger):
            packed["trigger"] = {"kind": "patch", **value.settings()}
            tensors["objective.pattern"] = value.pattern
        elif isinstance(value, torch.Tensor):
            tensors[f"objective.{name}"] = value
        else:
            packed[name] = value
    write_tensors(tmp_path / "p", tensors, {**meta, "objective": packed})
    with pytest.raises(ValueError, match=rf"a valid poison file, but .*p has an invalid part\. .*({message})"):
        Poison.load(tmp_path / "p")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"row": 1.5}, "`row` to be an integer"),
        ({"row": 2**63}, "`row` to be an integer below"),
        ({"column": None}, "`column` to be an integer"),
        ({"amplitude": 0}, r"`amplitude` to be in \(0, 1\], but got 0"),
        ({"amplitude": "1"}, r"`amplitude` to be a number in \[0, 1\], but got '1'"),
        ({"amplitude": float("nan")}, r"`amplitude` to be a number in \[0, 1\], but got nan"),
        ({"pattern": torch.zeros(1, 2, 2)}, r"`pattern` to be a uint8 image \(C, h, w\), but got a float32"),
        ({"pattern": torch.zeros(1, 0, 2).byte()}, r"`pattern` to be a uint8 image \(C, h, w\)"),
        (
            {"odd": 1},
            "`trigger` to be an object with the fields pattern, row, column, amplitude, but got one with `odd`",
        ),
        ({"kind": ["patch"]}, "a registered kind of trigger"),
        ({"kind": 5}, "a registered kind of trigger"),
    ],
)
def test_invalid_triggers_are_refused_in_files(tmp_path, change, message):
    poison(objective=TriggerObjective(TRIGGER, 3)).save(tmp_path / "p")
    tensors, meta = read_tensors(tmp_path / "p", "poison")
    for name, value in change.items():
        if isinstance(value, torch.Tensor):
            tensors[f"objective.{name}"] = value
        else:
            meta["objective"]["trigger"][name] = value
    write_tensors(tmp_path / "p", tensors, meta)
    with pytest.raises(ValueError, match=rf"a valid poison file, but .*p has an invalid part\. .*{message}"):
        Poison.load(tmp_path / "p")


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
        ({"inputs": torch.full((3, 4), float("nan"))}, r"`inputs` to be finite, but got nan at position \(0, 0\)"),
        ({"inputs": torch.tensor(1.0)}, r"`inputs` to be a tensor \(P, ...\), but got a float32 tensor of shape \(\)"),
        ({"labels": torch.tensor([0, -1, 2])}, "`labels` to be at least 0, but got -1 at position 1"),
        ({"role": torch.tensor([0, 1, 2])}, r"`role` to be 0 \(poison\) or 1 \(cover\), but got 2 at position 2"),
        ({"role": torch.zeros(3)}, "`role` to be a one-dimensional int64 tensor"),
        ({"base_indices": torch.tensor([0, 1, -2])}, "`base_indices` to be at least 0, but got -2 at position 2"),
        ({"attack": 5}, "`attack` to be a `str`, but got the int 5"),
        ({"settings": [1]}, "`settings` to be a `Mapping`, but got list"),
        ({"objective": "backdoor"}, "`objective` to be a `Objective`"),
        ({"inputs": torch.zeros(3, 4).long()}, "floating point in the sample domain"),
        ({"inputs": torch.zeros(3, 1, 2, 2), "domain": "raw"}, r"uint8 \(P, C, H, W\) in the raw domain"),
        ({"inputs": torch.zeros(3, 4).byte(), "domain": "raw"}, r"uint8 \(P, C, H, W\) in the raw domain"),
    ],
)
def test_invalid_parts_are_refused_when_made_and_in_files(tmp_path, parts, message):
    with pytest.raises((ValueError, TypeError), match=message):
        poison(**parts)
    good = poison(inputs=torch.rand(3, 4), role=torch.tensor([POISON, COVER, POISON]))
    good.save(tmp_path / "p")
    tensors, meta = read_tensors(tmp_path / "p", "poison")
    for name, value in parts.items():
        (tensors if isinstance(value, torch.Tensor) else meta)[name] = value
    if {"indices", "objective"} & parts.keys() and not isinstance(next(iter(parts.values())), torch.Tensor):
        message = f"{next(iter(parts))}|a JSON object"
    write_tensors(tmp_path / "p", tensors, meta)
    with pytest.raises(ValueError, match=rf"a valid poison file, but .*p has an invalid part\. .*{message}"):
        Poison.load(tmp_path / "p")
