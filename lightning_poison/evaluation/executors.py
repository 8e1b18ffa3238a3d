"""Executors: where the tasks of an evaluation run, in this process or in several."""

import contextlib
import heapq
import itertools
import multiprocessing
import os
import pickle
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from lightning_poison.checks import describe_error, positive_int

ATTEMPTS = 3
"""How often a task is begun, if the process that runs it is killed each time."""

_SECONDS_BETWEEN_LOOKS = 2.0


@dataclass(frozen=True)
class Failure:
    """A task that raised, or whose process was killed again and again.

    Args:
        reason: One line, printable.
    """

    reason: str


class Pool(Protocol):
    """Runs functions with a common context as the first argument."""

    def submit(self, name: Hashable, function: Callable[..., Any], *args: Any, order: tuple[int, ...] = ()) -> None:
        """Run `function(context, *args)` at some time.

        Args:
            name: Name of the task, which `next` returns; unique among the tasks that are not finished.
            function: Function of a module, which other processes can import.
            *args: Further arguments, which can be pickled.
            order: Of the tasks that wait, the one that is smallest by this and then was submitted first is begun next.
        """

    def next(self) -> tuple[Hashable, Any]:
        """Wait until any task is finished, and return its name and its result, or a `Failure`."""


class Executor(Protocol):
    """Provides a pool for the duration of an evaluation. Every executor gives the same results."""

    def pool(self, context: Any) -> AbstractContextManager[Pool]:
        """Return a pool whose functions get `context` as the first argument."""


class InProcessExecutor:
    """Runs one task after the other in this process.

    Example:
        >>> with InProcessExecutor().pool(10) as pool:
        ...     pool.submit("sum", int.__add__, 5)
        ...     pool.submit("quotient", int.__truediv__, 0)
        ...     pool.next(), pool.next()
        (('sum', 15), ('quotient', Failure(reason='ZeroDivisionError: division by zero')))
    """

    @contextmanager
    def pool(self, context: Any) -> Iterator[Pool]:
        """Return a pool that runs a task when its result is awaited."""
        yield _InProcess(context)


class ProcessExecutor:
    """Runs tasks in several processes, which are started anew (`spawn`). A killed one is replaced, its task repeated.

    Args:
        workers: Number of processes. Default: the number of CPU cores.

    Raises:
        ValueError: If `workers` is not a positive integer.

    Example:
        >>> ProcessExecutor(2)
        ProcessExecutor(2)
    """

    def __init__(self, workers: int | None = None) -> None:
        self.workers = positive_int("workers", workers) if workers is not None else available_cores()

    def __repr__(self) -> str:
        return f"ProcessExecutor({self.workers})"

    @contextmanager
    def pool(self, context: Any) -> Iterator[Pool]:
        """Return a pool of processes, which end with the block, whatever they do."""
        pool = _Processes(dumped(context, "the evaluation"), self.workers)
        try:
            yield pool
        finally:
            pool.close()


def available_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_task(context: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """Run a task, and return its result or a `Failure`. The process is left as it was, with its number of threads.

    Every task runs with one CPU thread, so that its result does not depend on the machine.

    Example:
        >>> run_task(2, pow, (5,))
        32
    """
    import torch

    from lightning_poison.contexts import process_state_restored

    try:
        with process_state_restored():
            torch.set_num_threads(1)
            return function(context, *args)
    except Exception as error:  # noqa: BLE001 (code of the user and of plug-ins; the others go on)
        return Failure(describe_error(error, limit=1000))


def run_pickled(context: Any, payload: bytes) -> bytes:
    """Run a task that was pickled by `dumped`, and return its pickled result or `Failure`."""
    try:
        function, args = pickle.loads(payload)  # noqa: S301 (made by the process that began the evaluation)
    except Exception as error:  # noqa: BLE001 (a module of the user that is missing here)
        return pickle.dumps(Failure(f"a task could not be read by its process: {describe_error(error)}"))
    result = run_task(context, function, args)
    try:
        return pickle.dumps(result)
    except Exception as error:  # noqa: BLE001
        return pickle.dumps(Failure(f"the result could not be sent to another process: {describe_error(error)}"))


def dumped(value: Any, what: str) -> bytes:
    """Pickle a value for another process.

    Raises:
        ValueError: If it cannot be pickled.

    Example:
        >>> dumped(lambda: 0, "the evaluation")
        Traceback (most recent call last):
        ValueError: Expected the evaluation to be made of what can be pickled for other processes, but got ...
        Define functions in a module, or use one worker.
    """
    try:
        return pickle.dumps(value)
    except Exception as error:
        raise ValueError(
            f"Expected {what} to be made of what can be pickled for other processes, but got {describe_error(error)}.\n"
            "Define functions in a module, or use one worker."
        ) from error


@dataclass
class Task:
    """A task of a pool.

    Args:
        name: Its name.
        function: What it calls.
        args: Arguments after the context.
        place: Its order, and its number among those that were submitted.
        attempts: How often it was begun.
    """

    name: Hashable
    function: Callable[..., Any]
    args: tuple[Any, ...]
    place: tuple[tuple[int, ...], int]
    attempts: int = 0

    def __lt__(self, other: "Task") -> bool:
        return self.place < other.place


class WaitingTasks:
    """Tasks that wait, in their order.

    Example:
        >>> waiting = WaitingTasks()
        >>> for name, order in (("late", (2,)), ("first", (1,)), ("second", (1,))):
        ...     waiting.add(name, print, (), order)
        >>> [waiting.pop().name for _ in range(len(waiting))]
        ['first', 'second', 'late']
    """

    def __init__(self) -> None:
        self._heap: list[Task] = []
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, name: Hashable, function: Callable[..., Any], args: tuple[Any, ...], order: tuple[int, ...]) -> None:
        """Add a task."""
        heapq.heappush(self._heap, Task(name, function, args, (order, next(self._numbers))))

    def put_back(self, task: Task) -> None:
        """Add a task again, in its former place."""
        heapq.heappush(self._heap, task)

    def pop(self) -> Task:
        """Remove and return the next task."""
        return heapq.heappop(self._heap)


class _InProcess:
    def __init__(self, context: Any) -> None:
        self._context = context
        self._waiting = WaitingTasks()

    def submit(self, name: Hashable, function: Callable[..., Any], *args: Any, order: tuple[int, ...] = ()) -> None:
        self._waiting.add(name, function, args, order)

    def next(self) -> tuple[Hashable, Any]:
        task = self._waiting.pop()
        return task.name, run_task(self._context, task.function, task.args)


class _Worker:
    """A process, our end of the pipe to it, and the task that it runs."""

    def __init__(self, context: bytes) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.connection, theirs = spawn.Pipe()
        self.process = spawn.Process(target=_serve, args=(theirs, os.getpid()), name="lightning-poison evaluate")
        self.task: Task | None = None
        with _interrupts_ignored():  # inherited: Ctrl-C in a terminal reaches us alone
            self.process.start()
        theirs.close()
        with contextlib.suppress(OSError):  # it has ended already, which `wait` shows
            self.connection.send_bytes(context)

    def run(self, task: Task) -> None:
        payload = dumped((task.function, task.args), "a task")
        task.attempts += 1
        self.task = task
        with contextlib.suppress(OSError):
            self.connection.send_bytes(payload)

    def close(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.join()


class _Processes:
    def __init__(self, context: bytes, workers: int) -> None:
        self._context, self._number = context, workers
        self._workers: list[_Worker] = []
        self._waiting = WaitingTasks()
        self._finished: deque[tuple[Hashable, Any]] = deque()

    def submit(self, name: Hashable, function: Callable[..., Any], *args: Any, order: tuple[int, ...] = ()) -> None:
        self._waiting.add(name, function, args, order)

    def next(self) -> tuple[Hashable, Any]:
        while not self._finished:
            self._dispatch()
            busy = {worker.connection: worker for worker in self._workers if worker.task is not None}
            for connection in wait(list(busy)):
                self._receive(busy[connection])  # type: ignore[index]
        return self._finished.popleft()

    def close(self) -> None:
        for worker in self._workers:
            worker.close()

    def _dispatch(self) -> None:
        while self._waiting:
            worker = next((each for each in self._workers if each.task is None), None)
            if worker is None:
                if len(self._workers) == self._number:
                    return
                self._workers.append(worker := _Worker(self._context))
            worker.run(self._waiting.pop())

    def _receive(self, worker: _Worker) -> None:
        task, worker.task = worker.task, None
        assert task is not None  # noqa: S101 (only busy workers are waited for)
        try:
            result = pickle.loads(worker.connection.recv_bytes())  # noqa: S301 (from our own process)
        except (EOFError, OSError):
            self._workers.remove(worker)
            worker.close()
            if task.attempts < ATTEMPTS:
                self._waiting.put_back(task)
            else:
                code = worker.process.exitcode
                self._finished.append((task.name, killed(code)))
            return
        self._finished.append((task.name, result))


def killed(code: int | None = None) -> Failure:
    """Return the failure of a task whose process was killed each time it was begun."""
    how = f" with exit status {code}" if code is not None else ""
    return Failure(f"its process ended{how} each of {ATTEMPTS} times; is there enough memory?")


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _serve(connection: Connection, parent: int) -> None:
    """Run the tasks of the parent until it closes the pipe or ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    warnings.simplefilter("ignore")  # each process would repeat them; errors are recorded
    with contextlib.suppress(EOFError, OSError):
        context = pickle.loads(connection.recv_bytes())  # noqa: S301 (from the process that started us)
        while True:
            connection.send_bytes(run_pickled(context, connection.recv_bytes()))


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    os._exit(1)
