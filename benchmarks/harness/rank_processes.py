"""Several ranks of a Trainer on this machine, as forks of this process, so that everything is imported once."""

import os
import socket
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader, TensorDataset

from lightning_poison._lightning.runtime import open_runtime
from lightning_poison.runtime import Runtime


class Ended(NamedTuple):
    """How a rank has ended: its exit status, as of `subprocess`, and its CPU seconds."""

    status: int
    cpu_seconds: float


def run_ranks(world: int, work: Callable[[int], None]) -> list[Ended]:
    """Fork `world` ranks that call `work` with their number, and wait for all of them. This process needs one thread.

    The environment is that of a cluster without a launcher: nobody ends the other ranks if one of them ends.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    parent, pids = os.getpid(), []
    for rank in range(world):
        pid = os.fork()
        if not pid:
            _run_rank(rank, world, port, parent, work)
        pids.append(pid)
    ended = []
    for pid in pids:
        _, status, usage = os.wait4(pid, 0)
        ended.append(Ended(os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime))
    return ended


def _run_rank(rank: int, world: int, port: int, parent: int, work: Callable[[int], None]) -> None:
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    if world > 1:
        names: dict[str, Any] = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": world,
            "LOCAL_WORLD_SIZE": world,
            "GROUP_RANK": 0,
        }
        names |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "none"}
        os.environ.update({name: str(value) for name, value in names.items()})
    status = 1
    try:
        torch.set_num_threads(1)
        work(rank)
        status = 0
    except BaseException as error:  # noqa: BLE001 (this process ends here)
        if "rank" not in str(error):
            traceback.print_exc()
    os._exit(status)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def with_runtime(world: int, work: Callable[[Runtime], None], root: Path) -> None:
    """Call a function with the runtime of a Trainer of `world` ranks, on this rank."""
    trainer = pl.Trainer(
        max_epochs=1,
        limit_train_batches=1,
        accelerator="cpu",
        devices=world,
        strategy=DDPStrategy(process_group_backend="gloo") if world > 1 else "auto",
        callbacks=[_Work(work)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=root,
    )
    loader = DataLoader(TensorDataset(torch.zeros(2 * world, 1)), batch_size=2)
    trainer.fit(_Module(), loader)


class _Work(pl.Callback):
    def __init__(self, work: Callable[[Runtime], None]) -> None:
        self._work = work

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002 (a hook)
        with open_runtime(trainer) as runtime:
            self._work(runtime)


class _Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:  # noqa: ARG002 (a hook)
        loss: torch.Tensor = self.layer(batch[0]).sum()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)
