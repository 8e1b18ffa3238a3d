import functools
import threading
from collections import OrderedDict
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

from lightning_poison.data.handles import handles_dropped

PATH = None
"""File of 200 numbers, four bytes each."""

GLOBAL = None

GLOBALS: dict[str, object] = {}


@pytest.fixture(autouse=True)
def numbers(tmp_path, monkeypatch):
    path = tmp_path / "numbers"
    path.write_bytes(b"".join(number.to_bytes(4, "little") for number in range(200)))
    monkeypatch.setitem(globals(), "PATH", path)
    monkeypatch.setitem(globals(), "GLOBAL", None)
    monkeypatch.setattr(InClass, "handles", {})
    monkeypatch.setattr(OnClass, "handle", None)
    GLOBALS.clear()
    cached.cache_clear()


def opened():
    return PATH.open("rb")


class Numbers(Dataset):
    """Sample i is the i-th number in a file that the derived class opens when it first needs it."""

    def __len__(self):
        return 200

    def __getitem__(self, index):
        file = self.file()
        file.seek(4 * index)
        return int.from_bytes(file.read(4), "little"), index


class InAttribute(Numbers):
    handle = None

    def file(self):
        self.handle = self.handle or opened()
        return self.handle


class Reader:
    def __init__(self):
        self.inner = SimpleNamespace(handle=None)

    def get(self):
        self.inner.handle = self.inner.handle or opened()
        return self.inner.handle


class InObject(Numbers):
    def __init__(self):
        self.readers = {"images": (Reader(),)}

    def file(self):
        return self.readers["images"][0].get()


class Slotted:
    __slots__ = ("handle",)


class InSlots(Numbers):
    def __init__(self):
        self.reader = Slotted()

    def file(self):
        if not hasattr(self.reader, "handle"):
            self.reader.handle = opened()
        return self.reader.handle


class InDict(Numbers):
    def __init__(self):
        self.cache = OrderedDict()

    def file(self):
        if "images" not in self.cache:
            self.cache["images"] = {"file": opened()}
        return self.cache["images"]["file"]


class InList(Numbers):
    def __init__(self):
        self.handles = []
        self.shards = [None] * 3

    def file(self):
        self.shards[1] = self.shards[1] or opened()
        if not self.handles:
            self.handles.append(self.shards[1])
        return self.handles[-1]


class InSet(Numbers):
    def __init__(self):
        self.handles = set()

    def file(self):
        if not self.handles:
            self.handles.add(opened())
        return next(iter(self.handles))


class InClass(Numbers):
    handles: ClassVar[dict[str, object]] = {}

    def file(self):
        if type(self).handles.get("images") is None:
            type(self).handles["images"] = opened()
        return self.handles["images"]


class OnClass(Numbers):
    handle = None

    def file(self):
        if OnClass.handle is None:
            OnClass.handle = opened()
        return OnClass.handle


class InGlobal(Numbers):
    def file(self):
        global GLOBAL
        GLOBAL = GLOBAL or opened()
        return GLOBAL


def file_in_globals():
    if "images" not in GLOBALS:
        GLOBALS["images"] = opened()
    return GLOBALS["images"]


class InGlobals(Numbers):
    def __getitem__(self, index):
        file_in_globals().seek(4 * index)
        return int.from_bytes(file_in_globals().read(4), "little"), index

    file = property(lambda self: file_in_globals)


@functools.lru_cache
def cached():
    return opened()


class InCachedFunction(Numbers):
    def file(self):
        return cached()


class InCachedProperty(Numbers):
    @functools.cached_property
    def handle(self):
        return opened()

    def file(self):
        return self.handle


class InThread(Numbers):
    def __init__(self):
        self.local = threading.local()

    def file(self):
        if not hasattr(self.local, "handle"):
            self.local.handle = opened()
        return self.local.handle


class InClosure(Numbers):
    def __init__(self):
        handle = None

        def get():
            nonlocal handle
            handle = handle or opened()
            return handle

        self.get = functools.partial(get)

    def file(self):
        return self.get()


class InFalse(Numbers):
    def __init__(self):
        self.handle = False

    def file(self):
        self.handle = self.handle or opened()
        return self.handle


KINDS = [InAttribute, InObject, InSlots, InDict, InList, InSet, InClass, OnClass, InGlobal, InGlobals]
KINDS += [InCachedFunction, InCachedProperty, InThread, InClosure, InFalse]


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("view", [lambda data: data, lambda data: ConcatDataset([Subset(data, range(200))])])
def test_what_reading_opened_is_closed(kind, view):
    data = kind()
    with handles_dropped(view(data)):
        assert data[3] == (3, 3)
        first = data.file()
        assert data.file() is first
    again = data.file()
    assert again is not first
    with handles_dropped(data):
        assert data[4] == (4, 4)
    assert data.file() is again
    with handles_dropped(SimpleNamespace(data=Subset(data, [0]))):
        assert data.file() is again


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_workers_of_a_later_loader_read_their_own_files():
    data = InObject()
    with handles_dropped(data):
        data[7]
    loader = DataLoader(data, 8, num_workers=2, multiprocessing_context="fork")
    assert all(torch.equal(numbers, indices) for numbers, indices in loader)


def test_attributes_below_views_are_dropped():
    data = InAttribute()
    data.handle = None
    with handles_dropped(Subset(data, [0, 2])):
        data.handle = "open"
        data.cache = {}
        data.count = 1
    assert data.handle is None
    assert not hasattr(data, "cache")


def test_values_stay_that_cannot_be_open():
    data = InDict()
    data.reads, data.seen, data.images = 0, [], {}
    with handles_dropped(data):
        data.reads = 3
        data.seen += [1, 2]
        data.images[0] = (torch.zeros(2), "name")
    assert (data.reads, data.seen, list(data.images)) == (3, [1, 2], [0])


def test_modules_are_left_alone():
    data = InDict()
    data.network, data.self = nn.Linear(1, 1), data
    with handles_dropped(data):
        data.network.handle = object()
    assert data.network.handle is not None


def test_search_of_a_long_list_ends_and_finds_what_is_beside_it():
    data = InObject()
    data.samples = [[str(number), object()] for number in range(200_000)]
    with handles_dropped(data):
        first = data.file()
    assert data.file() is not first
    data.file().close()
    first.close()
