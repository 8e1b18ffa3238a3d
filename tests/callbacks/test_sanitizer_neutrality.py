"""Only the data are changed: random states are unaffected, and everything is restored."""

import pickle
import random

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback

from lightning_poison._lightning.data_source import DataSource
from lightning_poison.errors import PluginError


def use_all_random_states():
    return torch.rand(1).item() + np.random.rand() + random.random()  # noqa: NPY002, S311


@pytest.fixture
def drawing_scorer(centroid_scorer):
    class DrawingScorer(centroid_scorer):
        """Draws from all random states."""

        def fit(self, trusted, *, runtime=None, generator=None):
            use_all_random_states()
            return super().fit(trusted)

        def score_labels(self, inputs):
            use_all_random_states()
            return super().score_labels(inputs)

    return DrawingScorer


@pytest.fixture
def drawing_data(world):
    class DrawingData(world.numbered):
        def __getitem__(self, index):
            use_all_random_states()
            point, label, ident = super().__getitem__(index)
            return point + 0.01 * torch.randn(4), label, ident

    return DrawingData


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("how", ["shuffled", "weighted", "custom"])
def test_training_is_unchanged_if_nothing_is_removed(world, drawing_scorer, drawing_data, workers, how):
    class Module(world.module):
        def training_step(self, batch, batch_idx):
            random_numbers.append(use_all_random_states())
            return super().training_step(batch, batch_idx)

    class CustomBatches:
        def __iter__(self):
            order = torch.randperm(240).tolist()
            return iter([order[start : start + 16] for start in range(0, 240, 16)])

        def __len__(self):
            return 15

    runs = []
    for callbacks in ([], [world.sanitizer(drawing_scorer())]):
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        torch.manual_seed(1)
        random_numbers = []
        data, module = drawing_data(wrong=0), Module()
        kind = {
            "shuffled": {},
            "weighted": {"shuffle": None, "sampler": torch.utils.data.WeightedRandomSampler(torch.ones(240), 240)},
            "custom": {"shuffle": None, "batch_size": 1, "batch_sampler": CustomBatches()},
        }[how]
        world.trainer(*callbacks, max_epochs=2).fit(module, world.loader(data, num_workers=workers, **kind))
        runs.append((module.epochs, random_numbers, module.layer.weight.detach().clone()))
    assert callbacks[0].verdict.keep.all()
    assert runs[0][0] == runs[1][0]
    assert runs[0][1] == runs[1][1]
    assert torch.equal(runs[0][2], runs[1][2])


class SourceRecorder(Callback):
    """Records the Trainer's data source during training."""

    def setup(self, trainer, pl_module, stage):
        self.during = trainer.fit_loop._data_source


def assert_restored(trainer):
    assert not isinstance(trainer.fit_loop._data_source, DataSource)


@pytest.mark.slow
@pytest.mark.parametrize("order", [1, -1])
def test_restores_everything_after_a_run(world, order):
    sanitizers = [world.sanitizer(name="one"), world.sanitizer(name="two")][::order]
    recorder, data = SourceRecorder(), world.numbered()
    trainer = world.trainer(*sanitizers, recorder)
    original = trainer.fit_loop._data_source
    trainer.fit(world.module(), world.loader(data))
    assert isinstance(recorder.during, DataSource)
    assert trainer.fit_loop._data_source is original


@pytest.mark.slow
@pytest.mark.parametrize(
    "place", ["setup", "configure_optimizers", "on_train_start", "training_step", "validation_step"]
)
def test_restores_everything_after_an_exception_in_a_hook(world, place):
    class Failing(world.validated_module):
        pass

    def fail(*args, **kwargs):
        raise OSError("no more")

    setattr(Failing, place, fail)
    data = world.numbered()
    trainer = world.trainer(world.sanitizer(name="one"), world.sanitizer(name="two"))
    with pytest.raises(OSError, match="no more"):
        trainer.fit(Failing(), world.loader(data), world.loader(data, shuffle=False))
    assert_restored(trainer)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.slow
def test_restores_everything_after_an_exception_in_scoring(world, assert_clean, centroid_scorer):
    class Failing(centroid_scorer):
        fails = True

        def score_labels(self, inputs):
            if type(self).fails:
                raise FloatingPointError("scores went wrong")
            return super().score_labels(inputs)

    sanitizer, loader = world.sanitizer(Failing()), world.loader(world.numbered())
    trainer, module = world.trainer(world.sanitizer(name="other"), sanitizer), world.module()
    states = random.getstate(), torch.get_rng_state(), torch.get_num_threads()
    with pytest.raises(PluginError, match="scores went wrong"):
        trainer.fit(module, loader)
    assert_restored(trainer)
    assert not module.epochs
    assert states[0] == random.getstate()
    assert torch.equal(states[1], torch.get_rng_state())
    assert states[2] == torch.get_num_threads()
    with pytest.raises(RuntimeError, match="there are 0 verdicts"):
        _ = sanitizer.verdict

    Failing.fails = False
    trainer.fit(module, loader)
    assert sanitizer.verdict.keep.sum() == len(module.seen)


def test_restores_everything_after_an_interrupt(world):
    class Stopped(world.module):
        def training_step(self, batch, batch_idx):
            raise KeyboardInterrupt

    trainer = world.trainer(world.sanitizer())
    with pytest.raises(SystemExit):
        trainer.fit(Stopped(), world.loader(world.numbered()))
    assert_restored(trainer)


@pytest.mark.slow
def test_module_is_unchanged(world):
    class Watched(world.module):
        def forward(self, *args):
            raise AssertionError("a sanitizer must not run the module")

    watched, plain, loader = Watched(), world.module(), world.loader(world.numbered())
    world.trainer(world.sanitizer()).fit(watched, loader)
    world.trainer().fit(plain, loader)
    assert set(vars(watched)) == set(vars(plain))


def drop_scorer(sanitizer):
    """Remove the scorer of these tests, which cannot be imported and so not be pickled."""
    object.__setattr__(sanitizer.loader_sanitizer.settings, "scorer", None)


@pytest.mark.slow
def test_can_be_pickled_before_and_after_a_fit(world):
    sanitizer = world.sanitizer()
    drop_scorer(sanitizer)
    assert pickle.loads(pickle.dumps(sanitizer)).state_key == sanitizer.state_key  # noqa: S301
    sanitizer = world.sanitizer()
    world.trainer(sanitizer).fit(world.module(), world.loader(world.numbered()))
    drop_scorer(sanitizer)
    sanitizer.loader_sanitizer.start_run()
    assert torch.equal(pickle.loads(pickle.dumps(sanitizer)).verdict.keep, sanitizer.verdict.keep)  # noqa: S301
