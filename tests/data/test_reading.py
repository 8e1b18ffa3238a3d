import pytest
import torch
from torch.utils.data import DataLoader, Dataset, Subset, get_worker_info

from lightning_poison.data.reading import ReadSettings, handles_dropped, run_in_worker
from lightning_poison.data.source import open_source


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


@pytest.mark.parametrize("init", [open_in_worker, open_below_views])
def test_worker_init_fn_reaches_the_data_set(init):
    settings = ReadSettings(num_workers=2, worker_init_fn=init)
    data = Opened()
    assert open_source(data, sample=None, settings=settings).shape == (2,)
    assert data.file is None


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


def test_handles_below_views_are_dropped():
    data = Opened()
    with handles_dropped(Subset(data, [0, 2])):
        data.file = "open"
        data.cache = {}
        data.count = 1
    assert data.file is None
    assert not hasattr(data, "cache")


def test_attributes_with_a_value_stay():
    data = Opened()
    data.reads = 0
    with handles_dropped(data):
        data.reads = 3
    assert data.reads == 3
