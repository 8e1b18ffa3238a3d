"""A Trainer as the place where scorers compute."""

import logging

import lightning.pytorch as pl
import pytest
import pytorch_lightning
import torch

from lightning_poison._lightning.runtime import TrainerRuntime, opened_runtime
from lightning_poison.runtime import DEFAULT_THREADS, LocalRuntime


@pytest.fixture(params=[pl, pytorch_lightning], ids=["lightning", "pytorch_lightning"])
def trainer(request, tmp_path):
    return request.param.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
    )


def test_one_process(trainer):
    runtime = TrainerRuntime(trainer, num_workers=2)
    assert (runtime.rank, runtime.world_size, runtime.num_workers) == (0, 1, 2)
    assert runtime.device == torch.device("cpu")
    assert runtime.threads == DEFAULT_THREADS == LocalRuntime().threads
    assert runtime.broadcast({"a": 1}) == {"a": 1}
    assert runtime.all_true(True)
    assert not runtime.all_true(False)
    with runtime.autocast(), runtime.progress(3, "scoring") as bar:
        bar.advance()


def test_a_sum_leaves_its_operand_alone(trainer):
    tensor = torch.arange(3.0).double()
    summed = TrainerRuntime(trainer).reduce_sum(tensor)
    summed += 1
    assert tensor.tolist() == [0, 1, 2]
    assert summed.dtype == torch.float64


def test_messages_go_to_lightnings_own_log(trainer, caplog):
    with caplog.at_level(logging.INFO):
        TrainerRuntime(trainer).announce("found something")
    assert "found something" in caplog.messages


def test_a_runtime_is_closed_on_every_exit(trainer, monkeypatch):
    closed = []

    class Watched(TrainerRuntime):
        def close(self):
            closed.append(True)

    monkeypatch.setattr("lightning_poison._lightning.runtime.TrainerRuntime", Watched)
    with pytest.raises(OSError, match="no more"), opened_runtime(trainer):
        raise OSError("no more")
    assert closed


def test_without_a_trainer_this_machine_computes():
    with opened_runtime(None, num_workers=3) as runtime:
        assert isinstance(runtime, LocalRuntime)
        assert runtime.num_workers == 3
