"""Verdicts are written, logged, and can be overruled by hand."""

import csv
import errno
import logging
import re
import warnings

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, Logger

from lightning_poison.datamodules import SanitizedDataModule
from lightning_poison.errors import ManifestError
from lightning_poison.manifest.manifest import Manifest, keep_by_hand, read_manifest
from lightning_poison.sanitization.verdict import Verdict

VALUES = {
    f"sanitizer/{name}"
    for name in ("removed_fraction", "contamination", "contamination_low", "contamination_high", "evidence")
}


class RecordingLogger(Logger):
    """Records all metrics."""

    save_dir = None

    def __init__(self, directory=None):
        super().__init__()
        self.metrics = []
        self.directory = directory

    @property
    def name(self):
        return "recording"

    @property
    def version(self):
        return 0

    @property
    def log_dir(self):
        return self.directory

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        self.metrics.append((metrics, step))


def test_files_are_in_the_log_directory(world):
    sanitizer, data = world.sanitizer(), world.numbered()
    world.trainer(sanitizer, logger=CSVLogger(world.path)).fit(world.module(), world.loader(data))
    directory = world.path / "lightning_logs" / "version_0" / "sanitizer_reports" / "sanitizer"
    assert {path.name for path in directory.iterdir()} == {"verdict.safetensors", "manifest.csv", "report.html"}
    stored = Verdict.load(directory / "verdict.safetensors")
    assert torch.equal(stored.keep, sanitizer.verdict.keep)
    rows = read_manifest(directory / "manifest.csv").rows
    assert {row.sample_id for row in rows} == set(data.is_wrong.nonzero().flatten().tolist())
    assert {row.decision for row in rows} == {"removed"}


@pytest.mark.parametrize("how", ["callback", "wrapper"])
def test_report_has_the_samples_of_the_manifest(world, how):
    data, folder = world.numbered(), world.path / "here"
    if how == "callback":
        world.trainer(world.sanitizer(dirpath=folder)).fit(world.module(), world.loader(data))
    else:
        scorer = world.sanitizer().loader_sanitizer.settings.scorer
        module = SanitizedDataModule(world.loader(data), scorer, dirpath=folder)
        world.trainer().fit(world.module(), datamodule=module)
    page = (folder / "report.html").read_text(encoding="utf-8")
    shown = {int(each) for each in re.findall(r'<tr role="row" data-id="(\d+)" data-label', page)}
    assert shown == {row.sample_id for row in read_manifest(folder / "manifest.csv").rows}
    assert "Report of sanitizer" in page


@pytest.mark.parametrize("how", ["callback", "wrapper"])
def test_no_report_if_it_is_turned_off(world, how):
    folder, scorer = world.path / "here", world.sanitizer().loader_sanitizer.settings.scorer
    loader = world.loader(world.numbered())
    if how == "callback":
        world.trainer(world.sanitizer(dirpath=folder, report=False)).fit(world.module(), loader)
    else:
        module = SanitizedDataModule(loader, scorer, dirpath=folder, report=False)
        world.trainer().fit(world.module(), datamodule=module)
    assert {path.name for path in folder.iterdir()} == {"cache", "verdict.safetensors", "manifest.csv"}
    with pytest.raises(ValueError, match="`report` to be True or False"):
        world.sanitizer(report="no")


def test_a_report_that_cannot_be_written_is_a_warning(world, monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr("lightning_poison.report.page.write_report", fail)
    module, data = world.module(), world.numbered()
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", message="report")
        world.trainer(world.sanitizer(dirpath=world.path / "here")).fit(module, world.loader(data))
    (message,) = unwritten(caught)
    assert re.search(r"report\.html of `sanitizer` was not written to .*MemoryError", message)
    assert module.seen == set((~data.is_wrong).nonzero().flatten().tolist())
    assert (world.path / "here" / "manifest.csv").is_file()


def test_figures_reach_loggers_that_take_images(world):
    class Board(RecordingLogger):
        def __init__(self):
            super().__init__()
            self.figures = []

        @property
        def experiment(self):
            return self

        def add_figure(self, tag, figure, global_step, close):
            self.figures.append((tag, global_step))

    logger = Board()
    world.trainer(world.sanitizer(), logger=[logger, RecordingLogger()]).fit(
        world.module(), world.loader(world.numbered())
    )
    assert logger.figures == [("sanitizer/scores", 0)]  # samples are no images
    logger.figures.clear()
    world.trainer(world.sanitizer(report=False), logger=logger).fit(world.module(), world.loader(world.numbered()))
    assert logger.figures == []


def test_files_without_a_logger_are_in_the_root_directory(world):
    world.trainer(world.sanitizer(name="mine")).fit(world.module(), world.loader(world.numbered()))
    assert (world.path / "sanitizer_reports" / "mine" / "manifest.csv").is_file()


@pytest.mark.slow
def test_several_loaders_have_separate_folders(world):
    loader = world.loader(world.numbered())
    sanitizer = world.sanitizer(dirpath=str(world.path / "here"))
    world.trainer(sanitizer).fit(world.module(), {"a": loader, "b/..": [loader]})
    assert sorted(path.name for path in (world.path / "here").iterdir()) == ["0-a", "1-b-0", "cache"]


def test_manifest_contains_flags(world):
    sanitizer = world.sanitizer(action="flag", dirpath=str(world.path / "here"))
    world.trainer(sanitizer).fit(world.module(), world.loader(world.numbered()))
    rows = read_manifest(world.path / "here" / "manifest.csv").rows
    assert {row.decision for row in rows} == {"flagged"}


def test_values_reach_all_loggers_once(world):
    loggers = [RecordingLogger(), CSVLogger(world.path), RecordingLogger()]
    data = world.numbered()
    trainer = world.trainer(world.sanitizer(), logger=loggers, max_epochs=2, reload_dataloaders_every_n_epochs=1)
    trainer.fit(world.module(), world.loader(data))
    for logger in (loggers[0], loggers[2]):
        ((metrics, step),) = [each for each in logger.metrics if "sanitizer/evidence" in each[0]]
        assert set(metrics) == VALUES
        assert metrics["sanitizer/removed_fraction"] == pytest.approx(data.is_wrong.double().mean().item())
        assert metrics["sanitizer/evidence"] == 1
        assert step == 0
    with (world.path / "lightning_logs" / "version_0" / "metrics.csv").open() as file:
        assert set(next(csv.reader(file))) >= VALUES


@pytest.mark.slow
def test_values_of_several_loaders_are_named_after_their_folders(world):
    logger, loader = RecordingLogger(), world.loader(world.numbered())
    sanitizer = world.sanitizer(dirpath=str(world.path / "here"))
    world.trainer(sanitizer, logger=logger).fit(world.module(), {"a": loader, "b/\x1b..": [loader]})
    names = {name.rpartition("/")[0] for metrics, _ in logger.metrics for name in metrics if "evidence" in name}
    assert names == {"sanitizer/0-a", "sanitizer/1-b-x1b-0"}
    assert names == {f"sanitizer/{path.name}" for path in (world.path / "here").iterdir() if path.name != "cache"}


@pytest.mark.slow
def test_summary_is_logged(world, caplog):
    with caplog.at_level(logging.INFO):
        world.trainer(world.sanitizer()).fit(world.module(), world.loader(world.numbered()))
    messages = "\n".join(caplog.messages)
    assert "sanitizer: 240 samples scored by centroid; 24 removed (10.00 %)" in messages
    assert f"writing verdict and manifest to {world.path}" in messages


@pytest.fixture
def reviewed(world):
    """Return the path of a manifest with two samples kept by hand, and their ids."""
    world.trainer(world.sanitizer(dirpath=str(world.path / "first"))).fit(
        world.module(), world.loader(world.numbered())
    )
    path = world.path / "first" / "manifest.csv"
    ids = [row.sample_id for row in read_manifest(path).rows[:2]]
    keep_by_hand(path, ids)
    return path, ids


def test_samples_kept_by_hand_are_kept_in_the_next_manifest(world, reviewed):
    path, ids = reviewed
    data, module = world.numbered(), world.module()
    sanitizer = world.sanitizer(manifest=str(path), dirpath=str(world.path / "second"))
    world.trainer(sanitizer).fit(module, world.loader(data))
    kept = set((~data.is_wrong).nonzero().flatten().tolist()) | set(ids)
    assert module.seen == kept == set(sanitizer.verdict.keep.nonzero().flatten().tolist())
    rows = read_manifest(world.path / "second" / "manifest.csv").rows
    assert {row.sample_id for row in rows if row.decision == "kept-by-hand"} == set(ids)
    assert len(rows) == int(data.is_wrong.sum())


def test_samples_removed_by_hand_are_not_trained_on(world, reviewed):
    path, ids = reviewed
    data, manifest = world.numbered(), read_manifest(path)
    gone = int((~data.is_wrong).nonzero()[3])
    verdict = Verdict.load(path.with_name("verdict.safetensors"))
    extra = Manifest.from_verdict(verdict, data, removed_by_hand=torch.tensor([gone])).rows
    Manifest((*manifest.rows, *(row for row in extra if row.sample_id == gone))).write(path)
    module, target = world.module(), world.path / "second"
    sanitizer = world.sanitizer(manifest=str(path), dirpath=str(target))
    world.trainer(sanitizer).fit(module, world.loader(data))
    assert module.seen == set((~data.is_wrong).nonzero().flatten().tolist()) - {gone} | set(ids)
    assert sanitizer.verdict.removed_by_hand.nonzero().flatten().tolist() == [gone]
    words = {row.sample_id: row.decision for row in read_manifest(target / "manifest.csv").rows}
    assert [index for index, word in words.items() if word == "removed-by-hand"] == [gone]
    assert Verdict.load(target / "verdict.safetensors").removed_by_hand[gone]
    # A later run without the manifest does not overwrite these decisions.
    world.trainer(world.sanitizer(dirpath=str(target))).fit(world.module(), world.loader(data))
    assert (target / "manifest.previous-1.csv").exists()


@pytest.mark.parametrize("verdict_is_lost", [False, True])
def test_resumed_run_writes_what_was_decided_by_hand_as_such(world, caplog, verdict_is_lost):
    data, target, path = world.numbered(), world.path / "here", world.path / "edited.csv"
    gone = (~data.is_wrong).nonzero().flatten()[[3, 8]]
    first = world.sanitizer(dirpath=str(world.path / "first"))
    world.trainer(first).fit(world.module(), world.loader(data))
    kept = torch.cat([first.verdict.removed[:2], first.verdict.keep.nonzero().flatten()[-1:]])
    Manifest.from_verdict(first.verdict, data, removed_by_hand=gone, kept_by_hand=kept).write(path)
    trainer = world.trainer(world.sanitizer(manifest=str(path), dirpath=str(target)))
    trainer.fit(world.module(), world.loader(data))
    trainer.save_checkpoint(world.path / "run.ckpt")
    written = read_manifest(target / "manifest.csv")
    assert written.removed_by_hand(data).tolist() == gone.tolist()
    assert written.kept_by_hand(data).tolist() == sorted(kept.tolist())
    if verdict_is_lost:
        (target / "verdict.safetensors").unlink()  # the cache has the decision, the checkpoint what was decided by hand
    module, resumed = world.module(), world.sanitizer(dirpath=str(target))
    world.trainer(resumed, max_epochs=2).fit(module, world.loader(data), ckpt_path=str(world.path / "run.ckpt"))
    assert module.seen.isdisjoint(gone.tolist())
    assert module.seen >= set(kept.tolist())
    assert read_manifest(target / "manifest.csv") == written
    assert not list(target.glob("manifest.previous-*"))
    assert "edited by hand" not in caplog.text


def test_manifest_may_be_parquet(world, reviewed):
    path, ids = reviewed
    read_manifest(path).write(path.with_suffix(".parquet"))
    sanitizer = world.sanitizer(manifest=str(path.with_suffix(".parquet")), dirpath=str(world.path / "second"))
    world.trainer(sanitizer).fit(world.module(), world.loader(world.numbered()))
    assert sanitizer.verdict.keep[ids].all()


def test_manifest_may_be_overwritten(world, reviewed):
    path, ids = reviewed
    for _ in range(2):
        sanitizer = world.sanitizer(manifest=str(path), dirpath=str(path.parent))
        world.trainer(sanitizer).fit(world.module(), world.loader(world.numbered()))
        assert sanitizer.verdict.keep[ids].all()


def test_invalid_manifest_is_refused_before_scoring(world, reviewed, centroid_scorer):
    path, _ = reviewed
    path.write_text(path.read_text().replace("removed", "gone", 1))
    scorer, module = centroid_scorer(), world.module()
    trainer = world.trainer(world.sanitizer(scorer, manifest=str(path)))
    with pytest.raises(ManifestError, match="gone"):
        trainer.fit(module, world.loader(world.numbered()))
    assert not scorer.fits
    assert not module.epochs


def test_refuses_a_manifest_of_other_data(world, reviewed):
    module = world.module()
    trainer = world.trainer(world.sanitizer(manifest=str(reviewed[0])))
    with pytest.raises(ManifestError, match="kept by hand"):
        trainer.fit(module, world.loader(world.numbered(seed=1)))
    assert not module.epochs


@pytest.mark.parametrize("action", ["remove", "flag"])
def test_an_unwritable_directory_of_the_user_is_refused_before_scoring(world, centroid_scorer, action):
    (world.path / "file").write_text("")
    scorer, module = centroid_scorer(), world.module()
    sanitizer = world.sanitizer(scorer, dirpath=str(world.path / "file" / "deep"), action=action)
    with pytest.raises(OSError, match=r"`dirpath` to be a folder .*Not a directory\.\nNothing has been scored yet"):
        world.trainer(sanitizer).fit(module, world.loader(world.numbered()))
    assert not scorer.fits
    assert not module.epochs


def unwritten(caught):
    return [str(each.message) for each in caught if "written to" in str(each.message)]


@pytest.mark.parametrize("action", ["remove", "flag"])
def test_training_goes_on_if_the_default_directory_cannot_be_written(world, action):
    (world.path / "sanitizer_reports").write_text("")
    sanitizer, module = world.sanitizer(action=action, cache=False), world.module()
    trainer = world.trainer(sanitizer, max_epochs=2, reload_dataloaders_every_n_epochs=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", message="Verdict and manifest")
        trainer.fit(module, world.loader(world.numbered()))
    (message,) = unwritten(caught)
    assert re.search(r"will not be written to .*sanitizer_reports.*Not a directory\..*\n.*`dirpath=", message)
    assert len(module.epochs) == 2
    sanitizer.verdict.save(world.path / "verdict.safetensors")
    assert torch.equal(Verdict.load(world.path / "verdict.safetensors").keep, sanitizer.verdict.keep)


@pytest.mark.parametrize("fault", ["file", "full disk"])
def test_training_goes_on_without_a_cache(world, monkeypatch, fault):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    if fault == "file":
        (world.path / "sanitizer_cache").write_text("mine")
    else:
        monkeypatch.setattr("lightning_poison.sanitization.units.check_writable", full)
        monkeypatch.setattr("lightning_poison.sanitization.units.write_tensors", full)
    sanitizer, module = world.sanitizer(), world.module()
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", message="Unfinished work")
        world.trainer(sanitizer).fit(module, world.loader(world.numbered()))
    (message,) = [str(each.message) for each in caught if "Unfinished work" in str(each.message)]
    assert ("File exists" if fault == "file" else "No space left on device") in message
    assert module.seen == set(sanitizer.verdict.keep.nonzero().flatten().tolist())


@pytest.mark.parametrize("given", [True, False])
def test_training_goes_on_if_the_disk_is_full_when_files_are_written(world, monkeypatch, given):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    directory = world.path / "here" if given else None
    sanitizer, module = world.sanitizer(dirpath=directory, cache=False), world.module()
    monkeypatch.setattr(Verdict, "save", full)
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", message="Verdict and manifest")
        world.trainer(sanitizer).fit(module, world.loader(world.numbered()))
    (message,) = unwritten(caught)
    assert re.search(r"were not completely written to .*: No space left on device\.", message)
    assert module.seen == set(sanitizer.verdict.keep.nonzero().flatten().tolist())
    folder = directory or world.path / "sanitizer_reports" / "sanitizer"
    assert [path.name for path in folder.iterdir()] == ["manifest.csv"]  # what can be written is


def test_edited_manifest_that_is_not_passed_is_renamed(world, reviewed, caplog):
    path, ids = reviewed
    edited = path.read_text()
    caplog.set_level("INFO")
    for _ in range(2):
        sanitizer = world.sanitizer(dirpath=str(path.parent))
        world.trainer(sanitizer).fit(world.module(), world.loader(world.numbered()))
    assert not sanitizer.verdict.keep[ids].any()
    assert (path.parent / "manifest.previous-1.csv").read_text() == edited
    assert not (path.parent / "manifest.previous-2.csv").exists()
    assert f"pass `manifest='{path.parent / 'manifest.previous-1.csv'}'`" in caplog.text
