"""Streams without their suspicious samples: order, structures, workers, ranks, errors, alarms."""

import copy
import itertools
import pickle
import subprocess
import sys
from collections import namedtuple

import pytest
import torch
from datasets import Dataset as HuggingFaceDataset
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, get_worker_info

from lightning_poison.data.sample_digests import digest_samples
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.errors import NothingKeptError, UnreadableSampleError, UnsupportedDataError
from lightning_poison.sanitization.stream import SanitizedStream
from lightning_poison.sanitization.stream_filter import StreamFilter
from lightning_poison.sanitization.stream_parts import merge_removed

Pair = namedtuple("Pair", "point label")

WORKERS = [0, pytest.param(2, marks=pytest.mark.slow)]
"""After an error, torch may wait for workers for seconds."""


class Numbered(IterableDataset):
    """Samples `(point, label, number)`, of which worker i of n yields every n-th."""

    def __init__(self, data, *, build=None, fails_at=None, endless=False):
        self.points, self.labels = data.tensors
        self.build, self.fails_at, self.endless = build, fails_at, endless

    def __iter__(self):
        info = get_worker_info()
        first, step = (info.id, info.num_workers) if info is not None else (0, 1)
        for number in itertools.count(first, step) if self.endless else range(first, len(self.labels), step):
            place = number % len(self.labels)
            if number == self.fails_at:
                raise OSError(f"shard {number} is damaged")
            sample = self.points[place], int(self.labels[place]), float(number)
            yield sample if self.build is None else self.build(*sample)


@pytest.fixture
def stream_filter(centroid_scorer, blobs):
    return StreamFilter.fit(centroid_scorer(), blobs(1200))


@pytest.fixture
def data(blobs):
    """300 samples in mixed order, of which 6 carry a wrong label."""
    mixed, order = blobs(300, seed=7, flipped=6), torch.randperm(300, generator=torch.Generator().manual_seed(0))
    return TensorDataset(*(each[order] for each in mixed.tensors))


def kept_of(stream_filter, data):
    return (~stream_filter.judge(*data.tensors).suspicious).nonzero().flatten().tolist()


def numbers_in(stream, part=2):
    return [int(sample[part]) for sample in stream]


def loaded(stream, workers, batch_size=16):
    batches = DataLoader(stream, batch_size, num_workers=workers)
    return [int(number) for batch in batches for number in batch[2]]


@pytest.mark.parametrize("block_size", [1, 7, 64, 300, 1000])
def test_yields_what_is_kept_in_order_and_to_the_end(stream_filter, data, block_size):
    stream = SanitizedStream(Numbered(data), stream_filter, block_size=block_size)
    kept = kept_of(stream_filter, data)
    assert 288 <= len(kept) <= 294
    for epoch in (1, 2):
        assert numbers_in(stream) == kept
        progress = stream.progress()
        assert (progress.read, progress.judged, progress.unjudged) == (300 * epoch, 300 * epoch, 0)
        assert progress.removed == epoch * (300 - len(kept))
        assert progress.low < progress.share < progress.high


def test_reads_ahead_no_more_than_a_block(stream_filter, data):
    stream = SanitizedStream(Numbered(data, fails_at=64), stream_filter, block_size=8)
    assert len(list(itertools.islice(stream, 32))) == 32
    assert stream.progress().read <= 40


@pytest.mark.parametrize(
    ("build", "sample", "number"),
    [
        (lambda *parts: parts, None, lambda sample: sample[2]),
        (lambda x, y, n: {"x": x, "label": y, "n": n}, None, lambda sample: sample["n"]),
        (lambda x, y, n: {"n": n, "meta": {"y": y}, "x": x.tolist()}, SampleSpec("x", "meta.y"), lambda s: s["n"]),
        (lambda x, y, n: (Pair(x.numpy(), y), n), SampleSpec("0.point", "0.label"), lambda sample: sample[1]),
        (lambda x, y, n: [n, x, torch.tensor(y)], SampleSpec(1, lambda sample: sample[2]), lambda sample: sample[0]),
    ],
    ids=["tuple", "dict", "nested", "named tuple", "function"],
)
def test_samples_of_any_structure_are_yielded_as_they_are(stream_filter, data, build, sample, number):
    stream = SanitizedStream(Numbered(data, build=build), stream_filter, sample=sample)
    assert [int(number(each)) for each in stream] == kept_of(stream_filter, data)
    first = next(iter(stream))
    assert type(first) is type(build(data.tensors[0][0], 0, 0.0))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_workers_keep_the_same_samples_and_share_their_counters(stream_filter, data, workers, tmp_path):
    stream = SanitizedStream(Numbered(data), stream_filter, directory=tmp_path)
    kept = kept_of(stream_filter, data)
    found = loaded(stream, workers)
    assert sorted(found) == kept
    progress = stream.progress()
    assert (progress.judged, progress.removed) == (300, 300 - len(kept))
    parts = sorted(path.name for path in tmp_path.iterdir())
    assert parts == [f"removed-{stream.run}-rank0-worker{worker}.csv" for worker in range(max(1, workers))]
    removed = merge_removed(tmp_path)
    step = max(1, workers)
    assert sorted(each.worker + step * each.position for each in removed) == sorted(set(range(300)) - set(kept))
    assert {(each.epoch, each.rank, each.decision, each.run) for each in removed} == {(1, 0, "removed", stream.run)}
    loaded(stream, workers)
    assert [each.epoch for each in merge_removed(tmp_path)] == [1] * len(removed) + [2] * len(removed)


def test_a_row_says_what_was_removed_and_why(stream_filter, data, tmp_path):
    def build(point, label, number):
        return {"__key__": f"={number:.0f}", "point": point, "label": label}

    sample = SampleSpec("point", "label")
    list(SanitizedStream(Numbered(data, build=build), stream_filter, sample=sample, directory=tmp_path))
    judgment = stream_filter.judge(*data.tensors)
    for each in merge_removed(tmp_path):
        assert each.key == f"={each.position}"
        assert each.score == float(judgment.scores[each.position]) > each.threshold
        assert each.threshold == float(stream_filter.thresholds[each.label])
        assert each.label == int(data.tensors[1][each.position])
        digest = int(digest_samples(data.tensors[0][each.position : each.position + 1]))
        assert int(each.digest, 16) == digest % 2**64


def test_flagged_samples_stay(stream_filter, data, tmp_path):
    stream = SanitizedStream(Numbered(data), stream_filter, remove=False, directory=tmp_path)
    assert numbers_in(stream) == list(range(300))
    assert stream.progress().removed == 300 - len(kept_of(stream_filter, data))
    assert {each.decision for each in merge_removed(tmp_path)} == {"flagged"}


def test_unknown_and_missing_labels_are_kept_and_counted(stream_filter, data):
    data.tensors[1][270:] = torch.tensor([-1, 3, 99]).repeat(10)
    stream = SanitizedStream(Numbered(data), stream_filter)
    assert numbers_in(stream)[-30:] == list(range(270, 300))
    assert (stream.progress().judged, stream.progress().unjudged) == (270, 30)
    assert "30 not judged" in str(stream.progress())


def test_ranks_have_files_of_their_own(stream_filter, data, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    stream = SanitizedStream(Numbered(data), stream_filter, directory=tmp_path)
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        loaded(stream, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"removed-{stream.run}-rank{rank}-worker{worker}.csv" for rank in (0, 1) for worker in (0, 1)
    ]
    assert {(each.rank, each.worker) for each in merge_removed(tmp_path)} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert SanitizedStream(Numbered(data), stream_filter).place == (1, 2)
    assert SanitizedStream(Numbered(data), stream_filter, rank=(5, 8)).place == (5, 8)


def test_a_copy_for_a_spawned_process_shares_counters_and_rank(stream_filter, data, monkeypatch):
    stream = SanitizedStream(Numbered(data), stream_filter)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    state = stream.__getstate__()
    assert (state["rank"], state["_table"] is stream._table) == ((1, 2), True)


def test_the_inner_data_set_is_reached(stream_filter, data):
    inner = Numbered(data)
    inner.set_epoch = lambda epoch: setattr(inner, "epoch", epoch)
    stream = SanitizedStream(inner, stream_filter)
    stream.set_epoch(3)
    assert stream.epoch == 3
    assert repr(stream) == "SanitizedStream(Numbered, centroid)"
    with pytest.raises(AttributeError):
        stream.no_such_name  # noqa: B018
    with pytest.raises(TypeError):
        len(stream)


def test_methods_that_return_another_stream_are_refused(stream_filter, data):
    points, labels = data.tensors
    rows = {"point": points.tolist(), "label": labels.tolist()}
    inner = HuggingFaceDataset.from_dict(rows).to_iterable_dataset().with_format("torch")
    stream = SanitizedStream(inner, stream_filter, sample=SampleSpec("point", "label"))
    for call in (
        lambda: stream.shuffle(seed=1),
        lambda: stream.take(5),
        lambda: stream.map(len),
        lambda: stream.with_format("numpy"),
        lambda: stream.iter(batch_size=2),
    ):
        with pytest.raises(AttributeError, match=r"would not be filtered\.\nShuffle, map or split the data set first"):
            call()
    with pytest.raises(AttributeError):
        split_dataset_by_node(stream, rank=0, world_size=2)
    assert list(stream.features) == stream.column_names == ["point", "label"]
    split = SanitizedStream(split_dataset_by_node(inner, 0, 2), stream_filter, sample=SampleSpec("point", "label"))
    assert len(list(split)) <= 150


def test_attributes_that_are_streams_are_refused(stream_filter, data):
    inner = Numbered(data)
    inner.source, inner.opened, inner.transform = inner, iter(inner), str
    stream = SanitizedStream(inner, stream_filter)
    for name in ("source", "opened"):
        with pytest.raises(AttributeError, match=f"got `{name}`"):
            getattr(stream, name)
    assert stream.transform is str


class Range(IterableDataset):
    """Samples from `start` to `end`, as in the documentation of torch."""

    def __init__(self, data, start, end):
        self.data, self.start, self.end, self._hidden = data, start, end, 0

    def __iter__(self):
        return ((*self.data[number], float(number)) for number in range(self.start, self.end))


def split_range(worker):
    info = get_worker_info()
    dataset = info.dataset
    share = (dataset.end - dataset.start) // info.num_workers
    first = dataset.start + worker * share
    dataset.start, dataset.end = first, first + share


def test_a_worker_init_fn_sets_attributes_of_the_inner_data_set(stream_filter, data):
    stream = SanitizedStream(Range(data, 0, 200), stream_filter)
    batches = DataLoader(stream, 16, num_workers=2, worker_init_fn=split_range)
    found = [int(number) for batch in batches for number in batch[2]]
    assert sorted(found) == [number for number in kept_of(stream_filter, data) if number < 200]


def pickled(stream):
    return pickle.loads(pickle.dumps(stream))  # noqa: S301 (of this test, as for a spawned worker)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickled])
def test_attributes_of_the_stream_are_its_own_and_others_those_of_the_data_set(stream_filter, data, copied):
    stream = copied(SanitizedStream(Range(data, 0, 10), stream_filter))
    stream.end, stream.new, stream._hidden, stream._own, stream.block_size = 5, 1, 2, 3, 4
    assert (stream.dataset.end, stream.dataset.new, stream.dataset._hidden) == (5, 1, 2)
    assert not hasattr(stream.dataset, "_own")
    assert not hasattr(stream.dataset, "block_size")
    assert (stream.end, stream.new, stream._own, stream.block_size) == (5, 1, 3, 4)
    assert len(list(stream)) <= 5
    assert copied(stream).end == 5


@pytest.mark.parametrize("rank", [3, "a", "ab", (0,), (0, 0), (5, 2), (-1, 2), (0, 1.5), (True, 2)], ids=repr)
def test_a_rank_that_is_none_is_refused(stream_filter, data, rank):
    with pytest.raises(ValueError, match=r"`rank` to be its number and the number of ranks, such as \(0, 2\), but got"):
        SanitizedStream(Numbered(data), stream_filter, rank=rank)


@pytest.mark.parametrize("given", [("0", "0"), ("2", "2"), ("-1", "2"), ("x", "2"), ("²", "4"), ("", "")])
def test_variables_that_name_no_rank_are_ignored(stream_filter, data, monkeypatch, given):
    for name, value in zip(("RANK", "WORLD_SIZE"), given, strict=True):
        monkeypatch.setenv(name, value)
    assert SanitizedStream(Numbered(data), stream_filter).place == (0, 1)


class Recovering(IterableDataset):
    """Its iterator raises an error at sample 70 and goes on."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def __iter__(self):
        return self

    def __next__(self):
        self.at += 1
        if self.at == 71:
            raise OSError("shard 70 is damaged")
        if self.at > len(self.data):
            raise StopIteration
        return (*self.data[self.at - 1], float(self.at - 1))


def test_an_iterator_that_goes_on_after_an_error_is_read_on(stream_filter, data):
    source = iter(SanitizedStream(Recovering(data), stream_filter))
    found = []
    with pytest.raises(OSError, match="shard 70"):
        found.extend(int(sample[2]) for sample in source)
    found.extend(int(sample[2]) for sample in source)
    assert found == [number for number in kept_of(stream_filter, data) if number != 70]
    with pytest.raises(StopIteration):
        next(source)


@pytest.mark.parametrize("workers", WORKERS)
def test_errors_of_the_stream_pass_through_after_the_samples_before(stream_filter, data, workers):
    stream = SanitizedStream(Numbered(data, fails_at=100), stream_filter)
    batches, found = iter(DataLoader(stream, None, num_workers=workers)), []
    with pytest.raises(OSError, match="shard 100 is damaged"):
        found.extend(int(batch[2]) for batch in batches)
    assert set(kept_of(stream_filter, data)[:90]) - set(found) == set()


def test_the_error_itself_is_unchanged(stream_filter, data):
    error = OSError("damaged")

    def build(point, label, number):
        if number == 5:
            raise error
        return point, label

    stream = iter(SanitizedStream(Numbered(data, build=build), stream_filter))
    assert len(list(itertools.islice(stream, 5))) == 5
    with pytest.raises(OSError, match="damaged") as caught:
        next(stream)
    assert caught.value is error


DYING = """
import os
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from lightning_poison.sanitization import SanitizedStream, StreamFilter
from lightning_poison.scorers import PixelCountingScorer
from lightning_poison.testing.tiny_images import TinyImages

class Dying(IterableDataset):
    def __iter__(self):
        for number in range(300):
            if number == 150 and get_worker_info().id == 1:
                os._exit(17)
            yield TinyImages(300)[number]

stream = SanitizedStream(Dying(), StreamFilter.fit(PixelCountingScorer(), TinyImages(1200)), block_size=8)
try:
    list(DataLoader(stream, 16, num_workers=2))
except (RuntimeError, OSError, EOFError) as error:
    print(repr(error), repr(error.__cause__), flush=True)
    os._exit(0)
"""


@pytest.mark.slow
def test_a_worker_that_dies_is_an_error_with_its_exit_code():
    """In a process of its own, since torch raises the error in whatever runs when the signal arrives.

    It names the exit code, unless the connection to the worker breaks first, which is an error as well.
    """
    run = subprocess.run([sys.executable, "-c", DYING], capture_output=True, text=True, timeout=300)
    broken = ("ConnectionResetError", "BrokenPipeError", "EOFError")
    assert any(name in run.stdout + run.stderr for name in ("exit code 17", *broken)), run.stderr[-2000:]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_empty_stream_is_an_error(stream_filter, blobs, workers):
    data = blobs(3)
    data.tensors = tuple(each[:0] for each in data.tensors)
    with pytest.raises(ValueError, match=r"samples in the stream Numbered, but it ended without any in pass 1"):
        loaded(SanitizedStream(Numbered(data), stream_filter), workers)


def test_a_worker_without_a_shard_is_none(stream_filter, blobs):
    stream = SanitizedStream(Numbered(blobs(1)), stream_filter)
    for _ in range(2):
        assert loaded(stream, 2) == [0]


def test_a_stream_that_can_be_read_once_is_named(stream_filter, data):
    samples = iter(list(Numbered(data)))
    stream = SanitizedStream(type("Once", (IterableDataset,), {"__iter__": lambda self: samples})(), stream_filter)
    assert len(list(stream)) > 200
    with pytest.raises(ValueError, match=r"the stream Once, but .* in pass 2\.\nIt can be read only once"):
        next(iter(stream))


def test_an_endless_stream(stream_filter, data):
    stream = SanitizedStream(Numbered(data, endless=True), stream_filter)
    kept = set(kept_of(stream_filter, data))
    found = [int(sample[2]) for sample in itertools.islice(stream, 1000)]
    assert found == [number for number in range(found[-1] + 1) if number % 300 in kept]


@pytest.mark.filterwarnings("ignore:In the stream Numbered, since about judged sample 0")
@pytest.mark.parametrize("workers", WORKERS)
def test_a_stream_of_which_nearly_all_is_suspicious_is_an_error(stream_filter, blobs, workers):
    stream = SanitizedStream(Numbered(blobs(900, flipped=900), endless=not workers), stream_filter)
    with pytest.raises(NothingKeptError, match=r"at most 50 % of the stream Numbered, but .* suspicious\.\nCompare"):
        loaded(stream, workers)
    stream = SanitizedStream(Numbered(blobs(600, flipped=600)), stream_filter, max_removed=1.0)
    assert len(list(stream)) < 10
    stream = SanitizedStream(Numbered(blobs(600, flipped=600)), stream_filter, remove=False)
    assert len(list(stream)) == 600


def changing(blobs, wrong, seed=0):
    """Return samples of which some carry a wrong label with a probability, by their number."""
    data = blobs(len(wrong), seed=seed)
    flipped = torch.rand(len(wrong), generator=torch.Generator().manual_seed(seed)) < torch.tensor(wrong)
    data.tensors = data.tensors[0], torch.where(flipped, (data.tensors[1] + 1) % 3, data.tensors[1])
    return data


def test_a_drift_is_one_warning_and_can_be_read(centroid_scorer, blobs):
    stream_filter = StreamFilter.fit(centroid_scorer(), blobs(3000))
    stream = SanitizedStream(Numbered(changing(blobs, [0.0] * 2000 + [0.3] * 1000)), stream_filter)
    source = iter(stream)
    for _ in range(1500):
        next(source)
    assert not stream.progress().drifts
    with pytest.warns(UserWarning, match=r"In the stream Numbered, since about .* are suspicious") as found:
        list(source)
    assert len(found) == 1
    (drift,) = stream.progress().drifts
    assert (drift.direction, stream.progress().alarms) == ("rose", 1)
    assert 1800 < drift.since < 2200
    assert "drift: since about" in str(stream.progress())


def test_a_stream_that_does_not_warn_counts_the_alarm(centroid_scorer, blobs):
    stream_filter = StreamFilter.fit(centroid_scorer(), blobs(3000))
    stream = SanitizedStream(Numbered(changing(blobs, [0.3] * 1500)), stream_filter, warn=False)
    for workers in (2, 2):
        loaded(stream, workers)
    assert stream.progress().alarms == 2  # one for each worker, in the first epoch
    assert len(stream.progress().drifts) == 2


def test_only_the_first_pass_is_evidence(centroid_scorer, blobs):
    """The same samples again say nothing new: their detector would raise an alarm, the stream does not."""
    stream_filter = StreamFilter.fit(centroid_scorer(), blobs(3000))
    data = changing(blobs, [0.05] * 300, seed=3)
    stream = SanitizedStream(Numbered(data), stream_filter, block_size=300)
    list(stream)
    first = stream.progress()
    for _ in range(14):
        list(stream)
    last = stream.progress()
    detector = stream._detector(torch.zeros_like(stream._table[0]))
    assert any(detector.update(first.removed, first.judged) for _ in range(15))
    assert (last.judged, last.removed, last.alarms, last.drifts) == (4500, 15 * first.removed, 0, ())
    assert (last.low, last.high) == pytest.approx((first.low, first.high))


def test_a_pass_that_fails_before_its_first_sample_does_not_count(centroid_scorer, blobs):
    class Unreachable(Numbered):
        attempts = 0

        def __iter__(self):
            self.attempts += 1
            if self.attempts == 1:
                raise OSError("no route to host")
            return super().__iter__()

    stream_filter = StreamFilter.fit(centroid_scorer(), blobs(3000))
    stream = SanitizedStream(Unreachable(changing(blobs, [0.3] * 1500)), stream_filter, warn=False)
    with pytest.raises(OSError, match="no route to host"):
        next(iter(stream))
    list(stream)
    assert (stream.progress().judged, stream.progress().alarms) == (1500, 1)


def test_the_false_alarm_rate_is_divided_among_processes(stream_filter, data, monkeypatch):
    stream = SanitizedStream(Numbered(data), stream_filter, rank=(0, 4), false_alarm_rate=0.01)
    assert stream._detector(stream._table[0]).false_alarm_rate == pytest.approx(0.0025)


def test_streams_of_batches_are_refused_with_the_way_out(stream_filter, data):
    class Batched(Numbered):
        def __iter__(self):
            yield self.points[:8], self.labels[:8]

    with pytest.raises(UnsupportedDataError, match=r"single samples in the stream Batched, but its items are batches"):
        list(SanitizedStream(Batched(data), stream_filter))


def test_samples_that_cannot_be_judged_are_errors(stream_filter, data):
    nan = Numbered(data, build=lambda x, y, n: (x * (torch.nan if n == 70 else 1), y))
    with pytest.raises(UnreadableSampleError, match="sample 70"):
        list(SanitizedStream(nan, stream_filter))
    soft = Numbered(data, build=lambda x, y, n: (x, y + 0.5))
    with pytest.raises(ValueError, match="class index as the label of sample 0"):
        list(SanitizedStream(soft, stream_filter))


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"dataset": 5}, TypeError, "`dataset` to be an iterable data set, but got int"),
        ({"dataset": DataLoader([1])}, TypeError, r"DataLoader\(SanitizedStream\(...\)\)"),
        ({"dataset": Numbered}, TypeError, "`dataset` to be an iterable data set"),
        ({"stream_filter": 5}, TypeError, "`stream_filter` to be a `StreamFilter`"),
        ({"sample": ("x", "y")}, TypeError, "`sample` to be a `SampleSpec`"),
        ({"block_size": 0}, ValueError, "`block_size` to be an integer of at least 1"),
        ({"max_removed": 2}, ValueError, r"`max_removed` to be a number in \(0, 1\]"),
        ({"max_removed": 0}, ValueError, r"`max_removed` to be a number in \(0, 1\], but got 0"),
        ({"false_alarm_rate": 0}, ValueError, r"`false_alarm_rate` to be a number in \(0, 1\)"),
        ({"directory": "s3://bucket"}, ValueError, "`directory` to be a folder of a local file system"),
        ({"remove": "yes"}, ValueError, "`remove` to be True or False"),
    ],
)
def test_refuses_wrong_arguments(stream_filter, data, arguments, kind, message):
    with pytest.raises(kind, match=message):
        SanitizedStream(**{"dataset": Numbered(data), "stream_filter": stream_filter, **arguments})


@pytest.mark.parametrize("workers", [0, 2])
def test_a_hugging_face_stream(stream_filter, data, workers):
    points, labels = data.tensors
    rows = {"point": points.tolist(), "label": labels.tolist(), "number": list(range(300))}
    stream = HuggingFaceDataset.from_dict(rows).to_iterable_dataset(num_shards=4).with_format("torch")
    filtered = SanitizedStream(stream, stream_filter, sample=SampleSpec("point", "label"))
    batches = DataLoader(filtered, 16, num_workers=workers)
    assert sorted(int(each) for batch in batches for each in batch["number"]) == kept_of(stream_filter, data)
    filtered.set_epoch(1)
