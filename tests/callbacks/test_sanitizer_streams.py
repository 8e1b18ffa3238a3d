"""The callback filters streams with a calibrated filter, follows what it removes, and refuses them without one."""

import csv
import itertools
import logging
import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info
from torchdata.stateful_dataloader import StatefulDataLoader

from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.datamodules import SanitizedDataModule
from lightning_poison.errors import NothingKeptError, UnsupportedDataError
from lightning_poison.sanitization.stream import SanitizedStream
from lightning_poison.sanitization.stream_filter import StreamFilter
from lightning_poison.sanitization.stream_parts import merge_removed

SPEC = SampleSpec(0, 1)


class Stream(IterableDataset):
    """Yields a map-style data set in its order, of which worker i of n reads every n-th sample."""

    def __init__(self, data: Dataset, *, endless: bool = False) -> None:
        self.data, self.endless = data, endless

    def __iter__(self):
        info = get_worker_info()
        first, step = (info.id, info.num_workers) if info is not None else (0, 1)
        numbers = itertools.count(first, step) if self.endless else range(first, len(self.data), step)
        return (self.data[number % len(self.data)] for number in numbers)


@pytest.fixture
def stream_filter(world, centroid_scorer):
    return StreamFilter.fit(centroid_scorer(), world.numbered(1200, wrong=0, seed=5), sample=SPEC)


@pytest.fixture
def sanitizer(world, stream_filter):
    def make(**settings):
        return world.sanitizer(stream_filter=stream_filter, **{"sample": SPEC, **settings})

    return make


@pytest.fixture
def kept(world, stream_filter):
    """Return the positions that the filter keeps of some numbered data."""

    def positions(data):
        return (~stream_filter.judge(data.points, data.targets).suspicious).nonzero().flatten().tolist()

    return positions


@pytest.mark.parametrize("workers", [0, 2])
def test_trains_on_what_is_kept(world, sanitizer, kept, workers, caplog):
    data, module, callback = world.numbered(wrong=5), world.module(), sanitizer()
    loader = DataLoader(Stream(data), 16, num_workers=workers)
    caplog.set_level(logging.INFO)
    world.trainer(callback, max_epochs=2).fit(module, loader)
    assert 230 <= len(kept(data)) <= 235
    assert [sorted(itertools.chain(*epoch)) for epoch in module.epochs] == [kept(data)] * 2
    assert not callback.verdicts
    progress = callback.streams[""].progress()
    assert (progress.judged, progress.removed) == (480, 2 * (240 - len(kept(data))))
    removed = merge_removed(callback.streams[""].directory)
    assert [each.epoch for each in removed] == [1] * (len(removed) // 2) + [2] * (len(removed) // 2)
    assert len(removed) == progress.removed
    assert callback.streams[""].directory.parts[-2:] == ("sanitizer_reports", "sanitizer")
    assert f"sanitizer: the stream: 480 samples judged, {progress.removed} suspicious" in caplog.text
    assert loader.dataset.__class__ is Stream


def test_flagged_samples_are_trained_on(world, sanitizer):
    data, module, callback = world.numbered(wrong=5), world.module(), sanitizer(action="flag", dirpath=world.path / "f")
    world.trainer(callback).fit(module, DataLoader(Stream(data), 16))
    assert module.seen == set(range(240))
    assert {each.decision for each in merge_removed(world.path / "f")} == {"flagged"}


@pytest.mark.parametrize("workers", [0, 2])
def test_an_endless_stream_ends_with_max_steps(world, sanitizer, kept, workers):
    data, module, callback = world.numbered(wrong=5), world.module(), sanitizer()
    trainer = world.trainer(callback, max_steps=40, max_epochs=-1)
    trainer.fit(module, DataLoader(Stream(data, endless=True), 16, num_workers=workers))
    assert trainer.global_step == 40
    assert module.seen == set(kept(data))


def test_counters_are_logged_and_a_drift_is_one_warning(world, sanitizer):
    clean, poisoned = world.numbered(480, wrong=0, seed=1), world.numbered(960, wrong=480, seed=2)
    stream = Stream(torch.utils.data.ConcatDataset([clean, poisoned]))
    logger = CSVLogger(world.path, flush_logs_every_n_steps=1)
    callback = sanitizer(max_removed=0.9)
    trainer = world.trainer(callback, logger=logger)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        trainer.fit(world.module(), DataLoader(stream, 16))
    assert len([each for each in found if "In the stream Stream, since about judged" in str(each.message)]) == 1
    (drift,) = callback.streams[""].progress().drifts
    assert (drift.direction, 400 < drift.since < 600) == ("rose", True)
    with (Path(logger.log_dir) / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    logged = {name: [float(row[name]) for row in rows if row[name]] for name in NAMES}
    assert logged["sanitizer/stream_judged"][-1] == 1440
    assert 0.3 < logged["sanitizer/stream_removed_fraction"][-1] < 0.4
    assert logged["sanitizer/stream_drift"][0] == 0
    assert logged["sanitizer/stream_drift"][-1] == 1


NAMES = [f"sanitizer/stream_{name}" for name in ("judged", "removed_fraction", "drift")]


def test_a_stream_beside_a_map_style_data_set(world, sanitizer, kept):
    callback, indexed, streamed = sanitizer(), world.numbered(), world.numbered(wrong=5, seed=9)
    module = world.module()
    loaders = {"a": world.loader(indexed), "b": DataLoader(Stream(streamed), 16)}
    world.trainer(callback).fit(module, loaders)
    assert list(callback.verdicts) == ["['a']"]
    assert list(callback.streams) == ["['b']"]
    assert callback.streams["['b']"].progress().judged >= 200


def test_a_worker_init_function_finds_the_stream_itself(world, sanitizer):
    class Prepared(Stream):
        def __iter__(self):
            assert get_worker_info().dataset.prepared
            return super().__iter__()

    def prepare(number):
        get_worker_info().dataset.prepared = True

    loader = DataLoader(Prepared(world.numbered(wrong=5)), 16, num_workers=1, worker_init_fn=prepare)
    module = world.module()
    world.trainer(sanitizer()).fit(module, loader)
    assert len(module.seen) > 200


def test_without_a_filter_the_refusal_has_the_two_lines(world, stream_filter):
    with pytest.raises(UnsupportedDataError) as caught:
        world.trainer(world.sanitizer()).fit(world.module(), DataLoader(Stream(world.numbered()), 4))
    lines = str(caught.value).splitlines()
    assert "is iterable only" in lines[0]
    assert [line.split("  #")[0].strip() for line in lines[-2:]] == [
        "stream_filter = StreamFilter.fit(LikelihoodScorer(), trusted)",
        "Sanitizer(stream_filter=stream_filter)",
    ]


@pytest.mark.filterwarnings("ignore:In the stream Stream, since about")
def test_errors_end_the_training(world, sanitizer):
    with pytest.raises(ValueError, match="Expected samples in the stream Stream, but it ended without any"):
        world.trainer(sanitizer()).fit(world.module(), DataLoader(Stream([]), 4))
    poisoned = Stream(world.numbered(480, wrong=240))
    with pytest.raises(NothingKeptError, match="at most 10 % of the stream Stream"):
        world.trainer(sanitizer(max_removed=0.1)).fit(world.module(), DataLoader(poisoned, 4))
    with pytest.raises(TypeError, match="`stream_filter` to be a `StreamFilter`, but got"):
        world.sanitizer(stream_filter="likelihood")


def test_a_loader_that_is_replaced_is_noticed(world, sanitizer):
    callback = sanitizer()
    loaders = callback.loader_sanitizer.filter(DataLoader(Stream(world.numbered(wrong=5)), 16))
    callback.loader_sanitizer.check(loaders)
    with pytest.raises(RuntimeError, match="to read the kept samples, but got one that reads Stream"):
        callback.loader_sanitizer.check(DataLoader(Stream(world.numbered(wrong=5)), 16))
    assert isinstance(loaders.dataset, SanitizedStream)


def test_the_stream_stays_the_same_until_the_next_run(world, sanitizer):
    callback, loader = sanitizer(), DataLoader(Stream(world.numbered(wrong=5)), 16)
    first = callback.loader_sanitizer.filter(loader).dataset
    assert callback.loader_sanitizer.filter(loader).dataset is first
    callback.loader_sanitizer.start_run()
    assert callback.loader_sanitizer.filter(loader).dataset is not first


def test_a_data_module(world, stream_filter, kept):
    data, module = world.numbered(wrong=5), world.module()
    wrapped = SanitizedDataModule(DataLoader(Stream(data), 16), stream_filter=stream_filter, sample=SPEC)
    world.trainer().fit(module, datamodule=wrapped)
    assert module.seen == set(kept(data))
    assert wrapped.streams[""].progress().judged == 240
    assert wrapped.streams[""].warn


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")
@pytest.mark.parametrize("is_filtered", [True, False])
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_checkpoint_resumes_within_an_epoch(world, sanitizer, is_filtered, workers):
    """Without the batch that Lightning fetches ahead from loaders without a length, with and without a filter."""

    def fit(module, path=None):
        loader = StatefulDataLoader(Stream(world.numbered(wrong=5)), batch_size=16, num_workers=workers)
        saving = ModelCheckpoint(world.path, filename="{step}", every_n_train_steps=5, save_top_k=-1)
        callbacks = [saving, *([sanitizer()] if is_filtered else [])]
        world.trainer(*callbacks, enable_checkpointing=True).fit(module, loader, ckpt_path=path)
        return module.epochs[0], callbacks[-1]

    whole, _ = fit(world.module())
    resumed = world.module()
    resumed.epochs.append([])  # the hook at the start of an epoch is not called when resuming within one
    rest, callback = fit(resumed, str(world.path / "step=5.ckpt"))
    assert rest == whole[6:]
    if is_filtered:
        assert callback.streams[""].progress().judged == 240
