import multiprocessing
import os
import sys
import time
from types import SimpleNamespace
from typing import ClassVar

import evaluation_grids as grids
import pytest
import torch
from evaluation_grids import grid

from lightning_poison.evaluation import executors
from lightning_poison.evaluation.executors import Failure, InProcessExecutor, ProcessExecutor, run_task
from lightning_poison.evaluation.grid import GridDefense
from lightning_poison.evaluation.grid_run import evaluate_grid


def test_tasks_run_with_one_thread_and_leave_the_process_as_it_was():
    def use(context):
        torch.set_grad_enabled(False)
        return torch.get_num_threads()

    before = torch.get_num_threads()
    assert run_task(None, use, ()) == 1
    assert torch.get_num_threads() == before
    assert torch.is_grad_enabled()


def test_in_process_runs_by_order():
    with InProcessExecutor().pool(None) as pool:
        for name, order in (("b", (1,)), ("a", (0,)), ("c", (1,))):
            pool.submit(name, repr, order=order)
        assert [pool.next()[0] for _ in range(3)] == ["a", "b", "c"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_processes_give_the_same_cells_and_replace_a_killed_worker(tmp_path):
    given = {"defenses": [GridDefense("few", grids.KilledOnce(tmp_path))], "seeds": [0]}
    file = tmp_path / "cells.jsonl"
    cells = evaluate_grid(grid(**given), executor=ProcessExecutor(2), results=file)
    assert (tmp_path / "killed 0").exists()
    assert grids.figures(cells) == grids.figures(evaluate_grid(grid(seeds=[0])))
    assert len(file.read_text().splitlines()) == len(cells)


class DeadWorker:
    """A worker whose process is killed as soon as it has a task."""

    made: ClassVar[list] = []

    def __init__(self, context):
        self.connection, theirs = multiprocessing.Pipe()
        theirs.close()
        self.task, self.process = None, SimpleNamespace(exitcode=-9)
        self.made.append(self)

    def run(self, task):
        task.attempts += 1
        self.task = task

    def close(self):
        self.connection.close()


def test_task_that_kills_every_process_fails(monkeypatch):
    monkeypatch.setattr(executors, "_Worker", DeadWorker)
    with ProcessExecutor(2).pool(None) as pool:
        pool.submit("killed", grids.kill_process)
        name, failure = pool.next()
    assert name == "killed"
    assert failure.reason == "its process ended with exit status -9 each of 3 times; is there enough memory?"
    assert len(DeadWorker.made) == 3


def test_what_cannot_be_pickled_is_an_error_with_a_way_out():
    defenses = [GridDefense("mine", lambda untrusted, seed, trusted: None)]
    with pytest.raises(ValueError, match="use one worker"):
        evaluate_grid(grid(defenses=defenses), executor=ProcessExecutor(2))


def sleep(context):
    time.sleep(600)


@pytest.mark.slow
def test_processes_end_with_the_block_whatever_they_do():
    with ProcessExecutor(1).pool(None) as pool:
        pool.submit("sleep", sleep)
        pool._dispatch()
        pid = pool._workers[0].process.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_failure_of_a_task_is_described():
    assert run_task(None, grids.fail, ()) == Failure(r"ZeroDivisionError: boo\x1b[2J")


@pytest.mark.parametrize("workers", [0, 1.5])
def test_refuses_number_of_workers(workers):
    with pytest.raises(ValueError, match="`workers`"):
        ProcessExecutor(workers)
