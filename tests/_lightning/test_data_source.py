"""Transforms of a Trainer's data source. The first test fails when Lightning changes its private names."""

import lightning.pytorch as pl
import pytest
import pytorch_lightning
from torch.utils.data import DataLoader

from lightning_poison._lightning.data_source import DataSource
from lightning_poison.errors import UnsupportedDataError


@pytest.fixture(params=[pl, pytorch_lightning], ids=["lightning", "pytorch_lightning"])
def trainer(request, tmp_path):
    return request.param.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=tmp_path)


def test_lightning_has_the_private_names(trainer):
    loop = trainer.fit_loop
    assert {"_data_source", "_combined_loader"} <= set(vars(loop))
    assert loop._combined_loader is None
    assert {"instance", "name"} <= set(vars(loop._data_source))
    public = {name for name in dir(type(loop._data_source)) if not name.startswith("_")} | {"instance"}
    assert public <= {name for name in dir(DataSource) if not name.startswith("_")}, "the replacement lacks a name"


def test_transforms_are_applied_in_order_and_removed_in_any_order(trainer):
    loop, original = trainer.fit_loop, trainer.fit_loop._data_source
    loader = DataLoader([1, 2])
    original.instance = loader
    DataSource.add(trainer, "one", lambda each: [each, "one"])
    DataSource.add(trainer, "two", lambda each: [each, "two"])
    source = loop._data_source
    assert source.dataloader() == [[loader, "one"], "two"]
    DataSource.remove(trainer, "one")
    assert loop._data_source is source
    assert source.dataloader() == [loader, "two"]
    DataSource.remove(trainer, "two")
    assert loop._data_source is original
    DataSource.remove(trainer, "two")
    assert loop._data_source is original


def test_delegates_to_the_original_source(trainer):
    original = trainer.fit_loop._data_source
    DataSource.add(trainer, "one", lambda each: each)
    source = trainer.fit_loop._data_source
    module = pl.LightningModule()
    assert source.is_defined()
    assert not source.is_module()
    source.instance = module
    assert original.instance is source.instance is module
    assert source.is_module() == original.is_module()
    assert source.is_defined() == original.is_defined()
    assert source.name == original.name


def test_same_key_replaces_the_transform(trainer):
    DataSource.add(trainer, "one", lambda each: "first")
    DataSource.add(trainer, "one", lambda each: "second")
    trainer.fit_loop._data_source.instance = DataLoader([1])
    assert trainer.fit_loop._data_source.dataloader() == "second"


def test_refuses_a_trainer_without_a_data_source():
    class Other:
        fit_loop = object()

    with pytest.raises(UnsupportedDataError, match=r"SanitizedDataModule\(datamodule, scorer\)"):
        DataSource.add(Other(), "one", lambda each: each)
    DataSource.remove(Other(), "one")
