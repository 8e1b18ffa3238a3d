"""Copies between the CPU and a device that run while the device computes.

CUDA works asynchronously: a call returns as soon as its work is queued. So the device is only busy all the time if the
next block is copied before the current one is finished, and if results are not waited for before the next block is
queued. `overlapped` is that order of calls, `on_device` and `fetch` are the two copies. On the CPU, each block is
finished before the next one is read.

Samples in memory need not be copied block by block: `read_on_device` copies them once if they take a small share of the
device's memory. 8-bit images are copied as bytes in any case, and become float32 on the device.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from lightning_poison.data.blocks import Block, MemoryDataset, read_blocks
from lightning_poison.data.free_memory import free_device_memory
from lightning_poison.data.kept_inputs import KeptInputs
from lightning_poison.data.sample_spec import SampleSpec

DEVICE_SHARE = 0.25
"""Largest share of the free memory of a device that samples take there."""

_COPIES: WeakKeyDictionary[KeptInputs, dict[torch.device, KeptInputs]] = WeakKeyDictionary()
"""Copies of inputs on devices. They end with the inputs."""

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


def read_on_device(
    dataset: Any,
    blocks: Sequence[Tensor],
    device: torch.device,
    *,
    sample: SampleSpec,
    seed: int,
    num_workers: int = 0,
    order: Iterable[int] | None = None,
    most_ahead: int | None = None,
    checked: Callable[[Iterable[Block]], Iterable[Block]] = iter,
) -> Iterator[Block]:
    """Read blocks of samples, in the order given, with inputs and labels on a device.

    Args:
        dataset: See `read_blocks`.
        blocks: See `read_blocks`.
        device: Device on which blocks are used.
        sample: See `read_blocks`.
        seed: See `read_blocks`.
        num_workers: See `read_blocks`.
        order: See `read_blocks`.
        most_ahead: See `read_blocks`.
        checked: Checks labels and indices of blocks while they are on the CPU. It does not get the inputs that the
            device gets. Default: nothing is checked.

    Yields:
        One block at a time, as `read_blocks` yields it, bit for bit.

    Example:
        >>> data = MemoryDataset(torch.eye(3), torch.tensor([4, 5, 6]))
        >>> cpu = torch.device("cpu")
        >>> next(read_on_device(data, [torch.tensor([2, 0])], cpu, sample=SampleSpec(), seed=0)).labels
        tensor([6, 4])
    """
    if device.type == "cpu" or not isinstance(dataset, MemoryDataset):
        read = read_blocks(
            dataset, blocks, sample=sample, seed=seed, num_workers=num_workers, order=order, most_ahead=most_ahead
        )
        return on_device(checked(read), device)
    chosen = blocks if order is None else (blocks[number] for number in order)
    return gathered(dataset, chosen, device, checked, copy=copy_on_device(dataset.stored, device))


def gathered(
    dataset: MemoryDataset,
    blocks: Iterable[Tensor],
    device: torch.device,
    checked: Callable[[Iterable[Block]], Iterable[Block]] = iter,
    *,
    copy: KeptInputs | None = None,
) -> Iterator[Block]:
    """Yield blocks of samples in memory, with inputs and labels on a device.

    Args:
        dataset: Samples in memory.
        blocks: Indices of each block, int64 `(B,)`.
        device: Device on which blocks are used.
        checked: See `read_on_device`.
        copy: All stored inputs on the device. Without them, those of each block are copied, 8-bit images as bytes.

    Example:
        >>> data = MemoryDataset(torch.eye(3), torch.tensor([4, 5, 6]))
        >>> cpu = torch.device("cpu")
        >>> [block] = gathered(data, [torch.tensor([2])], cpu, copy=data.stored.to(cpu))
        >>> block.inputs, block.labels
        (tensor([[0., 0., 1.]]), tensor([6]))
    """

    def read() -> Iterator[Block]:
        for indices in blocks:
            rows = dataset.rows_at(indices)
            sent = rows if copy is not None else dataset.stored.rows(rows)
            yield Block(indices, sent, dataset.targets[indices])

    for block in on_device(checked(read()), device):
        inputs = dataset.stored.scaled(block.inputs) if copy is None else copy.at(block.inputs)
        yield replace(block, inputs=inputs)


def fits_on_device(size: int, free: int | None) -> bool:
    """Return whether samples of a size in bytes may be copied to a device with so many free bytes, if that is known.

    Example:
        >>> fits_on_device(25, 100), fits_on_device(26, 100), fits_on_device(1, None)
        (True, False, False)
    """
    return free is not None and size <= DEVICE_SHARE * free


def copy_on_device(kept: KeptInputs, device: torch.device) -> KeptInputs | None:
    """Return a copy of inputs on a device, the same each time, or `None` if they take too much of its free memory.

    Example:
        >>> copy_on_device(KeptInputs(torch.eye(3)), torch.device("meta")) is None  # its free memory is unknown
        True
    """
    copies = _COPIES.setdefault(kept, {})
    if device not in copies and fits_on_device(kept.num_bytes, free_device_memory(device)):
        copies[device] = kept.to(device)
    return copies.get(device)


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
