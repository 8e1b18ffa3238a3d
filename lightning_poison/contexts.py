"""Context managers that change a setting and restore it on every exit."""

import gc
import logging
import multiprocessing
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

_logger = logging.getLogger(__name__)


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Disable autocast on devices that support it, so that statistics are not computed in bfloat16.

    Args:
        device: Device on which the statistics are computed.

    Example:
        >>> rows = torch.full((1, 2), 1 / 3)
        >>> with torch.autocast("cpu", dtype=torch.bfloat16), full_precision(rows.device):
        ...     (rows @ rows.T).dtype
        torch.float32
    """
    available = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if available else nullcontext()


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Put modules into evaluation mode and restore the `training` flag of each submodule on exit.

    Example:
        >>> model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2).eval())
        >>> with evaluating(model):
        ...     model[0].training
        False
        >>> [part.training for part in model]
        [True, False]
    """
    flags = [(part, part.training) for module in modules for part in module.modules()]
    try:
        if any(training for _, training in flags):
            for module in modules:
                module.eval()
        yield
    finally:
        for part, training in flags:
            if part.training != training:
                part.training = training


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Disable the gradients of all parameters and restore each `requires_grad` flag on exit.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> model.bias.requires_grad = False
        >>> with frozen(model):
        ...     model(torch.ones(1, 2)).requires_grad
        False
        >>> model.weight.requires_grad, model.bias.requires_grad
        (True, False)
    """
    flags = [(parameter, parameter.requires_grad) for module in modules for parameter in module.parameters()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, requires_grad in flags:
            parameter.requires_grad_(requires_grad)


@contextmanager
def untracked(*modules: nn.Module) -> Iterator[None]:
    """Let batch norm in training mode normalize by batch statistics without updating its running statistics.

    Example:
        >>> model = nn.BatchNorm1d(2)
        >>> with untracked(model):
        ...     _ = model(torch.ones(4, 2))
        >>> model.running_mean, int(model.num_batches_tracked), model.track_running_stats
        (tensor([0., 0.]), 0, True)
    """
    flags = [
        (part, part.track_running_stats)
        for module in modules
        for part in module.modules()
        if isinstance(part, nn.modules.batchnorm._NormBase)
    ]
    try:
        for part, _ in flags:
            part.track_running_stats = False
        yield
    finally:
        for part, track in flags:
            part.track_running_stats = track


@contextmanager
def reproducible_kernels(device: torch.device, threads: int) -> Iterator[None]:
    """Fix the number of CPU threads and the cuDNN algorithms, and restore both on exit.

    On the CPU, the order of a summation depends on the number of threads, which launchers derive from the number of
    processes. On CUDA, cuDNN may choose a different algorithm in each run.

    Args:
        device: Device on which the computation runs. The number of threads is fixed for the CPU only.
        threads: Number of CPU threads.

    Example:
        >>> before = torch.get_num_threads()
        >>> with reproducible_kernels(torch.device("cpu"), threads=1):
        ...     torch.get_num_threads(), torch.backends.cudnn.deterministic
        (1, True)
        >>> torch.get_num_threads() == before
        True
    """
    cudnn = torch.backends.cudnn
    before = torch.get_num_threads(), cudnn.benchmark, cudnn.deterministic
    try:
        if device.type == "cpu":
            torch.set_num_threads(threads)
        cudnn.benchmark, cudnn.deterministic = False, True
        yield
    finally:
        torch.set_num_threads(before[0])
        cudnn.benchmark, cudnn.deterministic = before[1:]


@contextmanager
def process_state_restored() -> Iterator[None]:
    """Restore on exit what code of others may have changed of the process.

    Restored are, of torch: grad and inference mode, default dtype and device, determinism, cuDNN flags, precision of
    matrix products, autocast, anomaly detection, and the number of threads; the random states of Python, NumPy and
    torch; warning filters; level and handlers of the root logger; working directory, environment variables, `sys.path`,
    standard streams, and recursion limit; signal handlers; the start method of processes.

    Not restored are changes of modules, such as patched functions, and environment variables that begin with `KMP_`,
    which numerical libraries set for themselves when they are first imported.

    Example:
        >>> with process_state_restored():
        ...     _ = torch.set_grad_enabled(False)
        ...     os.environ["LIGHTNING_POISON_EXAMPLE"] = "1"
        >>> torch.is_grad_enabled(), "LIGHTNING_POISON_EXAMPLE" in os.environ
        (True, False)
    """
    states = _random_states()
    before = [_read(setting) for setting in _SETTINGS]
    with torch.inference_mode(torch.is_inference_mode_enabled()):  # its exit ends modes that were entered and not left
        torch.set_grad_enabled(before[0])
        try:
            yield
        finally:
            faults = [_restore(setting, value) for setting, value in zip(_SETTINGS, before, strict=True)]
            _set_random_states(states)
    _restore(_SETTINGS[0], before[0])
    if failed := [fault for fault in faults if fault is not None]:
        _logger.warning("Could not restore a setting of the process: %s", "; ".join(failed))


@contextmanager
def warned_when_slow(what: str, *, seconds: float = 10.0) -> Iterator[None]:
    """Log a warning if a block takes long. The block is not stopped.

    Args:
        what: What the block does, the subject of the message; printable.
        seconds: Time after which the warning is logged.

    Example:
        >>> with warned_when_slow("Loading the plug-in frogs"):
        ...     pass
    """
    message = f"{what} has taken {seconds:g} s and is not finished."
    timer = threading.Timer(seconds, _logger.warning, ("%s", message))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def exceptions_of_signals() -> Iterator[list[BaseException]]:
    """Collect the exceptions that signal handlers raise, such as the `KeyboardInterrupt` of Ctrl-C.

    They can thus be told apart from those that the code inside raises itself. In another thread than the main one,
    signal handlers do not run, and the list stays empty.

    Example:
        >>> with exceptions_of_signals() as found:
        ...     try:
        ...         signal.raise_signal(signal.SIGINT)
        ...     except KeyboardInterrupt as error:
        ...         found[0] is error
        True
    """
    raised: list[BaseException] = []

    def collecting(handler: Callable[..., Any]) -> Callable[..., Any]:
        def handle(number: int, frame: Any) -> Any:
            try:
                return handler(number, frame)
            except BaseException as error:
                raised.append(error)
                raise

        return handle

    before = _signal_handlers()
    try:
        for number, handler in before.items():
            if callable(handler):
                signal.signal(number, collecting(handler))
        yield raised
    finally:
        _set_signal_handlers(before)


class _Setting(NamedTuple):
    """A setting of the process: how it is read and written."""

    read: Callable[[], Any]
    write: Callable[[Any], Any]


def _attribute(owner: Any, name: str) -> _Setting:
    return _Setting(lambda: getattr(owner, name), lambda value: setattr(owner, name, value))


def _autocast(device: str) -> tuple[_Setting, _Setting]:
    return (
        _Setting(lambda: torch.is_autocast_enabled(device), lambda on: torch.set_autocast_enabled(device, on)),
        _Setting(lambda: torch.get_autocast_dtype(device), lambda dtype: torch.set_autocast_dtype(device, dtype)),
    )


def _determinism() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _set_default_device(device: torch.device) -> None:
    torch.set_default_device(None if device.type == "cpu" else device)


def _signal_handlers() -> dict[signal.Signals, Any]:
    """Return the handlers that Python code can set. SIGCHLD is torch's own, set by its first loader with workers."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    fixed = ("SIGCHLD", "SIGKILL", "SIGSTOP")
    known = [each for each in signal.Signals if each.name.startswith("SIG") and each.name not in fixed]
    return {each: handler for each in known if (handler := signal.getsignal(each)) is not None}


def _set_signal_handlers(handlers: dict[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)


def _working_directory() -> str | None:
    try:
        return os.getcwd()  # noqa: PTH109 (compared as it is)
    except OSError:  # it was removed
        return None


def _set_working_directory(path: str | None) -> None:
    if path is not None:
        os.chdir(path)


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("KMP_")}


def _set_environment(variables: dict[str, str]) -> None:
    for name in _environment().keys() - variables.keys():
        del os.environ[name]
    os.environ.update(variables)


def _warning_filters() -> tuple[Any, list[Any]]:
    return warnings.filters, list(warnings.filters)


def _set_warning_filters(state: tuple[Any, list[Any]]) -> None:
    warnings.resetwarnings()  # also invalidates the record of warnings that were shown
    _set_list(warnings, "filters")(state)


def _set_list(owner: Any, name: str) -> Callable[[tuple[list[Any], list[Any]]], None]:
    def write(state: tuple[list[Any], list[Any]]) -> None:
        whole, items = state
        whole[:] = items
        setattr(owner, name, whole)

    return write


_SETTINGS = (
    _Setting(torch.is_grad_enabled, torch.set_grad_enabled),
    _Setting(torch.get_default_dtype, torch.set_default_dtype),
    _Setting(torch.get_default_device, _set_default_device),
    _Setting(_determinism, lambda flags: torch.use_deterministic_algorithms(flags[0], warn_only=flags[1])),
    _attribute(torch.utils.deterministic, "fill_uninitialized_memory"),
    *(_attribute(torch.backends.cudnn, name) for name in ("benchmark", "deterministic", "enabled", "allow_tf32")),
    _Setting(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    *_autocast("cpu"),
    *_autocast("cuda"),
    _Setting(torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled),
    _Setting(torch.is_anomaly_enabled, torch.set_anomaly_enabled),
    _Setting(torch.get_num_threads, torch.set_num_threads),
    _Setting(np.geterr, lambda actions: np.seterr(**actions)),
    _Setting(_warning_filters, _set_warning_filters),
    _attribute(warnings, "showwarning"),
    _Setting(lambda: logging.root.level, logging.root.setLevel),
    _Setting(lambda: (logging.root.handlers, list(logging.root.handlers)), _set_list(logging.root, "handlers")),
    _Setting(lambda: logging.root.manager.disable, logging.disable),
    _Setting(_working_directory, _set_working_directory),
    _Setting(_environment, _set_environment),
    _Setting(lambda: (sys.path, list(sys.path)), _set_list(sys, "path")),
    *(_attribute(sys, name) for name in ("stdin", "stdout", "stderr", "excepthook")),
    _Setting(sys.getrecursionlimit, sys.setrecursionlimit),
    _Setting(gc.isenabled, lambda on: gc.enable() if on else gc.disable()),
    _Setting(
        lambda: multiprocessing.get_start_method(allow_none=True),
        lambda method: multiprocessing.set_start_method(method, force=True),
    ),
    _Setting(_signal_handlers, _set_signal_handlers),
)
"""Settings that `process_state_restored` restores, in this order; grad mode is the first."""

_UNREADABLE = object()


def _read(setting: _Setting) -> Any:
    try:
        return setting.read()
    except Exception:  # noqa: BLE001 (this build or machine does not have the setting, so it cannot change)
        return _UNREADABLE


def _restore(setting: _Setting, value: Any) -> str | None:
    """Write a setting back if it has changed; return what failed."""
    try:
        if value is not _UNREADABLE and not _is_same(_read(setting), value):
            setting.write(value)
    except Exception as error:  # noqa: BLE001 (the other settings are still to be restored)
        return f"{type(error).__name__}: {error}"
    return None


def _is_same(one: Any, other: Any) -> bool:
    """Compare two states; lists must also be the same objects, since others hold on to them."""
    if isinstance(other, tuple) and isinstance(other[0], list):
        return one[0] is other[0] and one[1] == other[1]
    return bool(one == other)


def _random_states() -> tuple[Any, ...]:
    is_used: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    cuda = torch.cuda.get_rng_state_all() if is_used else []
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda  # noqa: NPY002


def _set_random_states(states: tuple[Any, ...]) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    torch.set_rng_state(states[2])
    if states[3]:
        torch.cuda.set_rng_state_all(states[3])
