import contextlib
import gc
import weakref
from unittest import mock

import pytest
import torch

from lightning_poison.data import transfer
from lightning_poison.data.blocks import Block, MemoryDataset, index_blocks, read_blocks
from lightning_poison.data.free_memory import free_device_memory
from lightning_poison.data.kept_inputs import SCALINGS, KeptInputs
from lightning_poison.data.packed_inputs import InputLayout, PackedInputs
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.data.transfer import copy_on_device, fetch, gathered, on_device, overlapped, read_on_device

CPU, OTHER = torch.device("cpu"), torch.device("meta")
CUDA = pytest.param("cuda", marks=pytest.mark.gpu)


def blocks(count=4, size=3):
    for number in range(count):
        yield Block(torch.arange(size), torch.full((size, 2), float(number)), torch.full((size,), number))


class Work:
    """Records when an item is read, its work started, waited for, and its result used."""

    def __init__(self, *, failing=None, unreadable=None):
        self.log, self.failing, self.unreadable = [], failing, unreadable

    def items(self, count=3):
        for number in range(count):
            if number == self.unreadable:
                raise ValueError(f"item {number}")
            self.log.append(f"read {number}")
            yield number

    def start(self, number):
        if number == self.failing:
            raise RuntimeError(f"start {number}")
        self.log.append(f"start {number}")
        return lambda: self.log.append(f"wait {number}") or number

    def run(self, device):
        for number in overlapped(self.items(), self.start, device):
            self.log.append(f"use {number}")
        return self.log


def test_cpu_finishes_an_item_before_the_next_is_read():
    order = [f"{step} {number}" for number in range(3) for step in ("read", "start", "wait", "use")]
    assert Work().run(CPU) == order


def test_device_gets_the_next_item_before_the_last_result_is_waited_for():
    found = Work().run(OTHER)
    assert found == [
        "read 0", "start 0", "read 1", "start 1", "wait 0", "use 0", "read 2", "start 2", "wait 1", "use 1", "wait 2",
        "use 2",
    ]  # fmt: skip


@pytest.mark.parametrize("device", [CPU, OTHER])
def test_nothing_to_do(device):
    assert list(overlapped([], Work().start, device)) == []


@pytest.mark.parametrize("device", [CPU, OTHER])
@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize(("kind", "error"), [("failing", RuntimeError), ("unreadable", ValueError)])
def test_results_before_an_error_are_used_first(device, number, kind, error):
    work = Work(**{kind: number})
    with pytest.raises(error, match=str(number)):
        work.run(device)
    assert [entry for entry in work.log if entry.startswith("use")] == [f"use {each}" for each in range(number)]


def test_error_does_not_keep_its_frames_alive():
    """A frame of a reader has worker processes, which would end late if a cycle of references kept it."""

    class Held:
        pass

    def failing():
        held = Held()
        seen.append(weakref.ref(held))
        yield 1
        raise ValueError("no")

    seen = []
    gc.collect()
    gc.disable()
    try:
        with contextlib.suppress(ValueError):
            list(overlapped(failing(), Work().start, OTHER))
        assert seen[0]() is None
    finally:
        gc.enable()


def test_blocks_on_the_cpu_are_the_same_objects():
    given = list(blocks())
    assert all(sent is own for sent, own in zip(on_device(given, CPU), given, strict=True))


def test_blocks_are_moved_without_their_indices():
    found = list(on_device(blocks(), OTHER))
    assert len(found) == 4
    for block in found:
        assert (block.inputs.device, block.labels.device, block.indices.device) == (OTHER, OTHER, CPU)
        assert block.indices.tolist() == [0, 1, 2]


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_blocks_arrive_unchanged(device):
    """On CUDA, the consumer keeps the device busy, so that copies and kernels do overlap."""
    device, sums = torch.device(device), []
    many = [Block(torch.arange(64), torch.randn(64, 5_000), torch.randint(9, (64,))) for _ in range(20)]
    busy = torch.randn(1_000, 1_000, device=device)
    for block in on_device(many, device):
        busy = busy @ busy / busy.norm()
        sums.append((block.inputs.double().sum(1), block.labels + 1, block.inputs.device.type))
    for (inputs, labels, where), own in zip(sums, many, strict=True):
        torch.testing.assert_close(inputs.cpu(), own.inputs.double().sum(1))
        assert torch.equal(labels.cpu(), own.labels + 1)
        assert where == device.type


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_packed_inputs_keep_their_layout(device):
    layout = InputLayout.of((torch.tensor([7, 9]), torch.zeros(3)))
    packed = PackedInputs.of(torch.tensor([[7.0, 9, 0, 0, 0]]), layout)
    (block,) = on_device([Block(torch.arange(1), packed, torch.zeros(1).long())], torch.device(device))
    assert block.inputs.structure == layout


LAYOUT = InputLayout.of((torch.zeros(2), torch.zeros(3)))
LEVELS = torch.randint(256, (20, 3, 5, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
STORED = {
    "8-bit images": lambda: KeptInputs(LEVELS, SCALINGS[0]),
    "8-bit images, multiplied": lambda: KeptInputs(LEVELS, SCALINGS[1]),
    "images": lambda: KeptInputs(LEVELS.float().log1p()),
    "vectors": lambda: KeptInputs(torch.arange(60.0).view(20, 3)),
    "several inputs": lambda: KeptInputs(PackedInputs.of(torch.arange(100.0).view(20, 5), LAYOUT)),
}
PARTS = {"all": torch.arange(20), "most": torch.arange(19, 4, -1), "few": torch.tensor([3, 19, 4, 0])}


def in_memory(kind, part="all"):
    return MemoryDataset(STORED[kind](), torch.arange(20) * 10).subset(PARTS[part])


def shuffled(data):
    return index_blocks(torch.randperm(len(data), generator=torch.Generator().manual_seed(1)), 4)


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, two in zip(found, expected, strict=True):
        assert torch.equal(one.indices, two.indices)
        assert torch.equal(one.labels.cpu(), two.labels)
        assert one.inputs.dtype == torch.float32
        assert torch.equal(one.inputs.cpu().view(torch.int32), two.inputs.view(torch.int32))
        assert getattr(one.inputs, "structure", None) == getattr(two.inputs, "structure", None)


@pytest.mark.parametrize("has_copy", [True, False])
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kind", STORED)
@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_samples_in_memory_arrive_unchanged(device, kind, part, has_copy):
    data, device = in_memory(kind, part), torch.device(device)
    expected = list(read_blocks(data, shuffled(data), sample=SampleSpec(), seed=0))
    copy = data.stored.to(device) if has_copy else None
    found = list(gathered(data, shuffled(data), device, copy=copy))
    assert_same(found, expected)
    assert all(block.inputs.device.type == device.type for block in found)


@pytest.mark.parametrize("free", [0, 2**40])
@pytest.mark.parametrize("kind", STORED)
@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_blocks_do_not_depend_on_the_device(monkeypatch, device, kind, free):
    monkeypatch.setattr(transfer, "free_device_memory", lambda _: free)
    data = in_memory(kind)
    how = {"sample": SampleSpec(), "seed": 0, "order": [2, 0, 4]}
    found = list(read_on_device(data, shuffled(data), torch.device(device), **how))
    assert_same(found, list(read_blocks(data, shuffled(data), **how)))
    assert torch.equal(found[0].indices, shuffled(data)[2])


class Bus:
    """Records what is copied to another device, block by block, and how much memory is free there."""

    def __init__(self, monkeypatch, *, free):
        self.inputs = []
        monkeypatch.setattr(transfer, "free_device_memory", lambda _: free)
        monkeypatch.setattr(transfer, "on_device", self.copy)

    def copy(self, blocks, device):
        for block in blocks:
            self.inputs.append(block.inputs)
            yield from on_device([block], device)


@pytest.mark.parametrize(
    ("kind", "free", "dtype", "size"),
    [
        ("8-bit images", 4 * LEVELS.numel() - 1, torch.uint8, 75),
        ("8-bit images", None, torch.uint8, 75),
        ("8-bit images", 4 * LEVELS.numel(), torch.int64, 1),
        ("images", 4 * 4 * LEVELS.numel() - 1, torch.float32, 75),
        ("images", 4 * 4 * LEVELS.numel(), torch.int64, 1),
    ],
)
def test_the_bus_carries_bytes_or_row_numbers(monkeypatch, kind, free, dtype, size):
    bus, data = Bus(monkeypatch, free=free), in_memory(kind)
    found = list(read_on_device(data, shuffled(data), OTHER, sample=SampleSpec(), seed=0))
    assert [(each.dtype, each.numel()) for each in bus.inputs] == [(dtype, 4 * size)] * 5
    assert all((each.inputs.device, each.inputs.dtype, each.inputs.shape[1:]) == (OTHER, torch.float32, (3, 5, 5))
               for each in found)  # fmt: skip
    assert all(each.labels.device == OTHER for each in found)


def test_other_data_sets_are_sent_as_they_are_read(monkeypatch):
    bus, data = Bus(monkeypatch, free=2**40), [(torch.full((1, 2, 2), float(index)), index) for index in range(8)]
    (block,) = read_on_device(data, [torch.tensor([7, 2])], OTHER, sample=SampleSpec(), seed=0)
    assert (block.inputs.device, block.inputs.shape) == (OTHER, (2, 1, 2, 2))
    assert bus.inputs[0][:, 0, 0, 0].tolist() == [7, 2]


def test_labels_are_checked_before_they_are_sent(monkeypatch):
    monkeypatch.setattr(transfer, "free_device_memory", lambda _: 2**40)
    seen, data = [], in_memory("8-bit images", "most")

    def checked(blocks):
        for block in blocks:
            seen.append((block.labels.device, block.labels.tolist()))
            yield block

    list(read_on_device(data, [torch.tensor([0, 14])], OTHER, sample=SampleSpec(), seed=0, checked=checked))
    assert seen == [(CPU, [190, 50])]


def test_samples_are_copied_to_a_device_once(monkeypatch):
    monkeypatch.setattr(transfer, "free_device_memory", lambda _: 2**40)
    data = in_memory("8-bit images")
    copy = copy_on_device(data.stored, OTHER)
    monkeypatch.setattr(transfer, "free_device_memory", lambda _: 0)
    assert copy_on_device(data.subset(PARTS["most"]).relabeled(torch.zeros(15)).stored, OTHER) is copy
    assert copy_on_device(in_memory("8-bit images").stored, OTHER) is None
    copy, kept = weakref.ref(copy), weakref.ref(data.stored)
    assert copy() is not None
    del data
    assert kept() is None
    assert copy() is None


@pytest.mark.gpu
def test_free_memory_of_the_device():
    device = torch.device("cuda")
    before = free_device_memory(device)
    held = torch.zeros(2**26, device=device)
    assert before - free_device_memory(device) >= 2**27
    del held
    assert free_device_memory(device) > before - 2**27


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_fetches_the_value_at_the_time_of_the_call(device):
    value = torch.arange(100_000.0, device=device, requires_grad=True)
    wait = fetch(2 * value)
    found = wait()
    assert (found.device.type, found.requires_grad) == ("cpu", False)
    assert torch.equal(found, 2 * torch.arange(100_000.0))


class Driver:
    """Stands for the CUDA driver, and records the order of calls."""

    def __init__(self, monkeypatch):
        self.log = []
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext(stream))
        monkeypatch.setattr(torch.cuda, "Event", self.event)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _: self.stream("current"))
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: self.log.append("pin") or tensor)
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda _, stream: self.log.append(f"keep for {stream.name}"))

    def event(self):
        event = mock.Mock()
        event.record.side_effect = lambda stream: self.log.append(f"mark {stream.name}")
        event.synchronize.side_effect = lambda: self.log.append("wait")
        return event

    def stream(self, name):
        stream = mock.Mock()
        stream.name = name
        stream.wait_event.side_effect = lambda _: self.log.append(f"{name} waits")
        return stream


def test_a_block_is_used_after_its_copy_and_kept_until_its_use_ends(monkeypatch):
    driver = Driver(monkeypatch)
    wait = transfer._send(next(blocks()), device=OTHER, stream=driver.stream("copies"))
    assert driver.log == ["pin", "pin", "mark copies"]
    block = wait()
    assert driver.log[3:] == ["current waits", "keep for current", "keep for current"]
    assert (block.inputs.device, block.labels.device, block.indices.device) == (OTHER, OTHER, CPU)


def test_a_value_is_read_after_its_copy(monkeypatch):
    driver, value = Driver(monkeypatch), mock.Mock()
    value.detach.return_value = value
    value.device = torch.device("cuda")
    value.to.side_effect = lambda device, *, non_blocking: driver.log.append(f"copy to {device}, {non_blocking}") or 5
    wait = fetch(value)
    assert driver.log == ["copy to cpu, True", "mark current"]
    assert wait() == 5
    assert driver.log[2:] == ["wait"]
