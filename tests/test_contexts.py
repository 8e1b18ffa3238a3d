import copy
import gc
import logging
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from lightning_poison.contexts import (
    evaluating,
    exceptions_of_signals,
    frozen,
    full_precision,
    process_state_restored,
    reproducible_kernels,
    untracked,
    warned_when_slow,
)

CPU = torch.device("cpu")


class StoppedError(Exception):
    """Raised on purpose inside a context manager."""


@pytest.mark.parametrize("fails", [False, True])
def test_evaluating_restores_training_flags(fails):
    net = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)).train()
    net[1].eval()
    try:
        with evaluating(net):
            assert not any(part.training for part in net.modules())
            if fails:
                raise StoppedError
    except StoppedError:
        pass
    assert [part.training for part in net.modules()] == [True, True, False]


@pytest.mark.parametrize("fails", [False, True])
def test_frozen_restores_requires_grad_flags(fails):
    net = nn.Linear(2, 2)
    net.bias.requires_grad_(False)
    try:
        with frozen(net):
            assert not any(parameter.requires_grad for parameter in net.parameters())
            if fails:
                raise StoppedError
    except StoppedError:
        pass
    assert net.weight.requires_grad
    assert not net.bias.requires_grad


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("fails", [False, True])
def test_reproducible_kernels_restores_settings(fails):
    cudnn = torch.backends.cudnn
    found = torch.get_num_threads(), cudnn.benchmark, cudnn.deterministic
    cudnn.benchmark = True
    try:
        with reproducible_kernels(CPU, 1):
            assert (torch.get_num_threads(), cudnn.benchmark, cudnn.deterministic) == (1, False, True)
            if fails:
                raise StoppedError
    except StoppedError:
        pass
    assert (torch.get_num_threads(), cudnn.benchmark, cudnn.deterministic) == (found[0], True, found[2])
    cudnn.benchmark = found[1]


def test_untracked_batch_norm_keeps_running_statistics():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).train()
    before = copy.deepcopy(model.state_dict())
    inputs = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    with untracked(model):
        found = model(inputs)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    torch.testing.assert_close(found, model(inputs))
    assert model[1].num_batches_tracked == 1


def test_full_precision_disables_autocast_and_restores_it():
    rows = torch.rand(4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with full_precision(rows.device):
            assert (rows @ rows).dtype == torch.float32
        assert (rows @ rows).dtype == torch.bfloat16


def test_full_precision_ignores_device_without_autocast():
    device = torch.device("meta")
    with pytest.raises(RuntimeError), torch.autocast(device.type, enabled=False):
        pass
    with full_precision(device) as nothing:
        assert nothing is None


def enter_inference_mode():
    mode = torch.inference_mode()
    mode.__enter__()
    return mode


CHANGES = {
    "grad mode": (torch.is_grad_enabled, lambda: torch.set_grad_enabled(False)),
    "inference mode": (torch.is_inference_mode_enabled, enter_inference_mode),
    "default dtype": (torch.get_default_dtype, lambda: torch.set_default_dtype(torch.float64)),
    "default device": (torch.get_default_device, lambda: torch.set_default_device("meta")),
    "determinism": (torch.are_deterministic_algorithms_enabled, lambda: torch.use_deterministic_algorithms(True)),
    "warn only": (
        torch.is_deterministic_algorithms_warn_only_enabled,
        lambda: torch.use_deterministic_algorithms(True, warn_only=True),
    ),
    "cudnn benchmark": (
        lambda: torch.backends.cudnn.benchmark,
        lambda: setattr(torch.backends.cudnn, "benchmark", True),
    ),
    "cudnn enabled": (lambda: torch.backends.cudnn.enabled, lambda: setattr(torch.backends.cudnn, "enabled", False)),
    "matmul precision": (torch.get_float32_matmul_precision, lambda: torch.set_float32_matmul_precision("medium")),
    "autocast": (lambda: torch.is_autocast_enabled("cpu"), lambda: torch.set_autocast_enabled("cpu", True)),
    "autocast dtype": (
        lambda: torch.get_autocast_dtype("cpu"),
        lambda: torch.set_autocast_dtype("cpu", torch.float16),
    ),
    "anomaly detection": (torch.is_anomaly_enabled, lambda: torch.set_anomaly_enabled(True)),
    "threads": (torch.get_num_threads, lambda: torch.set_num_threads(torch.get_num_threads() + 1)),
    "Python's random state": (random.getstate, lambda: random.seed(987)),
    "NumPy's random state": (lambda: str(np.random.get_state()), lambda: np.random.seed(987)),  # noqa: NPY002
    "torch's random state": (lambda: torch.get_rng_state().tolist(), lambda: torch.manual_seed(987)),
    "NumPy's errors": (np.geterr, lambda: np.seterr(all="ignore")),
    "warning filters": (lambda: list(warnings.filters), lambda: warnings.simplefilter("ignore")),
    "no warning filters": (lambda: list(warnings.filters), warnings.resetwarnings),
    "warnings": (lambda: warnings.showwarning, lambda: setattr(warnings, "showwarning", print)),
    "root level": (lambda: logging.root.level, lambda: logging.root.setLevel(1)),
    "root handlers": (
        lambda: list(logging.root.handlers),
        lambda: logging.root.addHandler(logging.NullHandler()),
    ),
    "logging": (lambda: logging.root.manager.disable, lambda: logging.disable(logging.CRITICAL)),
    "working directory": (os.getcwd, lambda: os.chdir("/")),
    "new variable": (lambda: os.environ.get("EVIL"), lambda: os.environ.update(EVIL="1")),
    "removed variable": (lambda: os.environ.get("PATH"), lambda: os.environ.pop("PATH")),
    "path": (lambda: list(sys.path), lambda: sys.path.insert(0, "/evil")),
    "other path": (lambda: sys.path, lambda: setattr(sys, "path", [])),
    "standard output": (lambda: sys.stdout, lambda: setattr(sys, "stdout", None)),
    "excepthook": (lambda: sys.excepthook, lambda: setattr(sys, "excepthook", print)),
    "recursion limit": (sys.getrecursionlimit, lambda: sys.setrecursionlimit(5000)),
    "garbage collection": (gc.isenabled, gc.disable),
    "start method": (
        lambda: multiprocessing.get_start_method(allow_none=True),
        lambda: multiprocessing.set_start_method("spawn", force=True),
    ),
    "interrupt handler": (
        lambda: signal.getsignal(signal.SIGINT),
        lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    ),
    "alarm handler": (lambda: signal.getsignal(signal.SIGTERM), lambda: signal.signal(signal.SIGTERM, print)),
}


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize(("read", "change"), CHANGES.values(), ids=CHANGES.keys())
def test_process_state_is_restored(read, change, fails):
    before = read()
    try:
        with process_state_restored():
            kept = [change()]  # an entered mode ends when it is collected
            changed = read()
            if fails:
                raise StoppedError
    except StoppedError:
        pass
    assert changed != before
    assert read() == before
    kept.clear()
    assert read() == before


def test_process_state_keeps_modes_of_the_caller():
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        with process_state_restored():
            assert not torch.is_grad_enabled()
            assert torch.is_autocast_enabled("cpu")
            torch.set_grad_enabled(True)
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        with process_state_restored():
            assert torch.is_inference_mode_enabled()
        assert torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()


def test_process_state_in_removed_working_directory(tmp_path, monkeypatch):
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    with process_state_restored():
        pass


def test_process_state_reports_what_cannot_be_restored(tmp_path, monkeypatch, caplog):
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    level = logging.root.level
    with process_state_restored():
        os.chdir("/")
        folder.rmdir()
        logging.root.setLevel(1)
    assert "Could not restore" in caplog.text
    assert "gone" in caplog.text
    assert logging.root.level == level


def test_process_state_is_restored_in_another_thread():
    found = []

    def run():
        with process_state_restored():
            os.environ["EVIL"] = "1"
        found.append(os.environ.get("EVIL"))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [None]


def test_slow_block_is_named(caplog):
    with warned_when_slow("Loading the plug-in frogs", seconds=0.01):
        deadline = time.monotonic() + 5
        while not caplog.text and time.monotonic() < deadline:
            time.sleep(0.01)
    assert "Loading the plug-in frogs has taken 0.01 s and is not finished." in caplog.text


def test_fast_block_is_not_named(caplog):
    with warned_when_slow("Loading the plug-in frogs", seconds=0.05):
        pass
    time.sleep(0.1)
    assert not caplog.text


def test_exceptions_of_signals_are_told_apart():
    with exceptions_of_signals() as raised:
        with pytest.raises(KeyboardInterrupt):
            raise KeyboardInterrupt
        assert not raised
        with pytest.raises(KeyboardInterrupt) as caught:
            signal.raise_signal(signal.SIGINT)
        assert raised == [caught.value]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_modules_in_evaluation_mode_are_left_alone(monkeypatch):
    network = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)).eval()
    monkeypatch.setattr(network, "train", lambda mode=True: pytest.fail("the mode was set"))
    with evaluating(network):
        assert not network[1].training
    assert [part.training for part in network.modules()] == [False] * 3
