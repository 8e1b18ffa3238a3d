"""Pages and figures of a verdict during a training: whatever fails is a warning."""

import re
import warnings
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger
from matplotlib.figure import Figure
from PIL import Image

from lightning_poison._lightning.presentation import Presentation, Shown, log_figures, write_page
from lightning_poison.data.reading import ReadSettings
from lightning_poison.manifest.manifest import write_manifest
from lightning_poison.report.in_training import draw_figures
from lightning_poison.report.in_training import write_page as write_real_page
from lightning_poison.sanitization.evidence import Evidence
from lightning_poison.sanitization.verdict import Verdict
from lightning_poison.testing.tiny_images import TinyImages

REAL = Presentation(write_real_page, draw_figures)


@pytest.fixture
def shown():
    """A verdict on 30 images, of which three are removed."""
    posterior = (torch.arange(30) % 10 == 0).double() * 0.9
    labels = torch.arange(30) % 3
    verdict = Verdict(
        posterior, 1 - posterior, posterior < 0.5, labels, (labels + 1) % 3, torch.full((3,), torch.inf).double(),
        Evidence(True, 0.1, 0.05, 0.2, 0.95, 0.003), "wrong-label null", 0.01, "likelihood", "5f0c" * 8,
        posterior=posterior, posterior_threshold=0.5,
    )  # fmt: skip
    return Shown(verdict, TinyImages(30), ReadSettings(), None, False, "mine")


class Board:
    """The part of a `SummaryWriter` that is used."""

    def __init__(self):
        self.figures = {}

    def add_figure(self, tag, figure, global_step=None, close=True, walltime=None):
        assert not close
        self.figures[tag] = (figure, global_step)


class Client:
    """The part of an `MlflowClient` that is used."""

    def __init__(self):
        self.figures = {}

    def log_figure(self, run_id, figure, artifact_file, *, save_kwargs=None):
        self.figures[run_id, artifact_file] = figure


def tensorboard():
    class Fake(TensorBoardLogger):
        def __init__(self):
            self.board = Board()

        experiment = property(lambda self: self.board)

    return Fake()


def wandb():
    class Fake(WandbLogger):
        def __init__(self):
            self.images = {}

        def log_image(self, key, images, step=None, **kwargs):
            self.images[key] = (images, step, kwargs)

    return Fake()


def mlflow():
    class Fake(MLFlowLogger):
        def __init__(self):
            self.client = Client()

        experiment = property(lambda self: self.client)
        run_id = property(lambda self: "run 7")

    return Fake()


def test_every_logger_with_images_gets_the_figures(shown, tmp_path):
    loggers = [tensorboard(), wandb(), mlflow(), CSVLogger(tmp_path), DummyLogger()]
    log_figures(REAL, SimpleNamespace(loggers=loggers, global_step=5), "mine/0-a", shown)
    names = {"mine/0-a/scores", "mine/0-a/removed"}
    assert set(loggers[0].board.figures) == names
    assert all(isinstance(figure, Figure) and step == 5 for figure, step in loggers[0].board.figures.values())
    assert set(loggers[1].images) == names
    for images, step, options in loggers[1].images.values():
        assert [isinstance(each, Image.Image) and each.width > 300 for each in images] == [True]
        assert (step, options) == (5, {})
    assert set(loggers[2].client.figures) == {("run 7", f"{name}-5.png") for name in names}


def test_nothing_is_drawn_for_loggers_without_images(shown, tmp_path):
    def fail(*_, **__):
        raise AssertionError

    for trainer in (None, SimpleNamespace(loggers=[CSVLogger(tmp_path), DummyLogger()], global_step=0)):
        log_figures(Presentation(fail, fail), trainer, "mine", shown)


def test_figures_of_samples_that_are_no_images(shown):
    logger = tensorboard()
    vectors = [(torch.arange(3.0), 0)] * 30
    log_figures(REAL, SimpleNamespace(loggers=[logger], global_step=0), "mine", shown._replace(dataset=vectors))
    assert set(logger.board.figures) == {"mine/scores"}
    log_figures(REAL, SimpleNamespace(loggers=[logger], global_step=0), "mine", shown._replace(flag_only=True))
    assert set(logger.board.figures) == {"mine/scores", "mine/flagged"}


def test_figures_are_drawn_in_workers_of_the_data_set(shown):
    logger = tensorboard()
    reading = ReadSettings(num_workers=1, multiprocessing_context="fork")
    log_figures(REAL, SimpleNamespace(loggers=[logger], global_step=0), "mine", shown._replace(reading=reading))
    assert set(logger.board.figures) == {"mine/scores", "mine/removed"}


def test_page_is_written_beside_the_manifest_with_its_decisions(shown, tmp_path):
    kept = torch.tensor([0])
    write_manifest(tmp_path / "manifest.csv", shown.verdict, shown.dataset, kept_by_hand=kept)
    write_page(REAL, tmp_path, shown._replace(verdict=shown.verdict.with_kept(kept)))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<h1>Report of mine</h1>" in page
    assert "0,kept-by-hand," in page
    assert page.count("<img ") > 10


def failing(*_, **__):
    raise RuntimeError("no room \x1b[2J")


def test_failures_are_warnings(shown, tmp_path):
    broken = Presentation(failing, failing)
    with pytest.warns(
        UserWarning, match=r"report\.html of `mine` was not written to .*no room \\x1b.*\n.*report=False"
    ):
        write_page(broken, tmp_path, shown)
    with pytest.warns(UserWarning, match=r"Figures of `mine` were not logged: .*no room"):
        log_figures(broken, SimpleNamespace(loggers=[tensorboard()], global_step=0), "mine", shown)
    with pytest.warns(UserWarning, match=r"report\.html .* was not written"):  # no manifest is there
        write_page(REAL, tmp_path, shown)
    assert not list(tmp_path.iterdir())


def test_samples_that_cannot_be_read_again_end_nothing(shown, tmp_path):
    write_manifest(tmp_path / "manifest.csv", shown.verdict, shown.dataset)

    class Once:
        def __len__(self):
            return 30

        def __getitem__(self, index):
            raise OSError("read once only")

    with warnings.catch_warnings(action="error"):
        write_page(REAL, tmp_path, shown._replace(dataset=Once()))
    assert re.search("cannot be shown: .*read once only", (tmp_path / "report.html").read_text(encoding="utf-8"))


def test_interrupts_are_not_swallowed(shown, tmp_path):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_page(Presentation(interrupted, interrupted), tmp_path, shown)
