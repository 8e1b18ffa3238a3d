"""Clean and robust metrics in training, validation and test."""

import math

import pytest
import pytorch_lightning
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from lightning_poison.adversarial.adversaries import PGD
from lightning_poison.callbacks.adversarial_training import AdversarialTraining

STRONGER = PGD(0.3, 0.2, steps=3, random_start=False)
NAMES = {"clean_loss", "clean_accuracy", "robust_loss", "robust_accuracy"}


def metrics_of(running):
    return {name: float(value) for name, value in running.callback_metrics.items()}


def measured_by_hand(kit, net, batches, adversary=STRONGER):
    """Return the mean clean and robust losses and accuracies of the batches, by name without prefix."""
    found = {name: [] for name in NAMES}
    for images, labels in batches:
        changed = kit.attacked_by_hand(net, images, labels, adversary)
        net.eval()
        for kind, inputs in (("clean", images), ("robust", changed)):
            logits = net(inputs).detach()
            found[f"{kind}_loss"].append(float(F.cross_entropy(logits, labels)))
            found[f"{kind}_accuracy"].append(float((logits.argmax(1) == labels).double().mean()))
        net.train()
    return {name: pytest.approx(sum(values) / len(values), rel=1e-4) for name, values in found.items()}


def batches_of(kit, count=None):
    images, labels = kit.images_and_labels()
    return list(zip(images.split(kit.BATCH), labels.split(kit.BATCH), strict=True))[:count]


class TestInTraining:
    def test_metrics_are_those_of_the_weights_before_the_step(self, kit):
        model = kit.Plain()
        running = kit.trainer(AdversarialTraining(kit.PLAIN), log_every_n_steps=100)
        running.fit(model, kit.loader())
        expected = measured_by_hand(kit, kit.make_net(), batches_of(kit, 1), kit.PLAIN)
        found = metrics_of(running)
        assert set(found) == {f"train/{name}" for name in NAMES}
        assert {name.removeprefix("train/"): value for name, value in found.items()} == expected

    @pytest.mark.slow
    @pytest.mark.parametrize("module", ["Plain", "Manual"])
    def test_metrics_do_not_affect_training(self, kit, module):
        runs = []
        for every in (1, 100, 0):
            model = getattr(kit, module)()
            kit.trainer(AdversarialTraining(PGD(0.1, steps=2)), log_every_n_steps=every).fit(model, kit.loader())
            runs.append(model)
        kit.assert_same(runs[0].net, runs[1].net, rtol=0, atol=0)
        kit.assert_same(runs[0].net, runs[2].net, rtol=0, atol=0)

    def test_no_metrics_without_logging(self, kit):
        running = kit.trainer(AdversarialTraining(kit.PLAIN), log_every_n_steps=0)
        running.fit(kit.Plain(), kit.loader())
        assert not running.callback_metrics


@pytest.mark.parametrize("inference_mode", [True, False])
class TestValidationAndTest:
    @pytest.mark.slow
    def test_without_training(self, kit, inference_mode):
        model = kit.Evaluated()
        running = kit.trainer(AdversarialTraining(kit.PLAIN, validation=STRONGER), inference_mode=inference_mode)
        expected = measured_by_hand(kit, model.net, batches_of(kit))
        for task, prefix in (("validate", "val"), ("test", "test")):
            (found,) = getattr(running, task)(model, kit.loader(), verbose=False)
            assert {name: found[f"{prefix}/{name}"] for name in NAMES} == expected
            assert found[f"{prefix}/clean_loss"] == pytest.approx(found["val_loss"])
        kit.assert_restored(model)

    def test_during_training(self, kit, inference_mode):
        model = kit.Evaluated()
        callback = AdversarialTraining(kit.PLAIN, validation=STRONGER, validation_batches=2)
        running = kit.trainer(callback, inference_mode=inference_mode)
        running.fit(model, kit.loader(), kit.loader())
        found = metrics_of(running)
        expected = measured_by_hand(kit, model.net, batches_of(kit, 2))
        assert {name: found[f"val/{name}"] for name in NAMES} == expected
        assert set(found) == {"val_loss", *(f"{prefix}/{name}" for prefix in ("val", "train") for name in NAMES)}

    def test_several_loaders_have_separate_metrics(self, kit, inference_mode):
        model, images = kit.Evaluated(), torch.full((24, 1, 6, 6), 0.5)
        second = DataLoader(TensorDataset(images, torch.zeros(24).long()), batch_size=kit.BATCH)
        callback = AdversarialTraining(kit.PLAIN, validation=STRONGER, validation_batches=1)
        running = kit.trainer(callback, inference_mode=inference_mode)
        found = running.validate(model, [kit.loader(), second], verbose=False)
        for place, batch in enumerate((batches_of(kit, 1), [next(iter(second))])):
            expected = measured_by_hand(kit, model.net, batch)
            assert {name: found[place][f"val/{name}/dataloader_idx_{place}"] for name in NAMES} == expected

    @pytest.mark.slow
    def test_validation_does_not_affect_training(self, kit, inference_mode):
        runs = []
        for options in ({}, {"validation": PGD(0.2, steps=2)}):
            model = kit.Evaluated()
            callback = AdversarialTraining(PGD(0.1, steps=2), **options)
            kit.trainer(callback, inference_mode=inference_mode, val_check_interval=2).fit(
                model, kit.loader(), kit.loader()
            )
            runs.append(model)
        kit.assert_same(runs[0].net, runs[1].net, rtol=0, atol=0)

    @pytest.mark.slow
    def test_random_start_is_the_same_in_each_validation(self, kit, inference_mode):
        callback = AdversarialTraining(kit.PLAIN, validation=PGD(0.2, steps=1))
        running = kit.trainer(callback, inference_mode=inference_mode)
        model = kit.Evaluated()
        first, second = (running.validate(model, kit.loader(), verbose=False) for _ in range(2))
        assert first == second

    @pytest.mark.slow
    @pytest.mark.parametrize(("precision", "rounding"), [("bf16-mixed", 1e-6), ("bf16-true", 5e-3)])
    def test_in_half_precision(self, kit, inference_mode, precision, rounding):
        callback = AdversarialTraining(kit.PLAIN, validation=STRONGER)
        running = kit.trainer(callback, inference_mode=inference_mode, precision=precision)
        (found,) = running.validate(kit.Evaluated(), kit.loader(), verbose=False)
        assert found["val/robust_loss"] > found["val/clean_loss"] + 0.05
        assert found["val/clean_loss"] == pytest.approx(found["val_loss"], abs=rounding)

    def test_no_metrics_without_a_validation_adversary(self, kit, inference_mode):
        running = kit.trainer(AdversarialTraining(kit.PLAIN), inference_mode=inference_mode)
        assert running.validate(kit.Evaluated(), kit.loader(), verbose=False) == [
            {"val_loss": pytest.approx(1.1, abs=0.1)}
        ]


def test_other_namespace(kit):
    class Evaluated(kit.OtherPlain):
        def validation_step(self, batch, batch_idx):
            pass

    running = kit.trainer(AdversarialTraining(kit.PLAIN, validation=STRONGER), namespace=pytorch_lightning)
    model = Evaluated()
    (found,) = running.validate(model, kit.loader(), verbose=False)
    assert {name: found[f"val/{name}"] for name in NAMES} == measured_by_hand(kit, model.net, batches_of(kit))


class TestDiverged:
    """NaN is logged without stopping validation; other callbacks can stop it."""

    def diverged(self, model):
        model.net[5].weight.data.fill_(torch.nan)
        return model

    def test_metrics_are_nan_and_no_sample_is_correct(self, kit):
        running = kit.trainer(AdversarialTraining(kit.PLAIN, validation=STRONGER))
        (found,) = running.validate(self.diverged(kit.Evaluated()), kit.loader(), verbose=False)
        assert all(math.isnan(found[f"val/{name}"]) for name in ("clean_loss", "robust_loss", "robust_accuracy"))
        assert found["val/clean_accuracy"] == 0

    def test_callbacks_can_monitor_the_metrics(self, kit, tmp_path):
        class Diverging(kit.Evaluated):
            def on_validation_start(self):
                if self.trainer.current_epoch == 1 and not self.trainer.sanity_checking:
                    self.net[5].weight.data.fill_(torch.nan)

        stopping = EarlyStopping("val/robust_loss", check_finite=True)
        best = ModelCheckpoint(tmp_path, monitor="val/robust_accuracy", mode="max", filename="{epoch}")
        callback = AdversarialTraining(kit.PLAIN, validation=STRONGER)
        running = kit.trainer(callback, stopping, best, epochs=5, enable_checkpointing=True)
        running.fit(Diverging(), kit.loader(), kit.loader())
        assert running.current_epoch == 2
        assert stopping.stopped_epoch == 1
        assert [each.name for each in tmp_path.iterdir()] == ["epoch=0.ckpt"]

    def test_training_refuses_gradients_that_are_not_finite(self, kit):
        model = self.diverged(kit.Plain())
        with pytest.raises(FloatingPointError, match="finite gradient of the loss, but got NaN or infinity"):
            kit.trainer(AdversarialTraining(kit.PLAIN)).fit(model, kit.loader())
        kit.assert_restored(model)


def test_refuses_a_tensor_stored_in_inference_mode(kit):
    class Keeping(kit.Evaluated):
        kept = None

        def forward(self, images):
            if self.kept is None:
                self.kept = torch.ones(1)
            return super().forward(images * self.kept)

    for inference_mode in (True, False):
        running = kit.trainer(AdversarialTraining(kit.PLAIN, validation=STRONGER), inference_mode=inference_mode)
        if inference_mode:
            with pytest.raises(RuntimeError, match=r"created in inference mode.\nWrite `Trainer\(inf"):
                running.validate(Keeping(), kit.loader(), verbose=False)
        else:
            running.validate(Keeping(), kit.loader(), verbose=False)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((torch.full((8, 1, 6, 6), 128, dtype=torch.uint8), torch.zeros(8).long()), "floating-point batch"),
        ((torch.full((8, 1, 6, 6), 2.0), torch.zeros(8).long()), r"in \[0, 1\], the pixel range"),
        ((torch.full((8, 1, 6, 6), 0.5),), "one integer label"),
    ],
)
def test_refuses_invalid_batches(kit, batch, message):
    class Silent(kit.Plain):
        def validation_step(self, batch, batch_idx):
            pass

    running = kit.trainer(AdversarialTraining(kit.PLAIN, validation=STRONGER))
    with pytest.raises(ValueError, match=message):
        running.validate(Silent(), DataLoader([batch], batch_size=None), verbose=False)
