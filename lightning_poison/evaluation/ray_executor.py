"""`RayExecutor`: runs the tasks of an evaluation on a Ray cluster. Needs the extra `ray`."""

import os
import pickle
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning_poison.checks import describe_error, not_negative, positive_int
from lightning_poison.evaluation.executors import (
    ATTEMPTS,
    Failure,
    Pool,
    WaitingTasks,
    available_cores,
    dumped,
    killed,
    run_pickled,
)

_IN_FLIGHT_PER_CORE = 2


class RayExecutor:
    """Runs tasks on a Ray cluster. The task of a killed worker is repeated, elsewhere if its node is gone.

    Nodes of an existing cluster need this package and the plug-ins installed, and the data at the same path. Ray sends
    no usage statistics.

    Args:
        address: Address of an existing cluster, such as `"auto"` or `"ray://host:10001"`. Default: a cluster on this
            machine, for the duration of the evaluation.
        workers: Number of tasks that a cluster on this machine runs at the same time. Default: the number of CPU cores.
        gpus_per_task: Number of GPUs that a task needs, or the share of one, at least 0. Default: 0.

    Raises:
        ModuleNotFoundError: If Ray is not installed.
        ValueError: If an argument is out of range.
    """

    def __init__(self, address: str | None = None, *, workers: int | None = None, gpus_per_task: float = 0.0) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            import ray
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "Expected Ray to be installed for `--executor ray`, but there is no module `ray`.\n"
                "Install it: pip install 'lightning-poison[ray]'."
            ) from error
        self._ray: Any = ray
        self.address = address
        self.workers = positive_int("workers", workers) if workers is not None else available_cores()
        self.gpus_per_task = not_negative("gpus_per_task", gpus_per_task)

    def __repr__(self) -> str:
        where = f"workers={self.workers}" if self.address is None else repr(self.address)
        return f"RayExecutor({where}, gpus_per_task={self.gpus_per_task:g})"

    @contextmanager
    def pool(self, context: Any) -> Iterator[Pool]:
        """Return a pool on the cluster. A cluster of its own, or the connection to an existing one, ends with it."""
        packed = dumped(context, "the evaluation")
        local = {} if self.address is not None else {"num_cpus": self.workers, "include_dashboard": False}
        began = not self._ray.is_initialized()
        if began:
            self._ray.init(
                address=self.address, configure_logging=False, log_to_driver=False, logging_level="error", **local
            )
        try:
            yield _OnRay(self._ray, packed, self.gpus_per_task)
        finally:
            if began:
                self._ray.shutdown()


class _OnRay:
    def __init__(self, ray: Any, context: bytes, gpus: float) -> None:
        self._ray = ray
        self._context = ray.put(context)
        self._remote = ray.remote(_run_on_worker).options(
            num_cpus=1, num_gpus=gpus, max_retries=ATTEMPTS - 1, retry_exceptions=False
        )
        self._waiting = WaitingTasks()
        self._running: dict[Any, Hashable] = {}

    def submit(self, name: Hashable, function: Callable[..., Any], *args: Any, order: tuple[int, ...] = ()) -> None:
        self._waiting.add(name, function, args, order)

    def next(self) -> tuple[Hashable, Any]:
        self._dispatch()
        (done, *_), _ = self._ray.wait(list(self._running), num_returns=1)
        name = self._running.pop(done)
        try:
            return name, pickle.loads(self._ray.get(done))  # noqa: S301 (from our own task)
        except (self._ray.exceptions.WorkerCrashedError, self._ray.exceptions.NodeDiedError):
            return name, killed()
        except self._ray.exceptions.RayError as error:
            return name, Failure(describe_error(error))

    def _dispatch(self) -> None:
        """Start a few tasks more than the cluster has cores for; the others wait here, in their order."""
        cores = max(1, int(self._ray.cluster_resources().get("CPU", 1)))
        while self._waiting and len(self._running) < _IN_FLIGHT_PER_CORE * cores:
            task = self._waiting.pop()
            payload = dumped((task.function, task.args), "a task")
            self._running[self._remote.remote(self._context, payload)] = task.name


_CONTEXTS: dict[int, Any] = {}
"""The context of the evaluation that this worker last ran a task of, by the hash of its bytes."""


def _run_on_worker(context: bytes, payload: bytes) -> bytes:
    digest = hash(context)
    if digest not in _CONTEXTS:
        _CONTEXTS.clear()
        _CONTEXTS[digest] = pickle.loads(context)  # noqa: S301 (made by the process that began the evaluation)
    return run_pickled(_CONTEXTS[digest], payload)
