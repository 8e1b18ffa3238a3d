import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from jsonargparse import ArgumentParser
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import v2

from lightning_poison.adversarial.adversaries import PGD
from lightning_poison.callbacks.adversarial_training import AdversarialTraining
from lightning_poison.callbacks.batch_augmentation import BatchAugmentation
from lightning_poison.data.pixel_range import PixelRange
from lightning_poison.data.sample_spec import SampleSpec

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities:DeprecationWarning")


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 4))
        self.seen = []

    def forward(self, images):
        return self.net(images)

    def training_step(self, batch, batch_idx):
        self.seen.append([part.clone() for part in batch])
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def data():
    images = torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return TensorDataset(images, torch.arange(24) % 4)


def train(data, *callbacks, epochs=1):
    model = Module()
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=epochs, callbacks=list(callbacks), logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(model, DataLoader(data, batch_size=8))
    assert "training_step" not in model.__dict__
    return model


@pytest.mark.parametrize("transform", [v2.MixUp(num_classes=4), v2.CutMix(num_classes=4)], ids=["mixup", "cutmix"])
def test_images_and_labels_are_mixed(data, transform):
    images, labels = train(data, BatchAugmentation(transform)).seen[0]
    assert labels.shape == (8, 4)
    torch.testing.assert_close(labels.sum(1), torch.ones(8))
    share = labels.gather(1, data.tensors[1][:8, None])[:, 0].mean()
    assert 0 < float(share) < 1
    other = data.tensors[0][:8].roll(1, 0)
    if isinstance(transform, v2.MixUp):
        torch.testing.assert_close(images, share * data.tensors[0][:8] + (1 - share) * other)
    else:
        assert bool(((images == data.tensors[0][:8]) | (images == other)).all())


def test_jpeg_equals_that_of_torchvision(data):
    images, labels = train(data, BatchAugmentation(v2.JPEG((60, 60)))).seen[0]
    levels = (255 * data.tensors[0][:8]).round().to(torch.uint8)
    expected = torch.stack([v2.functional.jpeg(image, 60) for image in levels]).float() / 255
    torch.testing.assert_close(images, expected)
    assert torch.equal(labels, data.tensors[1][:8])
    assert not torch.equal(images, data.tensors[0][:8])


def test_other_transforms_are_applied_per_image(data):
    images, _ = train(data, BatchAugmentation(v2.RandomHorizontalFlip())).seen[0]
    flipped = (images == data.tensors[0][:8].flip(-1)).all(1).all(1).all(1)
    kept = (images == data.tensors[0][:8]).all(1).all(1).all(1)
    assert bool((flipped | kept).all())
    assert 0 < int(flipped.sum()) < 8


def test_jpeg_of_integers(data):
    levels = (255 * data.tensors[0][:8]).round().to(torch.uint8)
    found, labels = BatchAugmentation(v2.JPEG((60, 60))).augment([levels, data.tensors[1][:8]], 0)
    assert torch.equal(found, torch.stack([v2.functional.jpeg(image, 60) for image in levels]))
    assert torch.equal(labels, data.tensors[1][:8])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_jpeg_of_floats_of_any_precision(data, dtype):
    pixels = PixelRange(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    inputs = pixels.from_raw(data.tensors[0][:8].to(dtype))
    found, _ = BatchAugmentation(v2.JPEG(60), pixels=pixels).augment([inputs, data.tensors[1][:8]], 0)
    plain, _ = BatchAugmentation(v2.JPEG(60)).augment([data.tensors[0][:8], data.tensors[1][:8]], 0)
    assert found.dtype == dtype
    assert float((pixels.to_raw(found.float()) - plain).abs().mean()) < 0.01


def test_random_choice_of_mixup_and_cutmix_per_batch(data):
    choice = v2.RandomChoice([v2.MixUp(num_classes=4), v2.CutMix(num_classes=4)])
    model = train(data, BatchAugmentation(choice), epochs=4)
    cut = []
    for step, (images, labels) in enumerate(model.seen):
        clean = data.tensors[0].split(8)[step % 3]
        assert labels.shape == (8, 4)
        cut.append(bool(((images == clean) | (images == clean.roll(1, 0))).all()))
    assert 0 < sum(cut) < 12


@pytest.mark.parametrize("second", [v2.CutMix(num_classes=4), v2.JPEG(60), v2.RandomHorizontalFlip()])
def test_augmentations_are_applied_in_order(data, second):
    first = BatchAugmentation(v2.MixUp(num_classes=4))
    images, labels = train(data, first, BatchAugmentation(second)).seen[0]
    alone, mixed = train(data, first).seen[0]
    assert not torch.equal(images, alone)
    assert torch.equal(labels, mixed) != isinstance(second, v2.CutMix)
    torch.testing.assert_close(labels.sum(1), torch.ones(8))


def test_transforms_get_raw_images(data):
    pixels, images = PixelRange(mean=(0.5,) * 3, std=(0.2,) * 3), data.tensors[0]
    normalized = TensorDataset(pixels.from_raw(images), data.tensors[1])
    found, _ = train(normalized, BatchAugmentation(v2.JPEG(60), pixels=pixels)).seen[0]
    plain, _ = train(data, BatchAugmentation(v2.JPEG(60))).seen[0]
    torch.testing.assert_close(pixels.to_raw(found), plain, atol=1e-5, rtol=0)


def test_depends_on_the_seed_alone_and_restores_random_states(data):
    runs = [train(data, BatchAugmentation(v2.MixUp(num_classes=4), seed=seed), epochs=2) for seed in (0, 0, 1)]
    assert torch.equal(runs[0].seen[0][0], runs[1].seen[0][0])
    assert not torch.equal(runs[0].seen[0][0], runs[2].seen[0][0])
    assert not torch.equal(runs[0].seen[0][0], runs[0].seen[3][0])
    state = torch.get_rng_state()
    BatchAugmentation(v2.MixUp(num_classes=4)).augment(data[:8], 0)
    assert torch.equal(torch.get_rng_state(), state)


def test_augmented_batches_are_attacked(data):
    callbacks = [BatchAugmentation(v2.MixUp(num_classes=4)), AdversarialTraining(PGD(0.1, steps=2))]
    attacked, mixed = train(data, *callbacks), train(data, callbacks[0])
    away = (attacked.seen[0][0] - mixed.seen[0][0]).abs()
    assert torch.equal(attacked.seen[0][1], mixed.seen[0][1])
    assert 0.05 < float(away.max()) <= 0.1 + 1e-6


def test_batches_of_another_structure(data):
    batch = {"image": data.tensors[0][:8], "more": {"y": data.tensors[1][:8]}}
    callback = BatchAugmentation(v2.CutMix(num_classes=4), sample=SampleSpec("image", "more.y"))
    found = callback.augment(batch, 0)
    assert found["more"]["y"].shape == (8, 4)
    assert batch["more"]["y"].shape == (8,)


def test_step_is_restored_after_an_error(data):
    class Failing(Module):
        def training_step(self, batch, batch_idx):
            raise ArithmeticError("stop")

    model = Failing()
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, callbacks=[BatchAugmentation(v2.JPEG(50))], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
    )  # fmt: skip
    with pytest.raises(ArithmeticError, match="stop"):
        trainer.fit(model, DataLoader(data, batch_size=8))
    assert "training_step" not in model.__dict__


def test_refuses_other_transforms(data):
    with pytest.raises(TypeError, match=r"a module such as `v2.CutMix`"):
        BatchAugmentation(lambda images: images)

    class Halved(v2.Transform):
        def forward(self, images):
            return images

    callback = BatchAugmentation(Halved())
    with pytest.raises(ValueError, match="one that returns 8 images"):
        callback._normalized(torch.zeros(4, 3, 8, 8), data.tensors[0][:8])


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (
            (["a", "b"], torch.arange(2)),
            r"`inputs` to be a batch of images \(B, C, H, W\), but got list at '0'\.\nName",
        ),
        (
            (torch.rand(2, 3, 8, 8), ["a", "b"]),
            "`labels` to be a tensor with one label per image, but got list at '1'",
        ),
    ],
)
def test_refuses_text(batch, message):
    callback = BatchAugmentation(v2.MixUp(num_classes=4), sample=SampleSpec("0", "1"))
    with pytest.raises(ValueError, match=message):
        callback.augment(batch, 0)


@pytest.mark.parametrize(
    ("transform", "pixels", "change", "message"),
    [
        (v2.MixUp(num_classes=4), None, lambda x: (255 * x).to(torch.uint8), r"floats, .* but got a uint8 tensor"),
        (v2.JPEG(60), PixelRange((0.5,) * 3, (0.2,) * 3), lambda x: (255 * x).to(torch.uint8), r"`v2\.ToDtype"),
        (v2.JPEG(60), None, lambda x: 4 * x - 2, r"in \[0, 1\], the pixel range, .*\n.*pixels=PixelRange"),
        (v2.JPEG(60), None, lambda x: 255 * x, r"in \[0, 1\], the pixel range, but got values from .* to 25"),
    ],
    ids=["integers to be mixed", "integers declared as normalized", "normalized but not declared", "gray levels"],
)
def test_refuses_images_before_the_first_step(data, transform, pixels, change, message):
    model = Module()
    before = model.net[1].weight.detach().clone()
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, callbacks=[BatchAugmentation(transform, pixels=pixels)], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
    )  # fmt: skip
    with pytest.raises(ValueError, match=message):
        trainer.fit(model, DataLoader(TensorDataset(change(data.tensors[0]), data.tensors[1]), batch_size=8))
    assert torch.equal(model.net[1].weight, before)
    assert not model.seen
    assert "training_step" not in model.__dict__


def test_builds_from_yaml():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--callback", type=pl.Callback)
    transform = {"class_path": "torchvision.transforms.v2.CutMix", "init_args": {"num_classes": 10}}
    config = {"class_path": "lightning_poison.BatchAugmentation", "init_args": {"transform": transform}}
    callback = parser.instantiate(parser.parse_object({"callback": config})).callback
    assert isinstance(callback.transform, v2.CutMix)
    assert callback.transform.num_classes == 10
