import os
import signal
import sys

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, Subset, get_worker_info
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from lightning_poison.data.blocks import SelectedDataset, read_blocks
from lightning_poison.data.reading import ReadSettings, run_in_worker
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.data.source import Source, open_source
from lightning_poison.errors import RankFailedError, UnreadableSampleError


class Opened(Dataset):
    """Readable only where `file` is set; remembers where it was read."""

    file = None

    def __len__(self):
        return 6

    def __getitem__(self, index):
        if self.file is None:
            raise OSError("no file is open")
        return torch.zeros(2), index % 2


def open_in_worker(worker):
    get_worker_info().dataset.file = worker


def open_below_views(worker):
    data = get_worker_info().dataset
    while not isinstance(data, Opened):
        data = data.dataset
    data.file = worker


def open_of_one_kind(worker):
    data = get_worker_info().dataset
    assert type(data) is Opened
    assert len(data) == 6
    assert get_worker_info().id == worker
    data.file = worker


@pytest.mark.parametrize("init", [open_in_worker, open_below_views, open_of_one_kind])
def test_worker_init_fn_reaches_the_data_set(init):
    settings = ReadSettings(num_workers=2, worker_init_fn=init)
    data = Opened()
    assert open_source(data, sample=None, settings=settings).shape == (2,)
    assert data.file is None


class Asks(Opened):
    """Looks itself up in the worker while it is read."""

    def __getitem__(self, index):
        assert get_worker_info().dataset is self
        return torch.zeros(2), index % 2


@pytest.mark.parametrize("init", [None, open_in_worker])
def test_data_set_finds_itself_in_a_worker(init):
    settings = ReadSettings(num_workers=1, worker_init_fn=init)
    assert open_source(Asks(), sample=None, settings=settings).shape == (2,)
    assert run_in_worker(lambda data: data[1][1], Asks(), settings) == 1


def open_below_a_subset(worker):
    subset = get_worker_info().dataset
    assert type(subset) is Subset
    assert isinstance(subset.dataset, Opened)
    subset.dataset.file = worker


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_worker_init_fn_sees_the_subset_of_its_loader(context):
    settings = ReadSettings(num_workers=1, worker_init_fn=open_below_a_subset, multiprocessing_context=context)
    assert open_source(Subset(Opened(), [3, 1]), sample=None, settings=settings).shape == (2,)


def test_nothing_is_read_in_this_process_if_there_are_workers():
    def read(data):
        return get_worker_info() is not None, data.file

    data = Opened()
    assert run_in_worker(read, data, ReadSettings(num_workers=1)) == (True, None)
    assert run_in_worker(read, data, ReadSettings()) == (False, None)


@pytest.mark.parametrize("workers", [0, 1])
def test_error_of_a_call_is_raised(workers):
    with pytest.raises(OSError, match="no file is open"):
        run_in_worker(lambda data: data[0], Opened(), ReadSettings(num_workers=workers))


class StrangeError(Exception):
    def __init__(self, first, second):
        super().__init__(first, second)


def test_error_that_cannot_be_pickled_keeps_its_text():
    def fail(_):
        raise StrangeError("left", "right")

    with pytest.raises(RuntimeError, match=r"StrangeError: .*left"):
        run_in_worker(fail, [0], ReadSettings(num_workers=1))


def test_settings_of_a_loader():
    def collate(samples):
        return samples

    loader = DataLoader([0, 1], num_workers=2, worker_init_fn=open_in_worker, collate_fn=collate)
    assert ReadSettings.of(loader) == ReadSettings(2, open_in_worker, None, collate)
    assert ReadSettings.of(DataLoader([0, 1])) == ReadSettings()
    assert ReadSettings.of(DataLoader([0, 1], batch_size=None)).collate_fn is None


def broken(worker):
    raise ValueError("no such file")


class Ends:
    """Ends the process that reads it."""

    def __init__(self, end):
        self.end = end

    def __len__(self):
        return self.end()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize(
    ("end", "message"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "one was killed by SIGKILL, as when memory runs out"),
        (lambda: os.kill(os.getpid(), signal.SIGBUS), "one was killed by SIGBUS, as when shared memory runs out"),
        (lambda: os._exit(7), "one ended with the exit code 7"),
    ],
)
def test_end_of_a_worker_is_named(monkeypatch, end, message):
    found_within = 0.2  # seconds, in place of five
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (found_within,))
    with pytest.raises(UnreadableSampleError, match=f"to read the first samples, but {message}.\nUse fewer workers"):
        run_in_worker(len, Ends(end), ReadSettings(num_workers=2))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "message"),
    [(broken, "ValueError: no such file"), (lambda number: sys.exit("bye"), "SystemExit: bye")],
)
def test_error_of_worker_init_fn_is_named(function, message):
    settings = ReadSettings(num_workers=1, worker_init_fn=function)
    with pytest.raises(UnreadableSampleError, match=f"`worker_init_fn` to prepare .*, but it raised {message}"):
        run_in_worker(len, [1, 2], settings)
    first = torch.zeros(1, dtype=torch.int64)
    data = SelectedDataset(Source([(torch.zeros(2), 1)], SampleSpec(), settings), first, first)
    with pytest.raises(UnreadableSampleError, match="`worker_init_fn` to prepare"):
        list(read_blocks(data, [first], sample=SampleSpec(), seed=0))


@pytest.mark.slow
def test_data_set_that_cannot_be_sent_to_workers_is_named(tmp_path):
    data = [lambda: 0]
    settings = ReadSettings(num_workers=1, multiprocessing_context="spawn")
    with pytest.raises(
        UnreadableSampleError, match=r"sent to worker processes, but it raised .*pickle.*\nOpen files when"
    ):
        run_in_worker(len, data, settings)


def test_workers_read_at_most_so_many_blocks_ahead():
    requested = []

    def order():
        for number in range(12):
            requested.append(number)
            yield number

    blocks = [torch.tensor([number]) for number in range(12)]
    pairs = [(torch.full((2,), float(number)), 0) for number in range(12)]
    read = read_blocks(pairs, blocks, sample=SampleSpec(), seed=0, num_workers=4, order=order(), most_ahead=1)
    assert int(next(read).indices[0]) == 0
    assert len(requested) <= 2
    assert [int(block.indices[0]) for block in read] == list(range(1, 12))


def test_failure_of_another_rank_does_not_wait_for_workers():
    def order():
        yield from range(3)
        raise RankFailedError("rank 1 failed")

    blocks = [torch.tensor([number]) for number in range(12)]
    pairs = [(torch.full((2,), float(number)), 0) for number in range(12)]
    read = read_blocks(pairs, blocks, sample=SampleSpec(), seed=0, num_workers=2, order=order())
    with pytest.raises(RankFailedError, match="rank 1 failed"):
        list(read)
