import pytest
import torch
from torch import nn
from torch.utils.data import Subset, TensorDataset

from lightning_poison.data.fingerprints import architecture_of, digest_of, fingerprint
from lightning_poison.data.sample_digests import digest_samples

SETTINGS = {"folds": 3, "scorer": {"name": "x", "margin": 1.0}}


def taken(data, *, labels=None, settings=SETTINGS):
    inputs = torch.stack([data[index][0] for index in range(len(data))])
    labels = torch.tensor([int(data[index][1]) for index in range(len(data))]) if labels is None else labels
    return fingerprint(data, labels, settings, digests=digest_samples(inputs))


def test_same_data_and_settings_have_same_fingerprint(blobs):
    found = taken(blobs(100))
    assert found == taken(blobs(100))
    assert len(found) == 64
    assert int(found, 16) >= 0
    assert found == taken(blobs(100), settings={"scorer": {"margin": 1.0, "name": "x"}, "folds": 3})


def other_label(data):
    labels = data.tensors[1].clone()
    labels[37] = (labels[37] + 1) % 3
    return {"labels": labels}


CHANGES = {
    "one label": lambda data: (data, other_label(data)),
    "a setting": lambda data: (data, {"settings": {**SETTINGS, "folds": 4}}),
    "a setting of the scorer": lambda data: (data, {"settings": {**SETTINGS, "scorer": {"name": "x", "margin": 2.0}}}),
    "the order": lambda data: (TensorDataset(data.tensors[0].flip(0), data.tensors[1].flip(0)), {}),
    "the order within a class": lambda data: (TensorDataset(data.tensors[0].roll(3, 0), data.tensors[1]), {}),
    "the length": lambda data: (TensorDataset(*data[:99]), {}),
    "the inputs": lambda data: (TensorDataset(data.tensors[0] + 1e-3, data.tensors[1]), {}),
    "the shape": lambda data: (TensorDataset(data.tensors[0].view(-1, 2, 2), data.tensors[1]), {}),
    "the class": lambda data: (Subset(data, range(100)), {}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_detects_change(name, blobs):
    data = blobs(100)
    changed, arguments = CHANGES[name](data)
    assert taken(changed, **arguments) != taken(data)


def test_detects_one_other_input(blobs):
    data = blobs(100)
    inputs = data.tensors[0].clone()
    inputs[61, 1] += 1e-3
    assert taken(TensorDataset(inputs, data.tensors[1])) != taken(data)


@pytest.mark.parametrize("count", [1, 2, 16, 17])
def test_small_data_sets(blobs, count):
    assert len(taken(blobs(count))) == 64


def test_tensor_digest_depends_on_names_shapes_and_values():
    tensors = {"a": torch.zeros(2, 3), "b": torch.arange(4)}
    others = (
        {"a": torch.zeros(3, 2), "b": torch.arange(4)},
        {"b": torch.zeros(2, 3), "a": torch.arange(4)},
        {"a": torch.zeros(2, 3), "b": torch.arange(4).flip(0)},
    )
    assert digest_of(tensors) == digest_of({name: value.clone() for name, value in reversed(tensors.items())})
    assert len({digest_of(each) for each in (tensors, *others)}) == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scorer": {"transform": object()}}, r"`settings\['scorer'\]\['transform'\]` .* but got <object object at 0x"),
        ({"scorer": {"sizes": [1, {2}]}}, r"`settings\['scorer'\]\['sizes'\]\[1\]` .* but got \{2\} of type set"),
        ({"scorer": {1: "a"}}, r"`settings\['scorer'\]` to be a dict whose keys are strings, but got 1"),
        ({"odd\x1b[2J": torch.zeros(2)}, r"`settings\['odd\\x1b\[2J'\]` to be JSON-serializable"),
    ],
)
def test_names_setting_that_is_not_json(blobs, settings, message):
    """Its repr may change between processes, which would change the fingerprint."""
    with pytest.raises(TypeError, match=message + r"[\s\S]*`settings\(\)` of the scorer must return numbers"):
        taken(blobs(20), settings=settings)


def test_accepts_json_settings():
    settings = {"a": [1, 2.5, (True, None)], "b": {"c": "d"}}
    data = TensorDataset(torch.eye(3), torch.arange(3))
    assert taken(data, settings=settings) == taken(data, settings={"b": {"c": "d"}, "a": [1, 2.5, [True, None]]})


def test_architecture_ignores_weights():
    built = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten())
    twin = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten())
    others = (
        nn.Sequential(nn.Conv2d(1, 2, 3, stride=2), nn.Flatten()),
        nn.Sequential(nn.Conv2d(1, 2, 5), nn.Flatten()),
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()),
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.ReLU()),
        nn.Sequential(nn.LazyConv2d(2, 3), nn.Flatten()),
    )
    assert architecture_of(built) == architecture_of(twin)
    assert len({architecture_of(each) for each in (built, *others)}) == 6


def test_architecture_ignores_addresses():
    class Shown(nn.Module):
        def extra_repr(self):
            return repr(object())

    assert architecture_of(Shown()) == architecture_of(Shown())
