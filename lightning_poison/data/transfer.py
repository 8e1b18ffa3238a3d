"""Copies between the CPU and a device that run while the device computes.

CUDA works asynchronously: a call returns as soon as its work is queued. So the device is only busy all the time if the
next block is copied before the current one is finished, and if results are not waited for before the next block is
queued. `overlapped` is that order of calls, `on_device` and `fetch` are the two copies. On the CPU, each block is
finished before the next one is read.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cache, partial
from typing import TypeVar

import torch
from torch import Tensor

from lightning_poison.data.blocks import Block

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

Wait = Callable[[], ResultT]
"""Waits for a result that has been started, and returns it."""


def overlapped(
    items: Iterable[ItemT], start: Callable[[ItemT], Wait[ResultT]], device: torch.device
) -> Iterator[ResultT]:
    """Yield the result of each item, in order; on another device than the CPU, the next item is started before.

    Args:
        items: Read one at a time. An error of an item is raised after the results of the items before it.
        start: Starts the work on an item, and returns a function that waits for its result.
        device: Device that does the work.

    Example:
        >>> def start(number):
        ...     print("start", number)
        ...     return lambda: number
        >>> for number in overlapped(range(2), start, torch.device("cuda")):
        ...     print("result", number)
        start 0
        start 1
        result 0
        result 1
        >>> for number in overlapped(range(2), start, torch.device("cpu")):
        ...     print("result", number)
        start 0
        result 0
        start 1
        result 1
    """
    if device.type == "cpu":
        for item in items:
            yield start(item)()
        return
    source = iter(items)
    waiting: Wait[ResultT] | None = None
    while True:
        upcoming: Wait[ResultT] | None = None
        error: Exception | None = None
        try:
            upcoming = start(next(source))
        except StopIteration:
            pass
        except Exception as raised:  # noqa: BLE001 (raised below)
            error = raised
        if waiting is not None:
            yield waiting()
        if error is not None:
            try:
                raise error
            finally:
                error = None  # otherwise its frames, and the workers of a loader, would stay alive
        if upcoming is None:
            return
        waiting = upcoming


def on_device(blocks: Iterable[Block], device: torch.device) -> Iterator[Block]:
    """Yield blocks with inputs and labels on a device; on the CPU, the blocks themselves.

    On CUDA, the next block is read, and copied from pinned memory by a stream of its own, while the device works on the
    current one. Indices stay on the CPU.

    Args:
        blocks: Blocks on the CPU, read one at a time.
        device: Device to move them to.

    Example:
        >>> blocks = [Block(torch.arange(2), torch.zeros(2, 3), torch.ones(2).long())]
        >>> [block] = on_device(blocks, torch.device("meta"))
        >>> block.inputs.device, block.labels.device, block.indices.device
        (device(type='meta'), device(type='meta'), device(type='cpu'))
    """
    if device.type == "cpu":
        return iter(blocks)
    stream = _copy_stream(device) if device.type == "cuda" else None
    return overlapped(blocks, partial(_send, device=device, stream=stream), device)


@cache
def _copy_stream(device: torch.device) -> "torch.cuda.Stream":
    """Return the stream of copies: one for all, since each stream keeps memory of its own."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _send(block: Block, *, device: torch.device, stream: "torch.cuda.Stream | None") -> Wait[Block]:
    if stream is None:
        sent = replace(block, inputs=block.inputs.to(device), labels=block.labels.to(device))
        return lambda: sent
    with torch.cuda.stream(stream):
        parts = [part.pin_memory().to(device, non_blocking=True) for part in (block.inputs, block.labels)]
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record(stream)

    def wait() -> Block:
        current = torch.cuda.current_stream(device)
        current.wait_event(copied)
        for part in parts:
            part.record_stream(current)
        return replace(block, inputs=parts[0], labels=parts[1])

    return wait


def fetch(tensor: Tensor) -> Wait[Tensor]:
    """Start to copy a tensor to the CPU, and return a function that waits for the copy and returns it.

    Work that is queued on the device after this call is not waited for.

    Example:
        >>> fetch(torch.arange(2))()
        tensor([0, 1])
    """
    tensor = tensor.detach()
    if tensor.device.type != "cuda":
        copy = tensor.cpu()
        return lambda: copy
    pinned = tensor.to("cpu", non_blocking=True)
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record(torch.cuda.current_stream(tensor.device))

    def wait() -> Tensor:
        copied.synchronize()
        return pinned

    return wait
