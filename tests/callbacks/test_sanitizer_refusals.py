"""Data that cannot be filtered are refused before training, with the path of the loader and a hint."""

import pytest
import torch
from lightning.pytorch import Callback
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset

from lightning_poison.callbacks.sanitizer import Sanitizer
from lightning_poison.errors import NothingKeptError, UnreadableSampleError, UnsupportedDataError
from lightning_poison.scorers.protocol import Scorer


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(torch.zeros(4), 0)])


class Broken(Dataset):
    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        if index == 77:
            raise OSError("truncated file")
        return self.data[index]


class Control(Scorer):
    name = "oracle"
    is_control = True
    fitted_tensors = ()

    def fit(self, trusted, *, runtime=None, generator=None):
        return self

    def score_batch(self, inputs, labels):
        return labels.float()


def test_refuses_streams(world):
    module = world.module()
    with pytest.raises(UnsupportedDataError, match=r"to read a map-style data set, but Stream is iterable only"):
        world.trainer(world.sanitizer()).fit(module, DataLoader(Stream(), 4))
    assert not module.epochs


@pytest.mark.parametrize(
    ("other", "match"),
    [
        (lambda: DataLoader(Stream(), 4), r"loader \['b'\]\[1\] to read a map-style data set, but Stream is iterable"),
        (lambda: [torch.zeros(4)], r"loader \['b'\]\[1\]\[0\] to be a torch DataLoader, but got Tensor"),
        (lambda: range(3), r"loader \['b'\]\[1\] to be a torch DataLoader, but got range"),
    ],
    ids=["stream", "tensors", "range"],
)
def test_error_names_the_loader(world, centroid_scorer, other, match):
    scorer, loader = centroid_scorer(), world.loader(world.numbered())
    with pytest.raises(UnsupportedDataError, match=match):
        world.trainer(world.sanitizer(scorer)).fit(world.module(), {"a": loader, "b": [loader, other()]})
    assert not scorer.fits


def test_refuses_unreadable_samples(world):
    module = world.module()
    with pytest.raises(UnreadableSampleError, match="sample 77 of Broken, but it raised OSError: truncated file"):
        world.trainer(world.sanitizer()).fit(module, world.loader(Broken(world.numbered())))
    assert not module.epochs


def test_refuses_to_remove_too_much(world):
    module = world.module()
    with pytest.raises(NothingKeptError, match="raise `max_removed`"):
        world.trainer(world.sanitizer(max_removed=0.05)).fit(module, world.loader(world.numbered()))
    assert not module.epochs


def test_refuses_a_custom_distributed_sampler(world):
    class Own(DistributedSampler):
        def __iter__(self):
            return iter(range(self.rank, len(self.dataset), self.num_replicas))

    data = world.numbered()
    with pytest.raises(UnsupportedDataError, match="but Own distributes samples in its own way"):
        world.trainer(world.sanitizer()).fit(world.module(), DataLoader(data, 16, sampler=Own(data, 1, 0)))


@pytest.mark.parametrize("how", ["loader", "sampler"])
def test_detects_a_replaced_loader(world, how):
    class Swap(Callback):
        def on_fit_start(self, trainer, pl_module):
            trainer.fit_loop.setup_data()
            combined, filtered = trainer.fit_loop._combined_loader, trainer.train_dataloader
            data = filtered.dataset if how == "sampler" else original
            combined.flattened = [DataLoader(data, 16, sampler=range(10))]

    original, module = world.numbered(), world.module()
    with pytest.raises(RuntimeError, match="Another callback or hook replaced the loader or its sampler"):
        world.trainer(world.sanitizer(), Swap()).fit(module, world.loader(original))
    assert not module.epochs


def test_trainer_refuses_two_of_one_name(world):
    with pytest.raises(RuntimeError, match="more than one stateful callback of type `Sanitizer`"):
        world.trainer(world.sanitizer(), world.sanitizer())


def test_no_verdict_before_training(world):
    with pytest.raises(RuntimeError, match="available once training has started"):
        _ = world.sanitizer().verdict


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"action": "delete"}, ValueError, "`action` to be one of 'remove', 'flag'"),
        ({"false_positive_rate": 1}, ValueError, "false_positive_rate=0.01"),
        ({"false_positive_rate": 0}, ValueError, "false_positive_rate"),
        ({"max_removed": 0}, ValueError, "max_removed"),
        ({"folds": 1}, ValueError, "`folds` to be an integer of at least 2"),
        ({"natural_error_rate": -1}, ValueError, "natural_error_rate"),
        ({"seed": -1}, ValueError, "seed"),
        ({"name": "a/b"}, ValueError, "`name` to be letters, digits, - and _"),
        ({"name": ""}, ValueError, "`name` to be letters"),
    ],
)
def test_refuses_arguments_out_of_range(world, settings, error, match):
    with pytest.raises(error, match=match):
        world.sanitizer(**settings)


def test_refuses_other_objects_and_controls_as_scorers():
    with pytest.raises(ValueError, match="Expected `scorer` to be a scorer or one of fast"):
        Sanitizer("likelihood")
    with pytest.raises(TypeError, match="Expected `scorer` to be a scorer"):
        Sanitizer(3)
    with pytest.raises(ValueError, match="oracle is a control"):
        Sanitizer(Control())
