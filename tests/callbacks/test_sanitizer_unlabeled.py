"""Semi-supervised training: loaders with labels are filtered, and those without are left unchanged."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader, Dataset, SubsetRandomSampler, WeightedRandomSampler

from lightning_poison.datamodules import SanitizedDataModule
from lightning_poison.errors import UnsupportedDataError


class Unlabeled(Dataset):
    """Points of which none is labeled; `form` makes a sample of one."""

    def __init__(self, form, count=120):
        self.points = torch.randn(count, 4, generator=torch.Generator().manual_seed(5))
        self.form = form

    def __len__(self):
        return len(self.points)

    def __getitem__(self, index):
        return self.form(self.points[index])


FORMS = {
    "bare": lambda point: point,
    "tuple": lambda point: (point,),
    "two views": lambda point: (point, point + 0.1),
    "dict": lambda point: {"x": point},
    "label of -1": lambda point: (point, -1),
}

COLLECTIONS = {
    "dict": lambda labeled, unlabeled: {"labeled": labeled, "unlabeled": unlabeled},
    "list": lambda labeled, unlabeled: [unlabeled, labeled],
    "nested": lambda labeled, unlabeled: {"labeled": [labeled], "more": (unlabeled,)},
    "max_size_cycle": lambda labeled, unlabeled: CombinedLoader({"l": labeled, "u": unlabeled}, "max_size_cycle"),
    "min_size": lambda labeled, unlabeled: CombinedLoader([labeled, unlabeled], "min_size"),
}


@pytest.fixture
def fit(request, world, centroid_scorer):
    """Return a function that fits with the callback, or with the wrapper."""

    def run(source, how="callback", **settings):
        module, scorer = world.module(), centroid_scorer()
        if how == "callback":
            sanitizer = world.sanitizer(scorer, **settings)
            trainer = world.trainer(sanitizer)
            trainer.fit(module, source)
        else:
            sanitizer = SanitizedDataModule(source, scorer, **settings)
            trainer = world.trainer()
            trainer.fit(module, datamodule=sanitizer)
        return SimpleNamespace(module=module, verdicts=sanitizer.verdicts, trainer=trainer, scorer=scorer)

    return run


@pytest.mark.slow
@pytest.mark.parametrize("how", ["callback", "wrapper"])
@pytest.mark.parametrize("form", FORMS)
def test_unlabeled_loaders_are_trained_on_as_they_are(world, fit, caplog, form, how):
    labeled, unlabeled = world.numbered(), DataLoader(Unlabeled(FORMS[form]), batch_size=32, shuffle=True)
    done = fit({"l": world.loader(labeled), "u": unlabeled}, how)
    assert list(done.verdicts) == ["['l']"]
    assert torch.equal(~done.verdicts["['l']"].keep, labeled.is_wrong)
    assert done.module.seen == set((~labeled.is_wrong).nonzero().flatten().tolist())
    assert done.trainer.train_dataloader["u"].dataset is unlabeled.dataset
    said = [each.getMessage() for each in caplog.records if "not judged" in each.getMessage()]
    assert len(said) == 1
    assert said[0].startswith("sanitizer['u']: not judged and trained on as it is, since its samples ")


@pytest.mark.slow
@pytest.mark.parametrize("kind", COLLECTIONS)
def test_all_kinds_of_collections(world, fit, kind):
    labeled, unlabeled = world.numbered(), DataLoader(Unlabeled(FORMS["tuple"]), batch_size=32)
    done = fit(COLLECTIONS[kind](world.loader(labeled), unlabeled))
    (verdict,) = done.verdicts.values()
    assert torch.equal(~verdict.keep, labeled.is_wrong)
    assert done.module.seen <= set((~labeled.is_wrong).nonzero().flatten().tolist())


@pytest.mark.slow
@pytest.mark.parametrize("how", ["callback", "wrapper"])
def test_user_chooses_the_loaders(world, fit, how):
    labeled, other = world.numbered(), world.numbered(count=150, wrong=15, seed=1)
    done = fit([world.loader(labeled), world.loader(other)], how, loaders=["0"])
    assert list(done.verdicts) == ["[0]"]
    assert done.trainer.train_dataloader[1].dataset is other


def test_a_stream_beside_labeled_data_is_named_with_the_way_out(world, fit):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(torch.zeros(40, 4))

    loaders = {"l": world.loader(world.numbered()), "u": DataLoader(Stream(), 4)}
    with pytest.raises(
        UnsupportedDataError, match=r"\['u'\] (?s:.*)name those to judge, as in `loaders=\['labeled'\]`"
    ):
        fit(loaders)
    done = fit(loaders, loaders=["l"])
    assert list(done.verdicts) == ["['l']"]


def test_placeholder_labels_are_named_before_anything_is_scored(world, fit, centroid_scorer):
    scorer = centroid_scorer()
    loaders = [world.loader(world.numbered()), DataLoader(Unlabeled(lambda point: (point, 0)), 32)]
    with pytest.raises(ValueError, match=r"loader \[1\] to have .*the label 0\.\n.*`loaders=\['0'\]`"):
        world.trainer(world.sanitizer(scorer)).fit(world.module(), loaders)
    assert not scorer.fits


@pytest.mark.slow
def test_resumed_run_with_an_unlabeled_loader(world, fit, centroid_scorer):
    data = world.numbered()
    loaders = {"l": world.loader(data), "u": DataLoader(Unlabeled(FORMS["tuple"]), batch_size=32)}
    done = fit(loaders)
    done.trainer.save_checkpoint(world.path / "run.ckpt")
    scorer, module = centroid_scorer(), world.module()
    trainer = world.trainer(world.sanitizer(scorer), max_epochs=2)
    trainer.fit(module, loaders, ckpt_path=str(world.path / "run.ckpt"))
    assert not scorer.fits
    assert module.seen == done.module.seen


@pytest.mark.slow
@pytest.mark.parametrize("how", ["callback", "wrapper"])
@pytest.mark.parametrize("kind", ["subset", "weighted"])
def test_samples_that_the_sampler_never_draws_are_neither_judged_nor_removed(world, fit, how, kind):
    """Validation samples of the same data set, of which some are mislabeled."""
    data = world.numbered(count=360, wrong=36)
    drawn = (torch.arange(360) // 3 % 3 != 0).nonzero().flatten()
    weights = torch.zeros(360).index_fill(0, drawn, 1.0)
    sampler = SubsetRandomSampler(drawn) if kind == "subset" else WeightedRandomSampler(weights, 2_000)
    done = fit(DataLoader(data, batch_size=16, sampler=sampler), how)
    verdict = done.verdicts[""]
    wrong = data.is_wrong.nonzero().flatten().tolist()
    removed = (~verdict.keep).nonzero().flatten().tolist()
    assert removed == [each for each in wrong if each in drawn.tolist()]
    assert done.module.seen == set(drawn.tolist()) - set(removed)


@pytest.mark.slow
def test_an_unlabeled_pool_that_the_sampler_never_draws(world, fit):
    """As in active learning."""
    data = world.numbered(count=360, wrong=24)
    pool = torch.arange(360) >= 240
    data.targets[pool] = -1
    done = fit(DataLoader(data, batch_size=16, sampler=SubsetRandomSampler(range(240))))
    removed = ~done.verdicts[""].keep
    assert torch.equal(removed, data.is_wrong & ~pool)
