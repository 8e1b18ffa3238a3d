"""Any structure of batches, source of logits and loss per sample."""

from collections import namedtuple
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import v2

from lightning_poison.adversarial.adversaries import FGSM, PGD
from lightning_poison.adversarial.recipes import Madry
from lightning_poison.callbacks.adversarial_training import AdversarialTraining
from lightning_poison.callbacks.batch_augmentation import BatchAugmentation
from lightning_poison.data.pixel_range import PixelRange
from lightning_poison.data.sample_spec import SampleSpec

Pair = namedtuple("Pair", "image label")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        (lambda image, label: (image, label), None),
        (lambda image, label: [image, label], None),
        (Pair, None),
        (Pair, SampleSpec("image", "label")),
        (lambda image, label: {"image": image, "label": label}, None),
        (lambda image, label: {"label": label, "name": "a", "more": [1.5], "image": image}, None),
        (
            lambda image, label: {"views": [image, 2 * image], "meta": {"y": label, "id": 3}},
            SampleSpec("views.0", "meta.y"),
        ),
        (lambda image, label: (Pair(image, (label, 7)), "b"), SampleSpec("0.image", "0.label.0")),
    ],
    ids=["tuple", "list", "named tuple", "by names", "dict", "larger dict", "nested", "nested named tuple"],
)
def test_batches_of_any_structure(kit, shape, spec):
    rest = []

    class Typed(kit.Plain):
        def training_step(self, batch, batch_idx):
            rest.append(batch)
            return super().training_step(batch, batch_idx)

    model = Typed()
    model.path = spec or SampleSpec.detect(shape(torch.zeros(2, 1, 6, 6), torch.zeros(2).long()), batched=True)
    kit.trainer(AdversarialTraining(kit.PLAIN, sample=spec)).fit(model, kit.loader(kit.Shaped(shape)))
    kit.assert_same(model.net, kit.by_hand()[0])
    expected = next(iter(kit.loader(kit.Shaped(shape))))
    assert type(rest[0]) is type(expected)
    assert str(model.path.replace(rest[0], inputs=0)) == str(model.path.replace(expected, inputs=0))


@pytest.mark.parametrize(
    ("combined", "spec"),
    [
        (lambda one, other: [one, other], SampleSpec("0.0", "0.1")),
        (lambda one, other: {"plain": other, "attacked": one}, SampleSpec("attacked.0", "attacked.1")),
    ],
    ids=["list", "dict"],
)
def test_batches_of_several_loaders(kit, combined, spec):
    other = DataLoader(TensorDataset(torch.full((48, 1, 6, 6), 0.3), torch.zeros(48).long()), batch_size=kit.BATCH)
    model = kit.Plain()
    model.path = spec
    kit.trainer(AdversarialTraining(kit.PLAIN, sample=spec)).fit(model, combined(kit.loader(), other))
    kit.assert_same(model.net, kit.by_hand()[0])


def test_refuses_several_loaders_without_paths(kit):
    with pytest.raises(ValueError, match=r"a\.0: a float32 tensor(.|\n)*b\.1: a int64 .*\n.*sample=SampleSpec"):
        kit.trainer(AdversarialTraining(kit.PLAIN)).fit(kit.NoStep(), {"a": kit.loader(), "b": kit.loader()})


def test_stored_batches_are_unchanged(kit):
    batches = list(zip(*(part.split(kit.BATCH) for part in kit.images_and_labels()), strict=True))
    before = [image.clone() for image, _ in batches]
    kit.trainer(AdversarialTraining(kit.PLAIN)).fit(kit.Plain(), DataLoader(batches, batch_size=None))
    assert all(torch.equal(image, was) for (image, _), was in zip(batches, before, strict=True))


def test_attacks_the_output_of_transfer_hooks(kit):
    """Integers are converted to floats and normalized there; the radius still applies to the raw image."""
    pixels = PixelRange(mean=(0.4,), std=(0.2,))

    class Data(pl.LightningDataModule):
        def train_dataloader(self):
            images, labels = kit.images_and_labels()
            return kit.loader(TensorDataset((255 * images).round().to(torch.uint8), labels))

        def on_after_batch_transfer(self, batch, dataloader_idx):
            return [pixels.from_raw(batch[0] / 255), batch[1]]

    model = kit.Plain()
    kit.trainer(AdversarialTraining(kit.PLAIN, pixels=pixels)).fit(model, Data())
    raw = (255 * kit.images_and_labels()[0][: kit.BATCH]).round() / 255
    away = (pixels.to_raw(model.seen[0]) - raw).abs()
    assert float(away.max()) == pytest.approx(0.1, abs=1e-5)
    assert float(away.mean()) > 0.05


@pytest.mark.parametrize("shape", [lambda *pair: pair, lambda image, label: {"image": image, "label": label}])
def test_mixed_labels(kit, shape):
    class Mixing(kit.Plain):
        def training_step(self, batch, batch_idx):
            assert self.path.labels_in(batch).shape == (kit.BATCH, 3)
            return super().training_step(batch, batch_idx)

    model = Mixing()
    model.path = SampleSpec.detect(shape(torch.zeros(2, 1, 6, 6), torch.zeros(2).long()), batched=True)
    callbacks = [BatchAugmentation(v2.MixUp(num_classes=3)), AdversarialTraining(kit.PLAIN)]
    kit.trainer(*callbacks).fit(model, kit.loader(kit.Shaped(shape)))
    clean = kit.Plain()
    clean.path = model.path
    kit.trainer(callbacks[0]).fit(clean, kit.loader(kit.Shaped(shape)))
    away = (model.seen[0] - clean.seen[0]).abs()
    assert 0.05 < float(away.max()) <= 0.1 + 1e-6


class TestLogits:
    @pytest.mark.parametrize("logits", ["net", "named", lambda module, images: module.net(images)])
    def test_named_source(self, kit, logits):
        class Named(kit.Plain):
            def forward(self, images):
                pytest.fail("called the module itself")

            def named(self, images):
                return self.net(images)

            def training_step(self, batch, batch_idx):
                return F.cross_entropy(self.net(batch[0]), batch[1])

        model = Named()
        kit.trainer(AdversarialTraining(kit.PLAIN, logits=logits)).fit(model, kit.loader())
        kit.assert_same(model.net, kit.by_hand()[0])

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["dict", "object", "function"])
    def test_logits_in_an_output(self, kit, kind):
        class Wrapping(kit.Plain):
            def forward(self, images):
                logits = self.net(images)
                return {"logits": logits} if kind == "dict" else SimpleNamespace(logits=logits, other=(logits, 3))

            def training_step(self, batch, batch_idx):
                return F.cross_entropy(self.net(batch[0]), batch[1])

        model = Wrapping()
        logits = (lambda module, images: module(images).other[0]) if kind == "function" else ""
        kit.trainer(AdversarialTraining(kit.PLAIN, logits=logits)).fit(model, kit.loader())
        kit.assert_same(model.net, kit.by_hand()[0])


class TestLosses:
    """Any loss per sample; without class labels there is no accuracy."""

    def metrics(self, kit, model, data, **options):
        running = kit.trainer(AdversarialTraining(**{"adversary": kit.PLAIN, **options}), log_every_n_steps=1)
        running.fit(model, kit.loader(data))
        return {name: float(value) for name, value in running.callback_metrics.items()}

    def test_adversary_maximizes_the_loss(self, kit):
        def margin(logits, labels, reduction="none"):
            own = logits.gather(1, labels[:, None])[:, 0]
            return logits.scatter(1, labels[:, None], -torch.inf).amax(1) - own

        model = kit.Plain()
        metrics = self.metrics(kit, model, None, loss=margin)
        kit.assert_same(model.net, kit.by_hand(loss=margin)[0])
        assert metrics["train/robust_loss"] > metrics["train/clean_loss"]
        assert 0 <= metrics["train/robust_accuracy"] <= metrics["train/clean_accuracy"]

    @pytest.mark.parametrize("columns", [True, False], ids=["(B, 1)", "(B,)"])
    @pytest.mark.parametrize("adversary", [PGD(0.1, steps=2), FGSM(0.1)], ids=["PGD", "FGSM"])
    def test_two_classes_in_one_logit(self, kit, columns, adversary):
        class Binary(kit.Plain):
            def __init__(self):
                super().__init__()
                self.net = nn.Sequential(nn.Flatten(), nn.Linear(36, 1))

            def forward(self, images):
                return self.net(images) if columns else self.net(images)[:, 0]

            def training_step(self, batch, batch_idx):
                return binary(self(batch[0]), batch[1]).mean()

        def binary(logits, labels):
            return F.binary_cross_entropy_with_logits(logits.view(-1), labels.float(), reduction="none")

        images, labels = kit.images_and_labels()
        metrics = self.metrics(
            kit, Binary(), TensorDataset(images, labels % 2), adversary=adversary, loss=binary, guard=None
        )
        assert set(metrics) == {"train/clean_loss", "train/robust_loss"}
        assert metrics["train/robust_loss"] > metrics["train/clean_loss"]

    def test_regression(self, kit):
        class Regression(kit.Plain):
            def __init__(self):
                super().__init__()
                self.net = nn.Sequential(nn.Flatten(), nn.Linear(36, 1), nn.Flatten(0))

            def training_step(self, batch, batch_idx):
                return F.mse_loss(self(batch[0]), batch[1])

        data = TensorDataset(kit.images_and_labels()[0], torch.rand(48))

        def squares(found, wanted):
            return (found - wanted).square()

        metrics = self.metrics(kit, Regression(), data, loss=squares, sample=SampleSpec())
        assert metrics["train/robust_loss"] > metrics["train/clean_loss"]
        assert set(metrics) == {"train/clean_loss", "train/robust_loss"}

    def test_several_labels_per_sample(self, kit):
        class Several(kit.Plain):
            def training_step(self, batch, batch_idx):
                return F.binary_cross_entropy_with_logits(self(batch[0]), batch[1])

        data = TensorDataset(kit.images_and_labels()[0], torch.rand(48, 3).round())

        def each(logits, labels):
            return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1)

        assert set(self.metrics(kit, Several(), data, loss=each, sample=SampleSpec())) == {
            "train/clean_loss",
            "train/robust_loss",
        }

    def test_one_label_per_pixel(self, kit):
        class Segmenting(kit.Plain):
            def __init__(self):
                super().__init__()
                self.net = nn.Conv2d(1, 3, 3, padding=1)

        data = TensorDataset(kit.images_and_labels()[0], torch.randint(0, 3, (48, 6, 6)))

        def each(logits, labels):
            return F.cross_entropy(logits, labels, reduction="none").mean((1, 2))

        metrics = self.metrics(kit, Segmenting(), data, loss=each, sample=SampleSpec(), adversary=FGSM(0.1))
        assert metrics["train/robust_loss"] > metrics["train/clean_loss"]
        assert metrics["train/robust_accuracy"] <= metrics["train/clean_accuracy"]


@pytest.mark.parametrize(("share", "changed"), [(0.5, 4), (0.1, 1), (0.05, 1), (1, 8)])
def test_share_of_each_batch(kit, share, changed):
    model = kit.Plain()
    kit.trainer(AdversarialTraining(kit.PLAIN, recipe=Madry(share))).fit(model, kit.loader())
    away = (model.seen[0] - kit.images_and_labels()[0][: kit.BATCH]).abs().amax((1, 2, 3))
    assert (away > 0.05).tolist() == [True] * changed + [False] * (8 - changed)
