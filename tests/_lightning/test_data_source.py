"""The stand-in for a Trainer's data source; the first tests tell when Lightning moves what it stands in for."""

import lightning.pytorch as pl
import pytest
import pytorch_lightning
from torch.utils.data import DataLoader

from lightning_poison._lightning.data_source import DataSource
from lightning_poison.errors import UnsupportedDataError


@pytest.fixture(params=[pl, pytorch_lightning], ids=["lightning", "pytorch_lightning"])
def trainer(request, tmp_path):
    return request.param.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=tmp_path)


def test_lightning_still_has_the_names_that_are_touched(trainer):
    loop = trainer.fit_loop
    assert {"_data_source", "_combined_loader"} <= set(vars(loop))
    assert loop._combined_loader is None
    assert {"instance", "name"} <= set(vars(loop._data_source))
    public = {name for name in dir(type(loop._data_source)) if not name.startswith("_")} | {"instance"}
    assert public <= {name for name in dir(DataSource) if not name.startswith("_")}, "the stand-in lacks something"


def test_transforms_are_applied_in_turn_and_taken_away_in_any_order(trainer):
    loop, own = trainer.fit_loop, trainer.fit_loop._data_source
    loader = DataLoader([1, 2])
    own.instance = loader
    DataSource.add(trainer, "one", lambda each: [each, "one"])
    DataSource.add(trainer, "two", lambda each: [each, "two"])
    source = loop._data_source
    assert source.dataloader() == [[loader, "one"], "two"]
    DataSource.remove(trainer, "one")
    assert loop._data_source is source
    assert source.dataloader() == [loader, "two"]
    DataSource.remove(trainer, "two")
    assert loop._data_source is own
    DataSource.remove(trainer, "two")
    assert loop._data_source is own


def test_it_answers_for_the_source(trainer):
    own = trainer.fit_loop._data_source
    DataSource.add(trainer, "one", lambda each: each)
    source = trainer.fit_loop._data_source
    module = pl.LightningModule()
    assert source.is_defined()
    assert not source.is_module()
    source.instance = module
    assert own.instance is source.instance is module
    assert source.is_module() == own.is_module()
    assert source.is_defined() == own.is_defined()
    assert source.name == own.name


def test_the_same_key_replaces(trainer):
    DataSource.add(trainer, "one", lambda each: "first")
    DataSource.add(trainer, "one", lambda each: "second")
    trainer.fit_loop._data_source.instance = DataLoader([1])
    assert trainer.fit_loop._data_source.dataloader() == "second"


def test_a_trainer_without_such_a_source_is_refused_with_the_way_out():
    class Other:
        fit_loop = object()

    with pytest.raises(UnsupportedDataError, match=r"SanitizedDataModule\(datamodule, scorer\)"):
        DataSource.add(Other(), "one", lambda each: each)
    DataSource.remove(Other(), "one")
