"""The structure of samples, trusted data, and data scored in place of the training samples."""

from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset, default_collate, random_split

from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.manifest import read_manifest


class Item(NamedTuple):
    image: torch.Tensor
    label: torch.Tensor
    ident: torch.Tensor


@dataclass
class Record:
    image: torch.Tensor
    label: torch.Tensor
    ident: torch.Tensor


def nested(point, label, ident):
    return {"views": (point, point + 1), "meta": {"y": label, "id": ident}}


def relabel_last(point, label, ident):
    return ident, {"label": label}, point


CONTAINERS = {
    "longer tuple": (lambda point, label, ident: (point, label, ident, ident), None),
    "list": (lambda point, label, ident: [point, label, ident], None),
    "dict": (lambda point, label, ident: {"id": ident, "label": label, "image": point}, None),
    "named tuple": (Item, None),
    "nested": (lambda point, label, ident: {"data": [point], "meta": (float(ident), label)}, None),
    "named": (nested, SampleSpec("views.0", "meta.y")),
    "named by position": (lambda point, label, ident: (ident, label, point), SampleSpec("2", "1")),
    "named in a mixture": (relabel_last, SampleSpec("2", "1.label")),
}


@pytest.mark.slow
@pytest.mark.parametrize(("container", "spec"), CONTAINERS.values(), ids=CONTAINERS.keys())
def test_samples_in_any_container(world, container, spec):
    class Module(world.module):
        def training_step(self, batch, batch_idx):
            batches.append(batch)
            return self.layer(torch.zeros(1, 4)).sum()

    batches = []
    data, sanitizer = world.numbered(container=container), world.sanitizer(sample=spec)
    loader = world.loader(data, shuffle=False)
    world.trainer(sanitizer).fit(Module(), loader)
    assert torch.equal(~sanitizer.verdict.keep, data.is_wrong)
    assert type(batches[0]) is type(next(iter(loader)))


def test_data_classes(world):
    def collate(records):
        return torch.stack([each.image for each in records]), torch.stack([each.ident for each in records])

    data, module, sanitizer = world.numbered(container=Record), world.module(), world.sanitizer()
    world.trainer(sanitizer).fit(module, world.loader(data, collate_fn=collate))
    assert torch.equal(~sanitizer.verdict.keep, data.is_wrong)
    assert module.seen == set(sanitizer.verdict.keep.nonzero().flatten().tolist())


def test_refuses_ambiguous_samples(world):
    data = world.numbered(container=lambda point, label, ident: {"a": point, "b": ident % 5, "c": 2 - label})
    module = world.module()
    with pytest.raises(ValueError, match=r"SampleSpec\(inputs=\.\.\., labels=\.\.\.\)"):
        world.trainer(world.sanitizer()).fit(module, world.loader(data))
    assert not module.epochs


@pytest.mark.slow
def test_flag_removes_nothing(world):
    data, module, sanitizer = world.numbered(), world.module(), world.sanitizer(action="flag")
    loader = world.loader(data)
    trainer = world.trainer(sanitizer)
    trainer.fit(module, loader)
    assert module.seen == set(range(240))
    assert "flagged, not removed" in sanitizer.verdict.summary(flag_only=True)
    assert trainer.train_dataloader is loader
    assert torch.equal(~sanitizer.verdict.keep, data.is_wrong)


@pytest.mark.slow
@pytest.mark.parametrize("as_loader", [False, True], ids=["data set", "loader"])
@pytest.mark.parametrize("fitted", [False, True], ids=["unfitted", "fitted"])
def test_trusted_data(world, assert_clean, centroid_scorer, as_loader, fitted):
    trusted = world.numbered(1500, wrong=0, seed=9)
    scorer = centroid_scorer()
    if fitted:
        scorer.fit(trusted)
        scorer.fits.clear()
    data, module = world.numbered(), world.module()
    sanitizer = world.sanitizer(scorer, trusted=DataLoader(trusted, 32) if as_loader else trusted)
    world.trainer(sanitizer).fit(module, world.loader(data))
    assert_clean(module, sanitizer.verdict)
    assert sanitizer.verdict.calibration == "trusted"
    assert (~sanitizer.verdict.keep)[data.is_wrong].all()
    assert (~sanitizer.verdict.keep)[~data.is_wrong].double().mean() < 0.04
    assert len(scorer.fits) == (0 if fitted else 1)


class Augmented(torch.utils.data.Dataset):
    """A training view of numbered data that is pure noise."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        point, label, ident = self.data[index]
        return torch.randn_like(point), label, ident


def test_scores_the_evaluation_view_and_trains_on_the_training_view(world, assert_clean):
    data, module = world.numbered(), world.module()
    sanitizer = world.sanitizer(score_dataset=data)
    trainer = world.trainer(sanitizer)
    trainer.fit(module, world.loader(Augmented(data)))
    assert_clean(module, sanitizer.verdict)
    assert torch.equal(~sanitizer.verdict.keep, data.is_wrong)
    assert isinstance(trainer.train_dataloader.dataset.dataset, Augmented)


def test_evaluation_view_may_be_of_the_whole_data_set_that_was_split(world):
    data, module = world.numbered(), world.module()
    generator = torch.Generator().manual_seed(0)
    train, _ = random_split(Augmented(data), [0.9, 0.1], generator=generator)
    train, _ = random_split(train, [0.9, 0.1], generator=generator)
    sanitizer = world.sanitizer(score_dataset=DataLoader(data, batch_size=7), sample=SampleSpec("0", "1"))
    trainer = world.trainer(sanitizer)
    trainer.fit(module, world.loader(train))
    positions = torch.tensor(train.dataset.indices)[train.indices]
    assert module.seen == set(positions[sanitizer.verdict.keep].tolist())
    assert torch.equal(~sanitizer.verdict.keep, data.is_wrong[positions])
    assert trainer.train_dataloader.dataset.dataset is train


def test_evaluation_view_is_read_with_the_same_paths(world, assert_clean):
    data, module = world.numbered(container=nested), world.module()
    view = world.numbered(container=nested)
    sanitizer = world.sanitizer(score_dataset=view, sample=SampleSpec("views.1", "meta.y"))
    world.trainer(sanitizer).fit(module, world.loader(data))
    assert_clean(module, sanitizer.verdict)


@pytest.mark.parametrize(
    "view", [lambda world: world.numbered(239), lambda world: world.numbered(wrong=23)], ids=["length", "labels"]
)
def test_refuses_an_evaluation_view_of_other_samples(world, centroid_scorer, view):
    scorer, module = centroid_scorer(), world.module()
    sanitizer = world.sanitizer(scorer, score_dataset=view(world))
    with pytest.raises(ValueError, match="Expected `score_dataset` to contain the 240 samples"):
        world.trainer(sanitizer).fit(module, world.loader(world.numbered()))
    assert not scorer.fits
    assert not module.epochs


@pytest.mark.parametrize("name", ["score_dataset", "manifest"])
def test_refuses_arguments_for_one_data_set_with_several_loaders(world, name):
    data = world.numbered()
    sanitizer = world.sanitizer(**{name: data if name == "score_dataset" else "manifest.csv"})
    with pytest.raises(ValueError, match=f"Expected `{name}` to be used with one training loader, but got 2"):
        world.trainer(sanitizer).fit(world.module(), [world.loader(data), world.loader(data)])


def test_tensor_data_set(world, assert_clean):
    numbered = world.numbered()
    data = TensorDataset(numbered.points, numbered.targets, torch.arange(240) + world.first_id)
    module, sanitizer = world.module(), world.sanitizer()
    world.trainer(sanitizer).fit(module, world.loader(data))
    assert_clean(module, sanitizer.verdict)


@pytest.mark.parametrize("first", [0, 1, 150])
def test_samples_that_collate_fn_leaves_out(world, tmp_path, first):
    """The first one, some, or all but a few."""

    class Partly(type(world.numbered())):
        def __getitem__(self, index):
            is_missing = index < first if first > 1 else index % 50 == first
            return None if is_missing else super().__getitem__(index)

    def collate(samples):
        present = [each for each in samples if each is not None]
        return default_collate(present) if present else None

    data, module, sanitizer = Partly(600, wrong=60), world.module(), world.sanitizer(dirpath=tmp_path / "reports")
    world.trainer(sanitizer).fit(module, world.loader(data, collate_fn=collate, batch_size=300))
    present = torch.tensor([data[index] is not None for index in range(600)])
    assert torch.equal(~sanitizer.verdict.keep, data.is_wrong & present)
    assert module.seen == set((~data.is_wrong & present).nonzero().flatten().tolist())
    assert (tmp_path / "reports" / "manifest.csv").exists()


def test_classes_have_the_names_that_the_data_set_lists(world, tmp_path, caplog):
    data = world.numbered()
    data.classes = ["cat", "dog", "frog", "newt"]
    train, _ = random_split(data, [0.9, 0.1], generator=torch.Generator().manual_seed(0))
    sanitizer = world.sanitizer(dirpath=tmp_path)
    with caplog.at_level("INFO"):
        world.trainer(sanitizer).fit(world.module(), world.loader(train))
    row = read_manifest(tmp_path / "manifest.csv").rows[0]
    assert (row.label_name, row.suggested_name) == (data.classes[row.label], data.classes[row.suggested_label])
    assert f"labeled {row.label_name}, looks like {row.suggested_name}" in (tmp_path / "report.html").read_text()
    assert "labeled dog, looks like cat: about" in caplog.text
