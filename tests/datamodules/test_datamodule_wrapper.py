"""A wrapper delegates everything but the training loaders."""

import copy
import pickle

import lightning.pytorch as pl
import pytest
import pytorch_lightning
import torch
from lightning.pytorch.callbacks import BatchSizeFinder
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch.utils.data import DataLoader, TensorDataset

from lightning_poison._lightning.datamodule_wrapper import DataModuleWrapper
from lightning_poison.datamodules import SanitizedDataModule

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`:UserWarning"),
    pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`:UserWarning"),
    pytest.mark.filterwarnings("ignore:You have overridden `.*batch.*` in `LightningModule`:UserWarning"),
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator:UserWarning"),
]


def wrapped(kit, data, kind):
    return kit.sanitized(data) if kind == "sanitized" else kit.poisoned(data, kit.flips())


both = pytest.mark.parametrize("kind", ["sanitized", "poisoned"])


class Hooked(pl.LightningDataModule):
    """Overrides and records every hook."""

    def __init__(self, batch_size=16):
        super().__init__()
        self.save_hyperparameters()
        self.prepare_data_per_node = False
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.called = []
        self.counter = 0

    def _record(self, name, value=None):
        self.called.append(name)
        return value

    def prepare_data(self):
        self._record("prepare_data")

    def setup(self, stage):
        self._record("setup " + stage)
        points = torch.randn(30, 4, generator=torch.Generator().manual_seed(0)) + 8 * torch.eye(4)[torch.arange(30) % 3]
        self.data = TensorDataset(points, torch.arange(30) % 3, torch.arange(30.0))

    def teardown(self, stage):
        self._record("teardown " + stage)

    def train_dataloader(self):
        return self._record("train", DataLoader(self.data, batch_size=self.hparams.batch_size))

    def val_dataloader(self):
        return self._record("val", DataLoader(self.data, batch_size=5))

    def test_dataloader(self):
        return self._record("test", DataLoader(self.data, batch_size=6))

    def predict_dataloader(self):
        return self._record("predict", DataLoader(self.data, batch_size=7))

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return self._record("transfer", super().transfer_batch_to_device(batch, device, dataloader_idx))

    def on_before_batch_transfer(self, batch, dataloader_idx):
        return self._record("before", batch)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return self._record("after", batch)

    def on_exception(self, exception):
        self._record(f"exception {exception}")

    def state_dict(self):
        return {"counter": self.counter}

    def load_state_dict(self, state_dict):
        self.counter = state_dict["counter"]


@both
def test_validation_loaders_are_not_required(kit, kind):
    class Validated(kit.module):
        def validation_step(self, batch, batch_idx):
            raise AssertionError("there are no validation data")

    inner = kit.plain()
    kit.trainer().fit(Validated(), datamodule=wrapped(kit, inner, kind))
    assert inner.calls == ["fit"]


@both
def test_transfer_hooks_of_the_module_are_called(kit, kind):
    class Transferring(kit.module):
        transferred = 0

        def on_after_batch_transfer(self, batch, dataloader_idx):
            self.transferred += 1
            return batch

    module = Transferring()
    trainer = kit.trainer()
    trainer.fit(module, datamodule=wrapped(kit, kit.plain(), kind))
    assert module.transferred == trainer.num_training_batches > 0


@pytest.mark.slow
@pytest.mark.parametrize("namespace", [pl, pytorch_lightning])
def test_transfer_hooks_of_the_module_are_called_in_both_namespaces(kit, namespace):
    base = kit.module if namespace is pl else kit.other_module

    class Transferring(base):
        transferred = 0

        def on_before_batch_transfer(self, batch, dataloader_idx):
            self.transferred += 1
            return batch

        def transfer_batch_to_device(self, batch, device, dataloader_idx):
            self.transferred += 1
            return super().transfer_batch_to_device(batch, device, dataloader_idx)

        def on_after_batch_transfer(self, batch, dataloader_idx):
            self.transferred += 1
            return batch

    for inner in (kit.plain, kit.other_plain):
        module = Transferring()
        trainer = kit.trainer(namespace=namespace)
        trainer.fit(module, datamodule=kit.sanitized(inner()))
        assert module.transferred == 3 * trainer.num_training_batches


def test_hooks_of_the_inner_data_module_are_called(kit):
    inner = Hooked()
    data = wrapped(kit, inner, "poisoned")
    trainer = kit.trainer()
    trainer.fit(kit.module(), datamodule=data)
    assert inner.called == ["prepare_data", "setup fit", "train", *["before", "transfer", "after"] * 2, "teardown fit"]
    with pytest.raises(ZeroDivisionError):
        kit.trainer().fit(_failing(kit)(), datamodule=data)
    assert inner.called[-1] == "exception in a step"
    assert [data.val_dataloader().batch_size, data.test_dataloader().batch_size] == [5, 6]
    assert data.predict_dataloader().batch_size == 7


def _failing(kit):
    class Failing(kit.module):
        def training_step(self, batch, batch_idx):
            raise ZeroDivisionError("in a step")

    return Failing


@both
def test_attributes_set_by_the_base_class_are_delegated(kit, kind):
    inner = Hooked()
    inner.name = "hooked"
    data = wrapped(kit, inner, kind)
    assert data.prepare_data_per_node is False
    assert data.allow_zero_length_dataloader_with_multiple_devices is True
    assert data.name == "hooked"
    assert wrapped(kit, kit.plain(), kind).prepare_data_per_node is True
    assert wrapped(kit, kit.loader(), kind).prepare_data_per_node is True


@both
def test_attributes_are_read_and_set_on_the_inner_data_module(kit, kind):
    inner = kit.plain()
    data = wrapped(kit, inner, kind)
    data.batch_size = 8
    assert inner.batch_size == data.batch_size == 8
    data.note = "mine"
    assert not hasattr(inner, "note")
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = data.nothing
    with pytest.raises(AttributeError, match="has no attribute 'batch_size'"):
        _ = wrapped(kit, kit.loader(), kind).batch_size  # an attribute of a loader is not delegated


@both
def test_inner_data_module_gets_the_trainer(kit, kind):
    inner = kit.plain()
    trainer = kit.trainer()
    trainer.fit(kit.module(), datamodule=wrapped(kit, inner, kind))
    assert inner.trainer is trainer


@both
def test_hyperparameters_are_delegated(kit, kind):
    inner = Hooked(batch_size=10)
    data = wrapped(kit, inner, kind)
    trainer = kit.trainer()
    trainer.fit(kit.module(), datamodule=data)
    assert data.hparams is inner.hparams
    assert data.hparams_initial == {"batch_size": 10}
    assert data._log_hyperparams is True
    trainer.save_checkpoint(kit.path / "last.ckpt")
    saved = torch.load(kit.path / "last.ckpt", weights_only=True)
    assert saved["datamodule_hyper_parameters"] == {"batch_size": 10}
    assert wrapped(kit, kit.loader(), kind).hparams == {}


def test_subclass_adds_hyperparameters():
    class Mine(SanitizedDataModule):
        def __init__(self, data, scorer, factor=2):
            super().__init__(data, scorer)
            self.save_hyperparameters(ignore=["data", "scorer"])

    from lightning_poison.scorers.likelihood import LikelihoodScorer

    assert Mine(Hooked(), LikelihoodScorer()).hparams == {"batch_size": 16, "factor": 2}


@both
def test_state_is_nested(kit, kind):
    inner, other = Hooked(), Hooked()
    inner.counter = 7
    wrapped(kit, other, kind).load_state_dict(wrapped(kit, inner, kind).state_dict())
    assert other.counter == 7


@pytest.mark.slow
def test_batch_size_finder_changes_the_inner_batch_size(kit):
    inner = kit.plain(batch_size=2)
    finder = BatchSizeFinder(mode="binsearch", steps_per_trial=1, init_val=4, max_trials=2)
    kit.trainer(callbacks=[finder]).fit(kit.module(), datamodule=kit.sanitized(inner))
    assert inner.batch_size > 4
    assert len(kit.scorer.fits) == 3


@both
def test_pickles_and_copies(kit, kind):
    data = wrapped(kit, Hooked(), kind)
    for twin in (pickle.loads(pickle.dumps(data)), copy.deepcopy(data)):  # noqa: S301 (our own)
        twin.setup("fit")
        assert twin.inner.called == ["setup fit"]
        assert twin.val_dataloader().batch_size == 5
        assert data.inner.called == []
        assert len(twin.train_dataloader().dataset) == 30


@pytest.mark.slow
@both
@pytest.mark.parametrize("namespace", [pl, pytorch_lightning])
@pytest.mark.parametrize("inner", ["plain", "other_plain"])
def test_all_combinations_of_namespaces(kit, kind, namespace, inner):
    data = wrapped(kit, getattr(kit, inner)(), kind)
    module = kit.module() if namespace is pl else kit.other_module()
    kit.trainer(namespace=namespace).fit(module, datamodule=data)
    assert len(set(module.epochs[0])) == (108 if kind == "sanitized" else 120)


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["bare", "list", "dict", "combined"])
def test_wraps_loaders(kit, shape):
    first, second = kit.loader(), kit.loader(kit.numbered(seed=1))
    tree = {
        "bare": first,
        "list": [first, second],
        "dict": {"a": first, "b": second},
        "combined": CombinedLoader({"a": first, "b": second}, "max_size_cycle"),
    }[shape]
    data = kit.sanitized(tree)
    module = kit.module()
    kit.trainer(max_epochs=2, reload_dataloaders_every_n_epochs=1).fit(module, datamodule=data)
    assert set(module.epochs[0]) == set(module.epochs[1]) == set(range(12, 120))
    paths = {"bare": [""], "list": ["[0]", "[1]"]}.get(shape, ["['a']", "['b']"])
    assert sorted(data.verdicts) == paths
    assert len(kit.scorer.fits) == 3 * len(paths)
    assert [len(loader.dataset) for loader in (first, second)] == [120, 120]


@pytest.mark.slow
def test_hooks_set_on_the_instance(kit):
    inner = pl.LightningDataModule.from_datasets(kit.numbered(), val_dataset=kit.numbered(seed=1), batch_size=20)
    data = kit.sanitized(inner)
    assert len(data.train_dataloader().dataset) == 108
    assert len(data.val_dataloader().dataset) == 120
    bare = kit.sanitized(pl.LightningDataModule.from_datasets(kit.numbered()))
    module = kit.module()
    kit.trainer().fit(module, datamodule=bare)
    assert set(module.epochs[0]) == set(range(12, 120))


def test_from_datasets(kit):
    made = SanitizedDataModule.from_datasets(kit.numbered(), kit.numbered(seed=1), batch_size=20, scorer=kit.scorer)
    assert len(made.train_dataloader().dataset) == 108
    assert made.train_dataloader().batch_size == 20
    assert len(made.val_dataloader().dataset) == 120


def test_printing_requests_no_loader(kit):
    data = kit.sanitized(kit.poisoned(kit.plain(), kit.flips()))
    data.setup("fit")
    assert str(data) == repr(data) == "SanitizedDataModule(PoisonedDataModule(PlainDataModule))"
    assert not kit.scorer.fits


def test_refuses_other_data(kit):
    for data, found in [
        (3, "got int"),
        ([kit.loader(), kit.numbered()], "got Numbered in a list"),
        ({}, "got dict"),
        (kit.plain, "got the class PlainDataModule.\nBuild it first: `PlainDataModule(...)`"),
        (kit.numbered(), "got Numbered.\nA data set needs a loader"),
    ]:
        with pytest.raises(TypeError, match="Expected `data` to be a DataModule") as raised:
            kit.sanitized(data)
        assert found in str(raised.value)


def test_base_class_is_abstract(kit):
    with pytest.raises(NotImplementedError):
        DataModuleWrapper(kit.loader()).train_dataloader()
