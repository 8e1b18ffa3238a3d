"""Nothing but the data is changed: random states are the user's own, and everything is put back."""

import pickle
import random

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback

from lightning_poison._lightning.data_source import DataSource


def use_all_random_states():
    return torch.rand(1).item() + np.random.rand() + random.random()  # noqa: NPY002, S311


@pytest.fixture
def wasteful_scorer(centroid_scorer):
    class Wasteful(centroid_scorer):
        """Consumes random numbers of all kinds."""

        def fit(self, trusted, *, runtime=None, generator=None):
            use_all_random_states()
            return super().fit(trusted)

        def score_labels(self, inputs):
            use_all_random_states()
            return super().score_labels(inputs)

    return Wasteful


@pytest.fixture
def wasteful_data(world):
    class Wasteful(world.numbered):
        def __getitem__(self, index):
            use_all_random_states()
            point, label, ident = super().__getitem__(index)
            return point + 0.01 * torch.randn(4), label, ident

    return Wasteful


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("how", ["shuffled", "weighted", "foreign"])
def test_a_sanitizer_that_removes_nothing_changes_nothing(world, wasteful_scorer, wasteful_data, workers, how):
    class Module(world.module):
        def training_step(self, batch, batch_idx):
            random_numbers.append(use_all_random_states())
            return super().training_step(batch, batch_idx)

    class Foreign:
        def __iter__(self):
            order = torch.randperm(240).tolist()
            return iter([order[start : start + 16] for start in range(0, 240, 16)])

        def __len__(self):
            return 15

    runs = []
    for callbacks in ([], [world.sanitizer(wasteful_scorer())]):
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        torch.manual_seed(1)
        random_numbers = []
        data, module = wasteful_data(wrong=0), Module()
        kind = {
            "shuffled": {},
            "weighted": {"shuffle": None, "sampler": torch.utils.data.WeightedRandomSampler(torch.ones(240), 240)},
            "foreign": {"shuffle": None, "batch_size": 1, "batch_sampler": Foreign()},
        }[how]
        world.trainer(*callbacks, max_epochs=2).fit(module, world.loader(data, num_workers=workers, **kind))
        runs.append((module.epochs, random_numbers, module.layer.weight.detach().clone()))
    assert callbacks[0].verdict.keep.all()
    assert runs[0][0] == runs[1][0]
    assert runs[0][1] == runs[1][1]
    assert torch.equal(runs[0][2], runs[1][2])


class Noting(Callback):
    """Notes the Trainer's data source before and during the training."""

    def setup(self, trainer, pl_module, stage):
        self.during = trainer.fit_loop._data_source


def assert_put_back(trainer):
    assert not isinstance(trainer.fit_loop._data_source, DataSource)


@pytest.mark.parametrize("order", [1, -1])
def test_everything_is_put_back_after_a_run(world, order):
    sanitizers = [world.sanitizer(name="one"), world.sanitizer(name="two")][::order]
    noting, data = Noting(), world.numbered()
    trainer = world.trainer(*sanitizers, noting)
    own = trainer.fit_loop._data_source
    trainer.fit(world.module(), world.loader(data))
    assert isinstance(noting.during, DataSource)
    assert trainer.fit_loop._data_source is own


@pytest.mark.parametrize(
    "place", ["setup", "configure_optimizers", "on_train_start", "training_step", "validation_step"]
)
def test_everything_is_put_back_after_an_exception_in_a_hook(world, place):
    class Failing(world.validated_module):
        pass

    def fail(*args, **kwargs):
        raise OSError("no more")

    setattr(Failing, place, fail)
    data = world.numbered()
    trainer = world.trainer(world.sanitizer(name="one"), world.sanitizer(name="two"))
    with pytest.raises(OSError, match="no more"):
        trainer.fit(Failing(), world.loader(data), world.loader(data, shuffle=False))
    assert_put_back(trainer)


def test_everything_is_put_back_after_an_exception_in_scoring(world, assert_clean, centroid_scorer):
    class Failing(centroid_scorer):
        fails = True

        def score_labels(self, inputs):
            if type(self).fails:
                raise FloatingPointError("scores went wrong")
            return super().score_labels(inputs)

    sanitizer, loader = world.sanitizer(Failing()), world.loader(world.numbered())
    trainer, module = world.trainer(world.sanitizer(name="other"), sanitizer), world.module()
    states = random.getstate(), torch.get_rng_state(), torch.get_num_threads()
    with pytest.raises(FloatingPointError, match="scores went wrong"):
        trainer.fit(module, loader)
    assert_put_back(trainer)
    assert not module.epochs
    assert states[0] == random.getstate()
    assert torch.equal(states[1], torch.get_rng_state())
    assert states[2] == torch.get_num_threads()
    with pytest.raises(RuntimeError, match="there are 0"):
        _ = sanitizer.verdict

    Failing.fails = False
    trainer.fit(module, loader)
    assert sanitizer.verdict.keep.sum() == len(module.seen)


def test_everything_is_put_back_when_the_user_stops_it(world):
    class Stopped(world.module):
        def training_step(self, batch, batch_idx):
            raise KeyboardInterrupt

    trainer = world.trainer(world.sanitizer())
    with pytest.raises(SystemExit):
        trainer.fit(Stopped(), world.loader(world.numbered()))
    assert_put_back(trainer)


def test_the_module_is_not_touched(world):
    class Watched(world.module):
        def forward(self, *args):
            raise AssertionError("the module's forward is no business of a sanitizer")

    watched, plain, loader = Watched(), world.module(), world.loader(world.numbered())
    world.trainer(world.sanitizer()).fit(watched, loader)
    world.trainer().fit(plain, loader)
    assert set(vars(watched)) == set(vars(plain))


def test_it_pickles_before_a_fit_and_after(world):
    sanitizer = world.sanitizer()
    sanitizer.gate.settings.scorer = None  # the stand-in of these tests is found by no import
    assert pickle.loads(pickle.dumps(sanitizer)).state_key == sanitizer.state_key  # noqa: S301
    sanitizer = world.sanitizer()
    world.trainer(sanitizer).fit(world.module(), world.loader(world.numbered()))
    sanitizer.gate.settings.scorer = None
    sanitizer.gate.start()
    assert torch.equal(pickle.loads(pickle.dumps(sanitizer)).verdict.keep, sanitizer.verdict.keep)  # noqa: S301
