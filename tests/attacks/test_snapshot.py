import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from lightning_poison.attacks import snapshot
from lightning_poison.attacks.snapshot import first_change, snapshot_dataset, snapshot_module
from lightning_poison.testing.tiny_images import TinyImages


def change_of(dataset, edit):
    before = snapshot_dataset(dataset)
    edit()
    return first_change(before, snapshot_dataset(dataset))


def test_detects_no_change():
    assert change_of(TinyImages(9), lambda: None) is None


def test_detects_changed_pixel():
    dataset = TinyImages(9)
    assert change_of(dataset, lambda: dataset.data[4, 0, 2, 2].bitwise_xor_(1)) == "sample 4"


def test_detects_changed_label_in_view():
    dataset = TinyImages(9)
    view = Subset(dataset, [3, 5, 7])
    assert change_of(view, lambda: dataset.targets.__setitem__(5, 0)) == "sample 1"


def test_detects_changed_tensor_outside_view():
    dataset = TinyImages(9)
    view = ConcatDataset([Subset(dataset, [0]), Subset(dataset, [1])])
    changed = change_of(view, lambda: dataset.data.__setitem__(8, 0))
    assert changed == "attribute `datasets[0].dataset.data`"


def test_detects_changed_array():
    dataset = TensorDataset(torch.zeros(3, 2), torch.tensor([0, 1, 0]), torch.zeros(3))
    dataset.weights = np.zeros(3)
    assert change_of(dataset, lambda: dataset.weights.__setitem__(1, 1)) == "attribute `weights`"


def test_random_transforms_are_repeatable():
    dataset = TinyImages(9)
    normalize = dataset.transform
    dataset.transform = lambda image: normalize(image) + torch.rand(())
    assert change_of(dataset, lambda: torch.rand(3)) is None
    assert change_of(dataset, lambda: dataset.data.__setitem__(2, 0)) == "sample 2"


def test_own_random_state_falls_back_to_raw_images():
    dataset = TinyImages(9)
    normalize, own = dataset.transform, torch.Generator()
    dataset.transform = lambda image: normalize(image) + torch.rand((), generator=own)
    assert change_of(dataset, lambda: None) is None
    assert change_of(dataset, lambda: dataset.data.__setitem__(2, 0)) == "raw image 2"


def test_detects_replaced_transform():
    dataset = TinyImages(9)
    same = TinyImages(9).transform
    assert change_of(dataset, lambda: setattr(dataset, "transform", same)) == "attribute `transform`"


def test_large_data_set_is_sampled_with_all_labels(monkeypatch):
    monkeypatch.setattr(snapshot, "MAX_SAMPLES", 4)
    parts = snapshot_dataset(TinyImages(50))
    assert sum(name.startswith("sample") for name in parts) == 4
    assert "labels" in parts
    assert parts == snapshot_dataset(TinyImages(50)) | {
        name: digest for name, digest in parts.items() if "transform" in name
    }


def test_global_random_state_is_unchanged():
    dataset = TinyImages(9)
    normalize = dataset.transform
    dataset.transform = lambda image: normalize(image) + torch.rand(())
    before = torch.get_rng_state()
    snapshot_dataset(dataset)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("edit", "changed"),
    [
        (lambda model: model[0].weight.data[0, 0].add_(1), "0.weight"),
        (lambda model: model.train(), "model.training"),
        (lambda model: model[0].bias.requires_grad_(False), "0.bias.requires_grad"),
        (lambda model: model(torch.ones(2, 3)).sum().backward(), "0.weight.grad"),
    ],
)
def test_detects_changed_model(edit, changed):
    model = nn.Sequential(nn.Linear(3, 2)).eval()
    before = snapshot_module(model)
    assert first_change(before, snapshot_module(model)) is None
    edit(model)
    assert first_change(before, snapshot_module(model)) == changed
