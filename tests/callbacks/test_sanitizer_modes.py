"""Each mode of a Trainer, once with the callback and once with the wrapper: only kept samples are trained on."""

import math
import warnings
from itertools import chain
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.tuner import Tuner

from lightning_poison.datamodules import SanitizedDataModule


@pytest.fixture(params=["callback", "wrapper"])
def prepare(request, world, centroid_scorer):
    """Return a function that prepares a run: a Trainer, what it fits, and the sanitizer."""

    def build(data, scorer=None, **settings):
        scorer = scorer or centroid_scorer()
        if request.param == "callback":
            sanitizer = world.sanitizer(scorer)
            return SimpleNamespace(trainer=world.trainer(sanitizer, **settings), data=data, sanitizer=sanitizer)
        wrapped = SanitizedDataModule(data, scorer)
        return SimpleNamespace(trainer=world.trainer(**settings), data=wrapped, sanitizer=wrapped)

    return build


def fit(run, module):
    is_module = isinstance(run.data, pl.LightningDataModule)
    run.trainer.fit(module, **{"datamodule" if is_module else "train_dataloaders": run.data})
    return run.sanitizer.verdict


def kept_in(verdict):
    return set(verdict.keep.nonzero().flatten().tolist())


@pytest.mark.parametrize(
    ("settings", "batches"),
    [
        ({"fast_dev_run": True}, 1),
        ({"fast_dev_run": 3}, 3),
        ({"limit_train_batches": 4}, 4),
        ({"limit_train_batches": 0.5}, 6),
        ({"limit_train_batches": 1.0}, 13),
        ({"overfit_batches": 2}, 2),
        ({"overfit_batches": 0.25}, 3),
    ],
    ids=lambda value: "-".join(f"{name} {each}" for name, each in value.items()) if isinstance(value, dict) else "",
)
@pytest.mark.filterwarnings("ignore:You requested to overfit but enabled train dataloader shuffling:UserWarning")
def test_limits(prepare, world, settings, batches):
    """Of 240 samples 200 are kept, in 13 batches."""
    run, module = prepare(world.loader(world.numbered(wrong=40)), **settings), world.module()
    verdict = fit(run, module)
    assert int(verdict.keep.sum()) == 200
    assert len(module.epochs[0]) == batches
    assert module.seen <= kept_in(verdict)


@pytest.mark.parametrize("accumulated", [1, 3, 100])
def test_accumulated_gradients(prepare, world, accumulated):
    run, module = prepare(world.loader(world.numbered()), accumulate_grad_batches=accumulated), world.module()
    verdict = fit(run, module)
    assert module.seen == kept_in(verdict)
    assert run.trainer.global_step == math.ceil(math.ceil(int(verdict.keep.sum()) / 16) / accumulated)


@pytest.mark.parametrize("size", [216, 100], ids=["one batch", "two batches"])
def test_dropped_batches_that_still_fill(prepare, world, size):
    run, module = prepare(world.loader(world.numbered(), batch_size=size, drop_last=True)), world.module()
    verdict = fit(run, module)
    assert [len(batch) for batch in module.epochs[0]] == [size] * (216 // size)
    assert module.seen <= kept_in(verdict)


def warnings_of(run, module):
    """Return what is warned of, since `pytest.warns` would raise Lightning's own deprecations."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(run, module)
    return "\n".join(str(each.message) for each in caught)


@pytest.mark.parametrize("size", [240, 217])
def test_warns_if_no_batch_is_left(prepare, world, size):
    run, module = prepare(world.loader(world.numbered(), batch_size=size, drop_last=True)), world.module()
    said = warnings_of(run, module)
    assert (
        f"the 216 samples that are kept do not fill a batch of {size}, and `drop_last` drops the rest: 0 steps" in said
    )
    assert not module.epochs


def test_warns_if_many_samples_are_dropped(prepare, world):
    run = prepare(world.loader(world.numbered(), batch_size=120, drop_last=True))
    said = warnings_of(run, world.module())
    assert "of the 216 samples that are kept, `drop_last` drops 96 in each epoch" in said


class Sized(pl.LightningDataModule):
    """Serves batches of its `batch_size`."""

    def __init__(self, data, loader):
        super().__init__()
        self.batch_size, self.data, self.loader = 16, data, loader

    def train_dataloader(self):
        return self.loader(self.data, batch_size=self.batch_size)


class Tuned:
    """Records the samples of tuners as well, which call no hook at the start of an epoch."""

    def __init__(self):
        super().__init__()
        self.lr = 1e-3
        self.epochs.append([])


@pytest.mark.slow
def test_learning_rate_tuner(prepare, world, centroid_scorer):
    class Module(Tuned, world.module):
        pass

    scorer, module = centroid_scorer(), Module()
    run = prepare(Sized(world.numbered(), world.loader), scorer, logger=False)
    found = Tuner(run.trainer).lr_find(module, datamodule=run.data, num_training=30, early_stop_threshold=None)
    assert found is not None
    tuned = len(module.epochs)
    verdict = fit(run, module)
    assert len(module.epochs) > tuned
    assert module.seen == kept_in(verdict)
    assert len(scorer.fits) == 3


@pytest.mark.slow
def test_batch_size_tuner(prepare, world, centroid_scorer):
    class Module(Tuned, world.module):
        pass

    scorer, module, data = centroid_scorer(), Module(), Sized(world.numbered(), world.loader)
    run = prepare(data, scorer)
    found = Tuner(run.trainer).scale_batch_size(module, datamodule=run.data, max_trials=3, steps_per_trial=2)
    assert data.batch_size == found == 8
    verdict = fit(run, module)
    assert max(len(batch) for batch in module.epochs[-1]) == 8
    assert module.seen == kept_in(verdict)
    assert len(scorer.fits) == 3


def folds_of(data, count):
    fold = torch.arange(len(data)) // 3 % count
    return [torch.utils.data.Subset(data, (fold != each).nonzero().flatten().tolist()) for each in range(count)]


@pytest.mark.slow
def test_cross_validation_with_one_list_of_callbacks(world, centroid_scorer):
    data, scorer = world.numbered(count=300, wrong=30), centroid_scorer()
    sanitizer = world.sanitizer(scorer, dirpath=world.path / "records")
    for number, fold in enumerate(folds_of(data, 3), start=1):
        module = world.module()
        world.trainer(sanitizer).fit(module, world.loader(fold))
        verdict = sanitizer.verdict
        assert torch.equal(~verdict.keep, data.is_wrong[fold.indices])
        assert module.seen == {fold.indices[each] for each in kept_in(verdict)}
        assert len(scorer.fits) == 3 * number


@pytest.mark.slow
@pytest.mark.parametrize("tuned", [False, True], ids=["alone", "with a tuner"])
def test_cross_validation_with_one_data_module_for_all_folds(world, centroid_scorer, tuned):
    class Folds(pl.LightningDataModule):
        number = 0

        def train_dataloader(self):
            return world.loader(folds[self.number])

    class Module(Tuned, world.module):
        pass

    data = world.numbered(count=300, wrong=30)
    folds, inner = folds_of(data, 3), Folds()
    wrapped = SanitizedDataModule(inner, centroid_scorer())
    for number, fold in enumerate(folds):
        inner.number = number
        module, trainer = Module(), world.trainer()
        if tuned:
            Tuner(trainer).lr_find(module, datamodule=wrapped, num_training=5, early_stop_threshold=None)
        trainer.fit(module, datamodule=wrapped)
        assert torch.equal(~wrapped.verdict.keep, data.is_wrong[fold.indices])
        assert module.seen == {fold.indices[each] for each in kept_in(wrapped.verdict)}


@pytest.mark.slow
def test_data_that_grow_are_judged_anew_within_a_fit(prepare, world, centroid_scorer, caplog):
    class Growing(pl.LightningDataModule):
        requests = 0

        def train_dataloader(self):
            self.requests += 1
            return world.loader(torch.utils.data.Subset(data, range(100 * self.requests)))

    data, scorer, module = world.numbered(count=300, wrong=30), centroid_scorer(), world.module()
    run = prepare(Growing(), scorer, max_epochs=3, reload_dataloaders_every_n_epochs=1)
    verdict = fit(run, module)
    assert len(verdict) == 300
    assert torch.equal(~verdict.keep, data.is_wrong)
    for number, epoch in enumerate(module.epochs, start=1):
        assert set(chain(*epoch)) == {each for each in range(100 * number) if not data.is_wrong[each]}
    assert len(scorer.fits) == 9
    said = [each.getMessage() for each in caplog.records if "judged again" in each.getMessage()]
    assert said == ["sanitizer: the data have changed and were judged again"] * 2


@pytest.mark.slow
def test_a_data_set_object_that_changes_is_judged_anew_within_a_fit(world, centroid_scorer, caplog):
    class Resampled(type(world.numbered())):
        count = 120

        def __len__(self):
            return self.count

    class Growing(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            data.count += 60

    data, scorer, module = Resampled(), centroid_scorer(), world.module()
    sanitizer = world.sanitizer(scorer)
    trainer = world.trainer(sanitizer, Growing(), max_epochs=3, reload_dataloaders_every_n_epochs=1)
    trainer.fit(module, world.loader(data, shuffle=False))
    for count, epoch in zip((120, 180, 240), module.epochs, strict=True):
        assert set(chain(*epoch)) == {each for each in range(count) if not data.is_wrong[each]}
    assert len(scorer.fits) == 9
    assert len(sanitizer.verdict) == 240
    said = [each.getMessage() for each in caplog.records if "judged again" in each.getMessage()]
    assert said == ["sanitizer: the data have changed and were judged again"] * 2
