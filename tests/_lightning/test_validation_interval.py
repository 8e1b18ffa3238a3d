from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler

from lightning_poison._lightning.validation_interval import check_validation_interval
from lightning_poison.callbacks.sanitizer import Sanitizer
from lightning_poison.datamodules import SanitizedDataModule

BEFORE, KEPT = range(100), range(81)


def trainer(interval=10, *, distributes=True, **settings):
    plain = {"check_val_every_n_epoch": 1, "limit_val_batches": 1.0, "limit_train_batches": 1.0}
    connector = SimpleNamespace(use_distributed_sampler=distributes)
    return SimpleNamespace(**{**plain, **settings}, val_check_interval=interval, _accelerator_connector=connector)


def check(trainer, ranks=1, **settings):
    check_validation_interval(DataLoader(BEFORE, 10, **settings), DataLoader(KEPT, 10, **settings), ranks, trainer)


@pytest.mark.parametrize(
    ("given", "settings", "ranks", "left"),
    [
        (trainer(10), {}, 1, 9),
        (trainer(9), {"drop_last": True}, 1, 8),
        (trainer(10, limit_train_batches=10), {}, 1, 9),
        (trainer(5, limit_train_batches=0.5), {}, 1, 4),
        (trainer(5), {"drop_last": True}, 2, 4),
        (trainer(10, distributes=False), {}, 2, 9),
    ],
)
def test_interval_beyond_what_filtering_leaves_is_refused(given, settings, ranks, left):
    with pytest.raises(
        ValueError, match=rf"at most {left}, the number of batches .* got .*\.\nWrite .*at most {left}\."
    ):
        check(given, ranks, **settings)


@pytest.mark.parametrize(
    "given",
    [
        None,
        trainer(9),
        trainer(11),
        trainer(1.0),
        trainer(10, check_val_every_n_epoch=None),
        trainer(10, limit_val_batches=0),
        trainer(10, limit_train_batches=9),
        trainer(10, limit_train_batches=0),
        trainer(10, _val_check_time_interval=60.0),
    ],
)
def test_other_settings_pass(given):
    check(given)


def test_ranks_share_the_samples():
    check(trainer(5), 2)


def test_loaders_of_unknown_length_pass():
    loaders = [DataLoader(each, batch_sampler=iter([[0]])) for each in (BEFORE, KEPT)]
    check_validation_interval(*loaders, 1, trainer())


def test_distributed_samplers_are_counted_as_they_are():
    loaders = [DataLoader(each, 10, sampler=DistributedSampler(each, 2, 0)) for each in (BEFORE, range(70))]
    with pytest.raises(ValueError, match="at most 4, the number of batches"):
        check_validation_interval(*loaders, 2, trainer(5))


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 3)

    def training_step(self, batch, batch_idx):
        return self.layer(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("wrapped", [False, True])
def test_run_ends_with_the_error_of_this_package(blobs, centroid_scorer, tmp_path, wrapped):
    data = blobs(flipped=60)
    loader, interval = DataLoader(data, 20), len(data) // 20
    if wrapped:
        module = SanitizedDataModule(loader, centroid_scorer())
        given, callbacks = {"datamodule": module}, []
    else:
        given, callbacks = {"train_dataloaders": loader}, [Sanitizer(centroid_scorer())]
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    run = pl.Trainer(
        **off,
        accelerator="cpu",
        max_epochs=1,
        default_root_dir=tmp_path,
        callbacks=callbacks,
        val_check_interval=interval,
    )
    with pytest.raises(ValueError, match="number of batches that filtering leaves in an epoch, but got"):
        run.fit(Module(), **given)
