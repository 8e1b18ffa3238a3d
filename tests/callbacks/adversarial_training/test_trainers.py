"""Tuners, resuming, copies and errors of a Trainer with adversarial training; the module is always restored."""

import pickle

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import BatchSizeFinder, Callback, LearningRateFinder
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from lightning_poison.adversarial.adversaries import FGSM, PGD
from lightning_poison.adversarial.trades import TRADES
from lightning_poison.callbacks.adversarial_training import AdversarialTraining


@pytest.mark.slow
def test_random_start_depends_on_seed_epoch_and_batch(kit):
    runs = []
    for seed in (0, 0, 1):
        model = kit.Plain()
        adversary = PGD(0.1, 1e-6, steps=1)  # the result is the start
        kit.trainer(AdversarialTraining(adversary, seed=seed), epochs=2).fit(model, kit.loader())
        images = kit.images_and_labels()[0].split(kit.BATCH) * 2
        runs.append([seen - image for seen, image in zip(model.seen, images, strict=True)])
    torch.testing.assert_close(runs[0], runs[1], atol=0, rtol=0)
    starts = [*runs[0], *runs[2]]
    for place, start in enumerate(starts):
        assert 0.09 < float(start.abs().max()) <= 0.1 + 1e-5
        assert all(float((start - other).abs().mean()) > 0.01 for other in starts[place + 1 :])


class TestWarmUp:
    def away(self, model, kit):
        images = kit.images_and_labels()[0].split(kit.BATCH) * 2
        return [float((seen - image).abs().max()) for seen, image in zip(model.seen, images, strict=True)]

    def test_radius_grows_with_the_steps(self, kit):
        model = kit.Plain()
        kit.trainer(AdversarialTraining(kit.PLAIN, warm_up_epochs=1.5), epochs=2).fit(model, kit.loader())
        assert self.away(model, kit) == pytest.approx([0.1 * min(1, (step + 1) / 9) for step in range(12)], abs=1e-5)

    def test_radius_grows_with_the_epochs_without_a_length(self, kit):
        class Stream(IterableDataset):
            def __iter__(self):
                return zip(*kit.images_and_labels(), strict=True)

        model = kit.Plain()
        kit.trainer(AdversarialTraining(kit.PLAIN, warm_up_epochs=2), epochs=2).fit(model, kit.loader(Stream()))
        assert self.away(model, kit) == pytest.approx([0.05] * 6 + [0.1] * 6, abs=1e-5)


class TestTuning:
    """Lightning's finders train in an earlier hook; they must train with the attack."""

    def test_learning_rate_finder(self, kit, tmp_path):
        class Rated(kit.Plain):
            lr = 0.1

            def configure_optimizers(self):
                return torch.optim.SGD(self.parameters(), lr=self.lr)

        class Finder(LearningRateFinder):
            def lr_find(self, trainer, pl_module):
                super().lr_find(trainer, pl_module)
                pl_module.searched, pl_module.seen = pl_module.seen, []

        finder = Finder(num_training_steps=4, min_lr=1e-3, max_lr=1e-2, update_attr=False)
        model = Rated()
        kit.trainer(finder, AdversarialTraining(kit.PLAIN), default_root_dir=tmp_path).fit(model, kit.loader())
        images = kit.images_and_labels()[0].split(kit.BATCH)
        away = [float((seen - image).abs().max()) for seen, image in zip(model.searched, images, strict=False)]
        assert away == pytest.approx([0.1] * 4, abs=1e-5)
        kit.assert_same(model.net, kit.by_hand()[0])
        kit.assert_restored(model)

    @pytest.mark.slow
    def test_batch_size_finder(self, kit, tmp_path):
        class Data(pl.LightningDataModule):
            batch_size = 4

            def train_dataloader(self):
                return DataLoader(TensorDataset(*kit.images_and_labels()), batch_size=self.batch_size)

        model, data = kit.Plain(), Data()
        finder = BatchSizeFinder(init_val=4, max_trials=2, steps_per_trial=2)
        kit.trainer(finder, AdversarialTraining(kit.PLAIN), default_root_dir=tmp_path).fit(model, data)
        images = kit.images_and_labels()[0]
        assert data.batch_size == 8
        assert {len(seen) for seen in model.seen[:4]} == {4, 8}
        assert float((model.seen[0] - images[:4]).abs().max()) == pytest.approx(0.1, abs=1e-5)
        trained = model.seen[-kit.STEPS :]
        torch.testing.assert_close(trained, kit.by_hand()[1])
        kit.assert_same(model.net, kit.by_hand()[0])


class TestOptions:
    def test_overfit_batches(self, kit):
        model = kit.Plain()
        kit.trainer(AdversarialTraining(kit.PLAIN), overfit_batches=2, epochs=2).fit(model, kit.loader())
        images = kit.images_and_labels()[0].split(kit.BATCH)[:2] * 2
        away = [float((seen - image).abs().max()) for seen, image in zip(model.seen, images, strict=True)]
        assert away == pytest.approx([0.1] * 4, abs=1e-5)

    @pytest.mark.parametrize("options", [{"fast_dev_run": 2}, {"limit_train_batches": 2}, {"max_steps": 2}])
    def test_limited_steps(self, kit, options):
        model = kit.Plain()
        kit.trainer(AdversarialTraining(kit.PLAIN, warm_up_epochs=1), **options).fit(model, kit.loader())
        assert len(model.seen) == 2
        kit.assert_restored(model)

    @pytest.mark.filterwarnings("ignore:.*barebones")
    def test_barebones(self, kit):
        model = kit.Plain()
        running = pl.Trainer(
            barebones=True, accelerator="cpu", max_epochs=1, callbacks=[AdversarialTraining(kit.PLAIN)]
        )
        running.fit(model, kit.loader())
        kit.assert_same(model.net, kit.by_hand()[0])

    def test_gradient_clipping(self, kit):
        runs = []
        for options in ({}, {"gradient_clip_val": 1e-3}):
            model = kit.Plain()
            kit.trainer(AdversarialTraining(kit.PLAIN), **options).fit(model, kit.loader())
            runs.append(model.net)
        start = kit.make_net()[0].weight.detach()
        away = [float((net[0].weight.detach() - start).norm()) for net in runs]
        assert away[1] < 0.1 * away[0]


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")
class TestResuming:
    """A resumed run continues like an uninterrupted one: random numbers depend on the position in training."""

    class Saving(Callback):
        def __init__(self, path, step):
            self.path, self.step = path, step

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == self.step and not trainer.is_last_batch:
                trainer.save_checkpoint(self.path)

        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.global_step == self.step:
                trainer.save_checkpoint(self.path)

    def resumable(self, kit):
        """Return a loader that resumes within an epoch; its shuffling is not tested here."""
        return StatefulDataLoader(TensorDataset(*kit.images_and_labels()), batch_size=kit.BATCH)

    @pytest.mark.slow
    @pytest.mark.parametrize("step", [2, 6, 8], ids=["first epoch", "between epochs", "second epoch"])
    @pytest.mark.parametrize(
        ("adversary", "recipe"), [(PGD(0.1, steps=2), None), (FGSM(0.1), None), (PGD(0.1, steps=2), TRADES())]
    )
    def test_weights_equal_those_of_an_uninterrupted_run(self, kit, tmp_path, step, adversary, recipe):
        def fit(*callbacks, **options):
            model = kit.Plain()
            callback = AdversarialTraining(adversary, recipe=recipe, warm_up_epochs=1.5)
            kit.trainer(callback, *callbacks, epochs=3).fit(model, self.resumable(kit), **options)
            return model

        whole = fit(self.Saving(tmp_path / "middle.ckpt", step))
        resumed = fit(ckpt_path=tmp_path / "middle.ckpt")
        torch.testing.assert_close(resumed.seen, whole.seen[step:], rtol=0, atol=0)
        kit.assert_same(resumed.net, whole.net, rtol=0, atol=0)

    def test_guard_probes_at_the_end_of_epochs_only(self, kit, tmp_path, monkeypatch):
        """Within an epoch it would decide differently from the uninterrupted run."""
        from lightning_poison.adversarial.collapse_guard import CollapseGuard

        probed = []

        def probe(_, batches):
            probed.append((batches[-1].epoch, batches[-1].index))
            return torch.tensor([10, 10])

        monkeypatch.setattr(CollapseGuard, "probe", probe)
        saving = self.Saving(tmp_path / "middle.ckpt", 8)
        kit.trainer(AdversarialTraining(FGSM(0.1)), saving, epochs=3).fit(kit.Plain(), self.resumable(kit))
        assert probed == [(0, 5), (1, 5), (2, 5)]
        kit.trainer(AdversarialTraining(FGSM(0.1)), epochs=3).fit(
            kit.Plain(), self.resumable(kit), ckpt_path=tmp_path / "middle.ckpt"
        )
        assert probed == [(0, 5), (1, 5), (2, 5), (1, 5), (2, 5)]


class TestRestoration:
    @pytest.mark.parametrize("place", ["forward", "step", "hook", "interrupt"])
    def test_restores_after_an_error(self, kit, place):
        error = KeyboardInterrupt if place == "interrupt" else ArithmeticError

        class Failing(kit.Plain):
            steps = 0

            def forward(self, images):
                if place == "forward" and self.steps == 2:
                    raise error("stop")
                return super().forward(images)

            def training_step(self, batch, batch_idx):
                if place in ("step", "interrupt") and batch_idx == 2:
                    raise error("stop")
                self.steps += 1
                return super().training_step(batch, batch_idx)

            def on_before_optimizer_step(self, optimizer):
                if place == "hook" and self.steps == 2:
                    raise error("stop")

        model = Failing()
        with pytest.raises(SystemExit if place == "interrupt" else error):
            kit.trainer(AdversarialTraining(kit.PLAIN)).fit(model, kit.loader())
        kit.assert_restored(model)

    def test_can_be_pickled_before_and_after_training(self, kit):
        callback = AdversarialTraining(kit.PLAIN)
        pickle.loads(pickle.dumps(callback))  # noqa: S301 (our own)
        kit.trainer(callback).fit(kit.Plain(), kit.loader())
        pickle.loads(pickle.dumps(callback))  # noqa: S301 (our own)

    def test_two_in_one_trainer_are_applied_in_order(self, kit):
        model = kit.Plain()
        callbacks = [AdversarialTraining(kit.PLAIN, name=name) for name in ("first", "second")]
        kit.trainer(*callbacks).fit(model, kit.loader())
        away = (model.seen[0] - kit.images_and_labels()[0][: kit.BATCH]).abs()
        assert 0.1 < float(away.max()) <= 0.2 + 1e-6
        kit.assert_restored(model)
