"""`StatefulDataLoader` resumes inside of an epoch: what is yielded before and after is what a whole run yields."""

import itertools

import pytest
import torch
from datasets import Dataset as HuggingFaceDataset
from torch.utils.data import IterableDataset, TensorDataset, get_worker_info
from torchdata.stateful_dataloader import StatefulDataLoader

from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.sanitization.stream import SanitizedStream
from lightning_poison.sanitization.stream_filter import StreamFilter
from lightning_poison.sanitization.stream_parts import merge_removed

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")  # torchdata calls it


class Plain(IterableDataset):
    """Samples `(point, label, number)` without a state; counts how many are read."""

    def __init__(self, data):
        self.points, self.labels = data.tensors
        self.read = 0

    def numbers(self, start=0):
        info = get_worker_info()
        first, step = (info.id, info.num_workers) if info is not None else (0, 1)
        for number in list(range(first, len(self.labels), step))[start:]:
            self.read += 1
            yield number

    def sample(self, number):
        return self.points[number], int(self.labels[number]), number

    def __iter__(self):
        return map(self.sample, self.numbers())


class StatefulData(Plain):
    """The data set has the state."""

    def __init__(self, data):
        super().__init__(data)
        self.at = self.start = 0

    def __iter__(self):
        self.at, self.start = self.start, 0
        for number in self.numbers(self.at):
            self.at += 1
            yield self.sample(number)

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state_dict):
        self.start = state_dict["at"]


class StatefulIterator(Plain):
    """The iterator has the state."""

    def __iter__(self):
        return _Iterator(self)


class _Iterator:
    def __init__(self, data):
        self.data, self.at, self.source = data, 0, None

    def __iter__(self):
        return self

    def __next__(self):
        self.source = self.source or self.data.numbers(self.at)
        number = next(self.source)
        self.at += 1
        return self.data.sample(number)

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state_dict):
        self.at = state_dict["at"]


class StateForItsOwnLoader(Plain):
    """The data set has a state that only a loader of its package can take, as litdata's have."""

    def state_dict(self, num_samples_yielded, num_workers, batch_size):
        raise AssertionError

    def load_state_dict(self, state_dict):
        raise AssertionError


def hugging_face(data):
    rows = {"point": data.tensors[0].tolist(), "label": data.tensors[1].tolist(), "number": list(range(300))}
    return HuggingFaceDataset.from_dict(rows).to_iterable_dataset(num_shards=4).with_format("torch")


KINDS = {
    "plain": Plain,
    "data set": StatefulData,
    "iterator": StatefulIterator,
    "own loader": StateForItsOwnLoader,
    "hugging face": hugging_face,
}


@pytest.fixture
def stream_filter(centroid_scorer, blobs):
    return StreamFilter.fit(centroid_scorer(), blobs(1200))


@pytest.fixture
def data(blobs):
    mixed, order = blobs(300, seed=7, flipped=6), torch.randperm(300, generator=torch.Generator().manual_seed(0))
    return TensorDataset(*(each[order] for each in mixed.tensors))


def filtered(data, stream_filter, kind="plain", **settings):
    return SanitizedStream(KINDS[kind](data), stream_filter, sample=SampleSpec(), **settings)


def numbers_in(batch):
    return (batch["number"] if isinstance(batch, dict) else batch[2]).tolist()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", list(KINDS))
def test_resumes_inside_of_an_epoch(stream_filter, data, tmp_path, kind, workers):
    spec = SampleSpec("point", "label") if kind == "hugging face" else SampleSpec()

    def loader(folder=None):
        directory = None if folder is None else tmp_path / folder
        stream = SanitizedStream(KINDS[kind](data), stream_filter, sample=spec, block_size=20, directory=directory)
        return StatefulDataLoader(stream, batch_size=7, num_workers=workers)

    undisturbed = [numbers_in(batch) for batch in loader("whole")]
    expected = merge_removed(tmp_path / "whole")
    for count in (0, 1, 3, 10, 30):
        folder = f"interrupted-{count}"
        first, second = loader(folder), loader(folder)
        before = [numbers_in(batch) for batch in itertools.islice(first, count)]
        second.load_state_dict(first.state_dict())
        assert before + [numbers_in(batch) for batch in second] == undisturbed
        progress = second.dataset.progress()
        assert (progress.judged, progress.removed) == (300, len(expected))
        removed = [(each.worker, each.position, each.digest) for each in merge_removed(tmp_path / folder)]
        assert removed == [(each.worker, each.position, each.digest) for each in expected]
        if kind != "hugging face":  # whose state stays loaded, with and without a filter
            assert [numbers_in(batch) for batch in second] == undisturbed
        if workers:
            break  # starting workers takes time


@pytest.mark.parametrize(("kind", "read"), [("plain", 300), ("data set", 200), ("iterator", 200)])
def test_reads_only_what_it_must(stream_filter, data, kind, read):
    first = filtered(data, stream_filter, kind, block_size=20)
    source = iter(first)
    while first.progress().read < 120:
        next(source)
    scored = []
    judge = stream_filter.judge

    def counted(inputs, labels, **settings):
        scored.append(len(inputs))
        return judge(inputs, labels, **settings)

    object.__setattr__(stream_filter, "judge", counted)
    second = filtered(data, stream_filter, kind, block_size=20)
    second.load_state_dict(first.state_dict())
    list(second)
    assert second.dataset.read == read
    assert sum(scored) == 200  # 120 were judged before, of which the last block is judged again
    assert second.progress().judged == 300


def test_a_state_before_the_first_and_after_the_last_sample(stream_filter, data):
    stream = filtered(data, stream_filter)
    fresh = stream.state_dict()
    whole = [sample[2] for sample in stream]
    after = stream.state_dict()
    other = filtered(data, stream_filter)
    other.load_state_dict(fresh)
    assert [sample[2] for sample in other] == whole
    other.load_state_dict(after)
    assert list(other) == []
    assert other.state_dict()["read"] == 300


def test_a_loaded_state_is_returned_until_it_is_used(stream_filter, data):
    stream, other = (filtered(data, stream_filter) for _ in range(2))
    list(itertools.islice(stream, 30))
    state = stream.state_dict()
    other.load_state_dict(state)
    assert other.state_dict() == state
    iter(other)
    assert other.state_dict() == state


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (None, "of version 2, but got NoneType"),
        ({}, "one of the version None"),
        ({"version": 7}, "one of the version 7"),
        ({"version": 2}, "one with nothing for 'inner'"),
        ({"read": -1}, "one with -1 for 'read'"),
        ({"taken": "x"}, "one with 'x' for 'taken'"),
        ({"row": [0.0]}, r"one with \[0.0\] for 'row'"),
        ({"run": 5}, "one with 5 for 'run'"),
    ],
)
def test_a_state_that_is_none_is_refused(stream_filter, data, state, message):
    stream = filtered(data, stream_filter)
    if state and "version" not in state:
        state = {**stream.state_dict(), **state}
    with pytest.raises(ValueError, match=f"`state_dict` to be what .*{message}"):
        stream.load_state_dict(state)
    assert len(list(stream)) > 200


@pytest.mark.parametrize("kind", ["plain", "data set", "iterator"])
def test_samples_in_another_order_are_judged_anew(stream_filter, data, tmp_path, kind):
    first = filtered(data, stream_filter, kind, block_size=100, directory=tmp_path)
    list(itertools.islice(first, 150))
    written = merge_removed(tmp_path)
    flipped = TensorDataset(*(each.flip(0) for each in data.tensors))
    second = filtered(flipped, stream_filter, kind, block_size=100)
    second.load_state_dict(first.state_dict())
    found = [sample[2] for sample in second]
    kept = (~stream_filter.judge(*flipped.tensors).suspicious).tolist()
    before = 150 - 100 + sum(each.position < 100 for each in written)  # of the second block
    assert found == [number for number in range(100, 300) if kept[number]][before:]
    assert second.progress().judged == 300


@pytest.mark.parametrize(("kind", "count", "came"), [("plain", 70, 70), ("plain", 110, 110), ("data set", 110, 110)])
def test_a_stream_that_became_shorter_is_an_error(stream_filter, data, kind, count, came):
    first = filtered(data, stream_filter, kind, block_size=20)
    source = iter(first)
    while first.progress().read < 120:
        next(source)
    second = filtered(TensorDataset(*(each[:count] for each in data.tensors)), stream_filter, kind, block_size=20)
    second.load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match=rf"at least 120 samples .* as when the state .* ended after {came}\."):
        list(second)


@pytest.mark.parametrize("kind", ["plain", "data set", "iterator"])
def test_a_state_taken_soon_after_a_resume(stream_filter, data, kind):
    whole = [sample[2] for sample in filtered(data, stream_filter, kind)]
    first, second, third = (filtered(data, stream_filter, kind) for _ in range(3))
    found = [sample[2] for sample in itertools.islice(first, 100)]
    second.load_state_dict(first.state_dict())
    found += [sample[2] for sample in itertools.islice(second, 5)]
    third.load_state_dict(second.state_dict())
    assert second.state_dict()["inner"] == first.state_dict()["inner"]
    assert found + [sample[2] for sample in third] == whole
