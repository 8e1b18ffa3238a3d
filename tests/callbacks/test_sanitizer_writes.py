"""What callbacks set on the training set takes effect, as without a sanitizer."""

import pytest
import torch
from lightning.pytorch import Callback

from lightning_poison.attacks.objectives import AvailabilityObjective
from lightning_poison.attacks.poison import Poison
from lightning_poison.datamodules import PoisonedDataModule, SanitizedDataModule

HOW = ["plain", "callback", "wrapper", "flag"]


class Curriculum(Callback):
    """Changes the training set from epoch 1 on."""

    def __init__(self, change):
        self.change = change

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            self.change(trainer.train_dataloader.dataset)


@pytest.fixture
def fit(world):
    """Return a function that fits two epochs and returns the labels and the mean of the inputs of each epoch."""

    class Adjustable(world.numbered):
        shift, epoch = 0.0, 0

        def __getitem__(self, index):
            point, _, number = super().__getitem__(index)
            return point + self.shift, torch.as_tensor(self.targets[index]), number

        def set_epoch(self, epoch):
            self.epoch = epoch

    class Module(world.module):
        def training_step(self, batch, batch_idx):
            seen = self.labels.setdefault(self.current_epoch, {})
            seen.update(zip((batch[2] - world.first_id).tolist(), batch[1].tolist(), strict=True))
            self.means[self.current_epoch] = float(batch[0].mean())
            return super().training_step(batch, batch_idx)

    def run(change, how, kind=torch.as_tensor, **settings):
        data, module = Adjustable(), Module()
        data.targets = kind(data.targets)
        module.labels, module.means = {}, {}
        loader = world.loader(data, **settings)
        sanitizer = {"callback": [world.sanitizer()], "flag": [world.sanitizer(action="flag")]}.get(how, [])
        trainer = world.trainer(*sanitizer, Curriculum(change), max_epochs=2)
        if how == "wrapper":
            trainer.fit(
                module, datamodule=SanitizedDataModule(loader, world.sanitizer().loader_sanitizer.settings.scorer)
            )
        else:
            trainer.fit(module, loader)
        return data, module

    return run


@pytest.mark.parametrize("how", HOW)
def test_attributes(fit, how):
    def change(dataset):
        dataset.shift = 100.0
        dataset.set_epoch(dataset.epoch + 1)

    data, module = fit(change, how)
    assert (data.shift, data.epoch) == (100.0, 1)
    assert module.means[0] < 20 < 80 < module.means[1]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    "kind", [torch.as_tensor, torch.Tensor.numpy, torch.Tensor.tolist], ids=["tensor", "array", "list"]
)
@pytest.mark.parametrize("how", HOW)
def test_labels_in_place(fit, how, kind, workers):
    """Of the last of the three classes, those that are trained on get the label 2."""

    def change(dataset):
        labels = dataset.targets
        for position in range(len(dataset)):
            if dataset[position][2] % 3 == 1:
                labels[position] = 2

    data, module = fit(change, how, kind, num_workers=workers)
    assert {label for index, label in module.labels[1].items() if (10_000 + index) % 3 == 1} == {2}
    for index, label in module.labels[1].items():
        assert int(data.targets[index]) == label


@pytest.mark.parametrize("how", HOW)
def test_all_labels(fit, how):
    def change(dataset):
        dataset.targets = torch.full((len(dataset),), 1)

    data, module = fit(change, how)
    assert set(module.labels[1].values()) == {1}
    left_out = how in ("callback", "wrapper")
    assert torch.equal(data.targets == 1, torch.ones(240).bool()) != left_out


@pytest.mark.parametrize("how", ["callback", "wrapper"])
def test_labels_of_another_length_are_refused(fit, how):
    def change(dataset):
        dataset.targets = torch.zeros(7)

    with pytest.raises(ValueError, match="`targets` to be labels of the 216 kept samples, or of all 240, but got"):
        fit(change, how)


def test_attributes_through_two_wrappers(world, centroid_scorer):
    poison = Poison(torch.arange(4), torch.tensor([2, 0, 1, 2]), AvailabilityObjective(), attack="flip")
    data, module = world.numbered(), world.module()
    wrapped = SanitizedDataModule(PoisonedDataModule(world.loader(data), poison), centroid_scorer())
    trainer = world.trainer(Curriculum(lambda dataset: setattr(dataset, "note", "set")), max_epochs=2)
    trainer.fit(module, datamodule=wrapped)
    assert data.note == "set"


@pytest.mark.parametrize("how", ["plain", "callback", "flag"])
def test_attributes_of_the_data_set_of_a_random_split(world, how):
    """The user's line is the same with and without a sanitizer."""

    class Shifted(world.numbered):
        shift = 0.0

        def __getitem__(self, index):
            point, label, number = super().__getitem__(index)
            return point + self.shift, label, number

    class Module(world.module):
        means = ()

        def training_step(self, batch, batch_idx):
            self.means += (float(batch[0].mean()),)
            return super().training_step(batch, batch_idx)

    data, module = Shifted(), Module()
    part, _ = torch.utils.data.random_split(data, [210, 30], torch.Generator().manual_seed(0))
    sanitizer = {"callback": [world.sanitizer()], "flag": [world.sanitizer(action="flag")]}.get(how, [])
    change = Curriculum(lambda dataset: setattr(dataset.dataset, "shift", 100.0))
    world.trainer(*sanitizer, change, max_epochs=2).fit(module, world.loader(part))
    half = len(module.means) // 2
    assert max(module.means[:half]) < 20 < 80 < min(module.means[half:])
