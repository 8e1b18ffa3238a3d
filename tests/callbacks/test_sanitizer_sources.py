"""Only kept samples are trained on, for any source and nesting of training loaders."""

from collections import OrderedDict, defaultdict
from itertools import chain

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.utilities import CombinedLoader


@pytest.fixture
def two(world):
    return world.numbered(), world.numbered(count=150, wrong=15, seed=1)


def kept(sanitizer, path=""):
    return set(sanitizer.verdicts[path].keep.nonzero().flatten().tolist())


def test_loaders_passed_to_fit(world, assert_clean):
    data, module, sanitizer = world.numbered(), world.module(), world.sanitizer()
    world.trainer(sanitizer).fit(module, world.loader(data))
    assert_clean(module, sanitizer.verdict)
    assert torch.equal(~sanitizer.verdict.keep, data.is_wrong)


def test_data_module(world, assert_clean):
    class Data(pl.LightningDataModule):
        def setup(self, stage):
            self.train = world.numbered()

        def train_dataloader(self):
            return world.loader(self.train)

    module, sanitizer = world.module(), world.sanitizer()
    world.trainer(sanitizer).fit(module, datamodule=Data())
    assert_clean(module, sanitizer.verdict)


def test_module_loader_that_needs_its_setup(world, assert_clean):
    class Own(world.module):
        def setup(self, stage):
            self.train_set = world.numbered()

        def train_dataloader(self):
            return world.loader(self.train_set)

    module, sanitizer = Own(), world.sanitizer()
    world.trainer(sanitizer).fit(module)
    assert_clean(module, sanitizer.verdict)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("nested", "paths"),
    [
        (lambda a, b: [a, b], ("[0]", "[1]")),
        (lambda a, b: (a, b), ("[0]", "[1]")),
        (lambda a, b: {"z": a, "a": b}, ("['z']", "['a']")),
        (lambda a, b: OrderedDict(z=a, a=b), ("['z']", "['a']")),
        (lambda a, b: defaultdict(list, z=a, a=b), ("['z']", "['a']")),
        (lambda a, b: {"z": [a], "a": {"deep": (b,)}}, ("['z'][0]", "['a']['deep'][0]")),
        (lambda a, b: CombinedLoader([a, b], "min_size"), ("[0]", "[1]")),
        (lambda a, b: CombinedLoader({"z": a, "a": [b]}, "max_size_cycle"), ("['z']", "['a'][0]")),
    ],
    ids=["list", "tuple", "dict", "ordered", "defaultdict", "deep", "min_size", "max_size_cycle"],
)
def test_collections_of_loaders(world, two, nested, paths):
    class Pair(world.module):
        def training_step(self, batch, batch_idx):
            keys = [step.strip("'") for step in paths[0].strip("[]").split("][")]
            first = batch
            for key in keys:
                first = first[int(key) if key.isdigit() else key]
            firsts.update((first[2] - world.first_id).tolist())
            return super().training_step(batch, batch_idx)

    firsts = set()
    loaders = [world.loader(each, batch_size=8) for each in two]
    module, sanitizer = Pair(), world.sanitizer()
    world.trainer(sanitizer).fit(module, nested(*loaders))

    assert list(sanitizer.verdicts) == list(paths)
    for path, data in zip(paths, two, strict=True):
        assert torch.equal(~sanitizer.verdicts[path].keep, data.is_wrong)
    assert firsts <= kept(sanitizer, paths[0])
    assert module.seen <= kept(sanitizer, paths[0]) | kept(sanitizer, paths[1])
    with pytest.raises(RuntimeError, match=r"there are 2 verdicts.\n.*`verdicts`"):
        _ = sanitizer.verdict


@pytest.mark.slow
def test_combined_loader_is_unchanged(world, two):
    combined = CombinedLoader({"a": world.loader(two[0]), "b": world.loader(two[1])}, "min_size")
    before = list(combined.flattened)

    class Own(world.module):
        def train_dataloader(self):
            return combined

    sanitizer, module = world.sanitizer(), Own()
    trainer = world.trainer(sanitizer, max_epochs=3, reload_dataloaders_every_n_epochs=1)
    trainer.fit(module)
    trainer.fit_loop.max_epochs = 4
    trainer.fit(module)
    assert len(module.epochs) == 4
    assert combined.flattened == before
    assert combined.iterables == {"a": before[0], "b": before[1]}
    assert [each.dataset for each in before] == list(two)
    assert module.seen <= kept(sanitizer, "['a']") | kept(sanitizer, "['b']")


@pytest.mark.slow
@pytest.mark.parametrize("fresh", [False, True], ids=["same data set", "new data set object each time"])
def test_reloaded_loaders_are_filtered_each_time_and_scored_once(world, assert_clean, centroid_scorer, fresh):
    data, requests = world.numbered(), []

    class Own(world.module):
        def train_dataloader(self):
            requests.append(0)
            return world.loader(world.numbered() if fresh else data)

    scorer, module = centroid_scorer(), Own()
    sanitizer = world.sanitizer(scorer)
    world.trainer(sanitizer, max_epochs=3, reload_dataloaders_every_n_epochs=1).fit(module)
    assert len(requests) == len(module.epochs) == 3
    assert len(scorer.fits) == 3  # one per fold
    assert_clean(module, sanitizer.verdict)
    assert all(len(list(chain(*epoch))) == int(sanitizer.verdict.keep.sum()) for epoch in module.epochs)


def test_second_fit_of_the_same_trainer(world, assert_clean, centroid_scorer):
    scorer, module, loader = centroid_scorer(), world.module(), world.loader(world.numbered())
    sanitizer = world.sanitizer(scorer)
    trainer = world.trainer(sanitizer)
    trainer.fit(module, loader)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, loader)
    assert len(module.epochs) == 2
    assert len(scorer.fits) == 3
    assert_clean(module, sanitizer.verdict)


def test_one_sanitizer_in_two_trainers(world, assert_clean, centroid_scorer):
    scorer, data = centroid_scorer(), world.numbered()
    sanitizer = world.sanitizer(scorer)
    for _ in range(2):
        module = world.module()
        world.trainer(sanitizer).fit(module, world.loader(data))
        assert_clean(module, sanitizer.verdict)
    assert len(scorer.fits) == 3


def test_several_sanitizers_compose(world, centroid_scorer):
    class ThirdOf(centroid_scorer):
        """Scores outliers on the last axis, which does not depend on the class."""

        def score_labels(self, inputs):
            return super().score_labels(inputs) + 100 * (inputs[:, 3:] > 1).float()

    data = world.numbered()
    first = world.sanitizer(name="first")
    second = world.sanitizer(ThirdOf().fit(data), trusted=world.numbered(1200, wrong=0, seed=7), name="second")
    module = world.module()
    world.trainer(first, second).fit(module, world.loader(data))
    left = first.verdict.keep.nonzero().flatten()
    assert len(second.verdict) == len(left)
    assert module.seen == set(left[second.verdict.keep].tolist())


def test_validation_and_test_loaders_are_unchanged(world):
    class Validated(world.validated_module):
        def on_fit_start(self):
            self.validation_source = self.trainer.fit_loop.epoch_loop.val_loop._data_source.instance

    data, held_out = world.numbered(), world.numbered(seed=3)
    module, sanitizer = Validated(), world.sanitizer()
    validation = world.loader(held_out, shuffle=False)
    trainer = world.trainer(sanitizer)
    trainer.fit(module, world.loader(data), validation)
    assert module.validation_source is validation
    assert trainer.val_dataloaders is validation
    assert {each for batch in module.validated for each in batch} == set(range(len(held_out)))
    module.validated.clear()
    trainer.test(module, validation, verbose=False)
    assert trainer.test_dataloaders is validation
    assert len(list(chain(*module.validated))) == len(held_out)


def test_original_loader_is_unchanged(world):
    loader = world.loader(world.numbered(), drop_last=True)
    before = {name: value for name, value in vars(loader).items() if not name.startswith("_")}
    world.trainer(world.sanitizer()).fit(world.module(), loader)
    assert {name: vars(loader)[name] for name in before} == before
