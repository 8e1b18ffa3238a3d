"""The options of a Trainer work on the filtered data."""

import math
import warnings
from itertools import chain

import pytest
import torch
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.loggers import CSVLogger


class Scheduled:
    """A module whose schedule depends on the number of steps that the Trainer estimates."""

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        self.estimated = self.trainer.estimated_stepping_batches
        return [optimizer], [torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=int(self.estimated))]


@pytest.mark.parametrize("batches", [3, 0.5])
def test_limit_train_batches(world, assert_clean, batches):
    module, sanitizer = world.module(), world.sanitizer()
    world.trainer(sanitizer, limit_train_batches=batches, max_epochs=2).fit(module, world.loader(world.numbered()))
    assert_clean(module, sanitizer.verdict, subset=True)
    kept = int(sanitizer.verdict.keep.sum())
    wanted = batches if batches == 3 else int(-(-kept // 16) * batches)
    assert [len(epoch) for epoch in module.epochs] == [wanted] * 2


@pytest.mark.filterwarnings("ignore:You requested to overfit but enabled train dataloader shuffling:UserWarning")
@pytest.mark.parametrize("shuffle", [True, False])
def test_overfit_batches(world, assert_clean, shuffle):
    module, sanitizer = world.module(), world.sanitizer()
    loader = world.loader(world.numbered(), shuffle=shuffle)
    world.trainer(sanitizer, overfit_batches=4, max_epochs=2).fit(module, loader)
    assert_clean(module, sanitizer.verdict, subset=True)
    assert module.epochs[0] == module.epochs[1]
    assert list(chain(*module.epochs[0])) == sanitizer.verdict.keep.nonzero().flatten()[:64].tolist()


def test_fast_dev_run(world, assert_clean):
    module, sanitizer = world.module(), world.sanitizer()
    world.trainer(sanitizer, fast_dev_run=2).fit(module, world.loader(world.numbered()))
    assert_clean(module, sanitizer.verdict, subset=True)
    assert len(module.epochs[0]) == 2
    assert not any(world.path.iterdir())


def test_does_not_score_without_training_batches(world, centroid_scorer):
    scorer = centroid_scorer()
    world.trainer(world.sanitizer(scorer), limit_train_batches=0).fit(world.module(), world.loader(world.numbered()))
    assert not scorer.fits


def test_accumulated_gradients(world, assert_clean):
    module, sanitizer = world.module(), world.sanitizer()
    trainer = world.trainer(sanitizer, accumulate_grad_batches=4)
    trainer.fit(module, world.loader(world.numbered()))
    assert_clean(module, sanitizer.verdict)
    assert trainer.global_step == math.ceil(math.ceil(int(sanitizer.verdict.keep.sum()) / 16) / 4)


@pytest.mark.slow
@pytest.mark.parametrize("accumulated", [1, 2])
def test_estimated_steps_are_those_of_the_filtered_data(world, assert_clean, accumulated):
    class Module(Scheduled, world.module):
        pass

    data = world.numbered(wrong=40)
    module, sanitizer = Module(), world.sanitizer()
    trainer = world.trainer(sanitizer, max_epochs=3, accumulate_grad_batches=accumulated)
    trainer.fit(module, world.loader(data))
    assert_clean(module, sanitizer.verdict)
    unfiltered = 3 * -(-15 // accumulated)
    assert module.estimated == trainer.global_step < unfiltered


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed", "64-true"])
def test_scores_do_not_depend_on_the_modules_precision(world, assert_clean, precision):
    module, sanitizer = world.module(), world.sanitizer()
    world.trainer(sanitizer, precision=precision).fit(module, world.loader(world.numbered()))
    assert_clean(module, sanitizer.verdict)
    plain = world.sanitizer()
    world.trainer(plain).fit(world.module(), world.loader(world.numbered()))
    assert torch.equal(plain.verdict.scores, sanitizer.verdict.scores)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"deterministic": True}, {"barebones": True}, {"detect_anomaly": True}])
def test_other_modes(world, assert_clean, settings):
    own = ("enable_progress_bar", "enable_model_summary", "enable_checkpointing", "logger", "log_every_n_steps")
    unset = dict.fromkeys(own) if "barebones" in settings else {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You are running in `Trainer.barebones", UserWarning)
        module, sanitizer = world.module(), world.sanitizer()
        trainer = world.trainer(sanitizer, **settings, **unset)
        trainer.fit(module, world.loader(world.numbered()))
    torch.use_deterministic_algorithms(False)
    assert_clean(module, sanitizer.verdict)


def test_learning_rate_finder_trains_on_kept_samples(world, assert_clean, centroid_scorer):
    class Tuned(world.module):
        def __init__(self):
            super().__init__()
            self.lr = 1e-3
            self.epochs.append([])

    scorer, module = centroid_scorer(), Tuned()
    sanitizer = world.sanitizer(scorer)
    finder = LearningRateFinder(num_training_steps=20, early_stop_threshold=None)
    logger = CSVLogger(world.path)
    world.trainer(finder, sanitizer, logger=logger).fit(module, world.loader(world.numbered()))
    assert len(module.epochs) > 2  # including those of the finder
    assert_clean(module, sanitizer.verdict)
    assert len(scorer.fits) == 3
    assert (world.path / "lightning_logs" / "version_0" / "sanitizer_reports" / "sanitizer" / "manifest.csv").is_file()
    assert "sanitizer/contamination" in (world.path / "lightning_logs" / "version_0" / "metrics.csv").read_text()


@pytest.mark.slow
def test_batch_size_finder_trains_on_kept_samples(world, assert_clean, centroid_scorer):
    class Sized(world.module):
        def __init__(self):
            super().__init__()
            self.batch_size = 2
            self.data = world.numbered()

        def train_dataloader(self):
            return world.loader(self.data, batch_size=self.batch_size)

    scorer, module = centroid_scorer(), Sized()
    sanitizer = world.sanitizer(scorer)
    world.trainer(BatchSizeFinder(max_trials=3, steps_per_trial=2), sanitizer).fit(module)
    assert module.batch_size == 8
    assert len(module.epochs) > 3
    assert_clean(module, sanitizer.verdict)
    assert len(scorer.fits) == 3
