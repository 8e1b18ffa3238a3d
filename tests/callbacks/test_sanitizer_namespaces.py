"""Classes of `pytorch_lightning` work like those of `lightning.pytorch`."""

import pytest
import pytorch_lightning
import torch
from pytorch_lightning.utilities import CombinedLoader


def test_trainer_of_the_other_namespace(world, assert_clean):
    data, module, sanitizer = world.numbered(), world.other_module(), world.sanitizer()
    world.trainer(sanitizer, namespace=pytorch_lightning).fit(module, world.loader(data))
    assert_clean(module, sanitizer.verdict)
    assert torch.equal(~sanitizer.verdict.keep, data.is_wrong)


def test_data_module_of_the_other_namespace(world, assert_clean):
    class Data(pytorch_lightning.LightningDataModule):
        def train_dataloader(self):
            return world.loader(world.numbered())

    module, sanitizer = world.other_module(), world.sanitizer()
    trainer = world.trainer(sanitizer, namespace=pytorch_lightning, reload_dataloaders_every_n_epochs=1, max_epochs=2)
    trainer.fit(module, datamodule=Data())
    assert_clean(module, sanitizer.verdict)


def test_combined_loader_of_the_other_namespace(world):
    data = world.numbered()
    combined = CombinedLoader([world.loader(data)], "max_size_cycle")
    module, sanitizer = world.other_module(), world.sanitizer()
    world.trainer(sanitizer, namespace=pytorch_lightning).fit(module, combined)
    assert module.seen == set((~data.is_wrong).nonzero().flatten().tolist())
    assert combined.flattened[0].dataset is data


def test_restores_everything_in_the_other_namespace(world):
    class Failing(world.other_module):
        def training_step(self, batch, batch_idx):
            raise OSError("no more")

    trainer = world.trainer(world.sanitizer(), namespace=pytorch_lightning)
    original = trainer.fit_loop._data_source
    with pytest.raises(OSError, match="no more"):
        trainer.fit(Failing(), world.loader(world.numbered()))
    assert trainer.fit_loop._data_source is original
