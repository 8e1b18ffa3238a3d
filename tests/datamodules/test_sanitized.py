"""`SanitizedDataModule` decides once, reuses its decision, and checks it if the data may have changed."""

import csv

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from lightning_poison.errors import DataChangedError, UnsupportedDataError
from lightning_poison.sanitization.verdict import Verdict

ONE_DECISION = 3
"""Number of fits per decision, one per fold."""


def test_trains_on_the_kept_samples(kit, assert_clean):
    module, data = kit.module(), kit.sanitized(kit.plain())
    kit.trainer(max_epochs=2).fit(module, datamodule=data)
    assert_clean(module, data)
    assert data.verdicts.keys() == {""}


@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`:UserWarning")
def test_validation_data_are_unchanged(kit):
    class Validated(kit.plain):
        def val_dataloader(self):
            return DataLoader(self.train_set, batch_size=120)

    data = kit.sanitized(Validated())
    kit.trainer().fit(kit.module(), datamodule=data)
    assert len(data.val_dataloader().dataset) == 120


def test_reloading_each_epoch_scores_once(kit, assert_clean):
    module, data = kit.module(), kit.sanitized(kit.plain())
    kit.trainer(max_epochs=3, reload_dataloaders_every_n_epochs=1).fit(module, datamodule=data)
    assert_clean(module, data)
    assert len(kit.scorer.fits) == ONE_DECISION


def test_reloading_a_new_data_set_object_scores_once(kit, assert_clean):
    class Fresh(kit.plain):
        def train_dataloader(self):
            return kit.loader(kit.numbered())

    module, data = kit.module(), kit.sanitized(Fresh())
    kit.trainer(max_epochs=3, reload_dataloaders_every_n_epochs=1).fit(module, datamodule=data)
    assert_clean(module, data)
    assert len(kit.scorer.fits) == ONE_DECISION


def test_flag_removes_nothing(kit):
    module, data = kit.module(), kit.sanitized(kit.plain(), action="flag")
    kit.trainer().fit(module, datamodule=data)
    assert len(set(module.epochs[0])) == 120
    assert int((~data.verdict.keep).sum()) == 12


def test_without_a_trainer(kit):
    data = kit.sanitized(kit.plain())
    data.prepare_data()
    data.setup("fit")
    numbers = [number for _, _, numbers in data.train_dataloader() for number in numbers.int().tolist()]
    assert sorted(numbers) == list(range(12, 120))
    assert "12 removed" in str(data.verdict)


def test_no_verdict_before_the_data_are_requested(kit):
    with pytest.raises(RuntimeError, match="available once training has started"):
        _ = kit.sanitized(kit.plain()).verdict


def test_second_fit_does_not_score_again(kit, assert_clean):
    data = kit.sanitized(kit.plain())
    for _ in range(2):
        module = kit.module()
        kit.trainer().fit(module, datamodule=data)
        assert_clean(module, data)
    assert len(kit.scorer.fits) == ONE_DECISION


def test_second_fit_judges_labels_changed_in_place_anew(kit):
    dataset = kit.numbered()
    data = kit.sanitized(kit.loader(dataset))
    kit.trainer().fit(kit.module(), datamodule=data)
    before = data.verdict
    dataset.targets[100] = (dataset.targets[100] + 1) % 3
    kit.trainer().fit(kit.module(), datamodule=data)
    assert before.keep[100]
    assert not data.verdict.keep[100]


@pytest.mark.slow
@pytest.mark.parametrize("namespace", ["lightning", "pytorch_lightning"])
def test_resumed_run_does_not_score_again(kit, assert_clean, centroid_scorer, namespace):
    import pytorch_lightning

    host = pl if namespace == "lightning" else pytorch_lightning
    make = kit.module if namespace == "lightning" else kit.other_module
    data, path = kit.sanitized(kit.plain()), kit.path / "last.ckpt"
    trainer = kit.trainer(namespace=host)
    trainer.fit(make(), datamodule=data)
    trainer.save_checkpoint(path)

    scorer, module = centroid_scorer(), make()
    resumed = kit.sanitized(kit.plain(), scorer=scorer)
    kit.trainer(namespace=host, max_epochs=2).fit(module, datamodule=resumed, ckpt_path=path)
    assert not scorer.fits
    assert_clean(module, resumed)
    assert torch.equal(resumed.verdict.scores, data.verdict.scores)


def test_resumed_run_refuses_other_data(kit):
    path, trainer = kit.path / "last.ckpt", kit.trainer()
    trainer.fit(kit.module(), datamodule=kit.sanitized(kit.plain(wrong=12)))
    trainer.save_checkpoint(path)
    with pytest.raises(DataChangedError, match="made for other labels: 3 differ, the first at sample 12"):
        kit.trainer(max_epochs=2).fit(kit.module(), datamodule=kit.sanitized(kit.plain(wrong=15)), ckpt_path=path)


@pytest.mark.slow
def test_nested_sanitizers_resume_with_their_own_verdicts(kit, centroid_scorer):
    def nested(scorer):
        return kit.sanitized(kit.sanitized(kit.plain(), scorer=scorer, name="inner"), scorer=scorer, name="outer")

    path, trainer, first = kit.path / "last.ckpt", kit.trainer(), nested(kit.scorer)
    trainer.fit(kit.module(), datamodule=first)
    trainer.save_checkpoint(path)
    assert [len(first.inner.verdict), len(first.verdict)] == [120, 108]
    scorer = centroid_scorer()
    second = nested(scorer)
    kit.trainer(max_epochs=2).fit(kit.module(), datamodule=second, ckpt_path=path)
    assert not scorer.fits
    assert [len(second.inner.verdict), len(second.verdict)] == [120, 108]


def test_files_and_values_are_in_the_log_directory(kit):
    data = kit.sanitized(kit.plain(), name="mine")
    kit.trainer(logger=CSVLogger(kit.path)).fit(kit.module(), datamodule=data)
    run = kit.path / "lightning_logs" / "version_0"
    folder = run / "sanitizer_reports" / "mine"
    assert Verdict.load(folder / "verdict.safetensors").agrees_with(data.verdict)
    assert (folder / "manifest.csv").is_file()
    with (run / "metrics.csv").open() as file:
        assert float(next(csv.DictReader(file))["mine/removed_fraction"]) == pytest.approx(0.1)


@pytest.mark.filterwarnings("ignore:The number of training batches:UserWarning")
def test_values_are_logged_after_a_tuner(kit):
    class Tuned(kit.module):
        lr = 1e-3

        def on_train_epoch_start(self):
            self.epochs.append([])

    logger = CSVLogger(kit.path)
    finder = LearningRateFinder(num_training_steps=5, early_stop_threshold=None)
    data = kit.sanitized(kit.plain())
    kit.trainer(logger=logger, callbacks=[finder]).fit(Tuned(), datamodule=data)
    rows = (kit.path / "lightning_logs" / "version_0" / "metrics.csv").read_text().splitlines()
    assert "sanitizer/removed_fraction" in rows[0]
    assert len(kit.scorer.fits) == ONE_DECISION


def test_distributed_sampling_serves_the_kept_samples(kit, assert_clean):
    module, data = kit.module(), kit.sanitized(kit.plain())
    kit.trainer(strategy="ddp").fit(module, datamodule=data)
    assert_clean(module, data)


def test_refuses_iterable_data(kit):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield torch.zeros(4), 0

    with pytest.raises(UnsupportedDataError, match="iterable only"):
        kit.sanitized(DataLoader(Stream())).train_dataloader()


def test_refuses_controls(kit, centroid_scorer):
    control = centroid_scorer()
    control.is_control = True
    with pytest.raises(ValueError, match="is a control"):
        kit.sanitized(kit.plain(), scorer=control)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"scorer": "likelihood"}, ValueError, "Expected `scorer` to be a scorer"),
        ({"action": "delete"}, ValueError, "Expected `action` to be one of 'remove', 'flag', but got delete"),
        ({"false_positive_rate": 1}, ValueError, "For 1 % write"),
        ({"max_removed": 0}, ValueError, "Expected `max_removed`"),
        ({"name": "../up"}, ValueError, "Expected `name` to be letters"),
    ],
)
def test_refuses_invalid_arguments_at_once(kit, arguments, kind, message):
    with pytest.raises(kind, match=message):
        kit.sanitized(kit.plain(), **arguments)
