"""The runtime of a Trainer, and progress bars in the style of the Trainer's own."""

import logging
from importlib import import_module
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import pytorch_lightning
import torch
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar, TQDMProgressBar
from torch.utils.data import DataLoader, TensorDataset

from lightning_poison._lightning.runtime import TrainerRuntime, open_runtime, trainer_progress
from lightning_poison.callbacks.sanitizer import Sanitizer
from lightning_poison.runtime import DEFAULT_THREADS, LocalRuntime, SilentProgress, all_ranks


@pytest.fixture(params=[pl, pytorch_lightning], ids=["lightning", "pytorch_lightning"])
def trainer(request, tmp_path):
    return request.param.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
    )


def test_one_process(trainer):
    runtime = TrainerRuntime(trainer, num_workers=2)
    assert (runtime.rank, runtime.world_size, runtime.num_workers) == (0, 1, 2)
    assert runtime.device == torch.device("cpu")
    assert runtime.threads == DEFAULT_THREADS == LocalRuntime().threads
    assert runtime.broadcast({"a": 1}) == {"a": 1}
    assert runtime.all_true(True)
    assert not runtime.all_true(False)
    with runtime.autocast(), runtime.progress(3, "scoring") as bar:
        bar.advance()


def test_sum_leaves_its_operand_unchanged(trainer):
    tensor = torch.arange(3.0).double()
    summed = TrainerRuntime(trainer).reduce_sum(tensor)
    summed += 1
    assert tensor.tolist() == [0, 1, 2]
    assert summed.dtype == torch.float64


def test_messages_go_to_lightnings_log(trainer, caplog):
    with caplog.at_level(logging.INFO):
        TrainerRuntime(trainer).announce("found something")
    assert "found something" in caplog.messages


def test_error_of_a_single_rank_is_raised_as_it_is(trainer):
    with pytest.raises(OSError, match="no more"), open_runtime(trainer) as runtime, all_ranks(runtime):
        raise OSError("no more")
    with open_runtime(trainer) as runtime, all_ranks(runtime):
        pass


def test_sigterm_ends_the_work_between_two_steps(trainer):
    namespace = type(trainer).__module__.partition(".trainer")[0]
    exception = import_module(f"{namespace}.utilities.exceptions").SIGTERMException
    runtime = TrainerRuntime(trainer)
    with runtime.progress(3, "scoring") as bar:
        bar.advance()
        trainer._signal_connector.received_sigterm = True
        with pytest.raises(exception):
            bar.advance()
    with pytest.raises(exception), all_ranks(runtime):
        pass


def test_local_runtime_without_a_trainer():
    with open_runtime(None, num_workers=3) as runtime:
        assert isinstance(runtime, LocalRuntime)
        assert runtime.num_workers == 3


class CustomBar(ProgressBar):
    """A custom progress bar."""

    disabled = False

    @property
    def is_disabled(self):
        return self.disabled


class DisabledBar(CustomBar):
    disabled = True


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)

    def training_step(self, batch, batch_idx):
        return self.layer(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


@pytest.fixture
def make_trainer(tmp_path):
    def make(*callbacks, namespace=pl, **settings):
        return namespace.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=1,
            logger=False,
            log_every_n_steps=1,
            enable_checkpointing=False,
            enable_model_summary=False,
            callbacks=list(callbacks),
            default_root_dir=tmp_path,
            **settings,
        )

    return make


def advance(trainer, total=20):
    with trainer_progress(trainer, total, "scoring data") as bar:
        for _ in range(total):
            bar.advance()
    return bar


@pytest.mark.parametrize("bar", [TQDMProgressBar, pytorch_lightning.callbacks.TQDMProgressBar])
def test_tqdm(make_trainer, capsys, bar):
    namespace = pl if bar is TQDMProgressBar else pytorch_lightning
    advance(make_trainer(bar(), namespace=namespace))
    messages = "".join(capsys.readouterr())
    assert "scoring data" in messages
    assert "0/20" in messages


def test_custom_tqdm_bar(make_trainer, capsys):
    class CustomTQDM(TQDMProgressBar):
        def init_predict_tqdm(self):
            bar = super().init_predict_tqdm()
            bar.color = "green"
            made.append(bar)
            return bar

    made = []
    advance(make_trainer(CustomTQDM()))
    assert len(made) == 1
    assert made[0].n == 20
    assert made[0].disable or made[0].total == 20


def test_rich_before_its_display_is_live(make_trainer, capsys):
    trainer = make_trainer(RichProgressBar())
    advance(trainer)
    assert trainer.progress_bar_callback.progress is None


def test_rich_within_its_live_display(make_trainer):
    host = RichProgressBar()
    trainer = make_trainer(host)
    host._trainer = trainer
    host._init_progress(trainer)
    with trainer_progress(trainer, 5, "scoring data") as bar:
        bar.advance(2)
        (task,) = host.progress.tasks
        assert (task.description, task.completed, task.total) == ("scoring data", 2, 5)
    assert not host.progress.tasks
    assert host.progress.live.is_started
    host.progress.stop()


def test_custom_bar_gets_messages(make_trainer, caplog):
    with caplog.at_level(logging.INFO):
        advance(make_trainer(CustomBar()))
    messages = [message for message in caplog.messages if message.startswith("scoring data")]
    assert messages == [f"scoring data: {done} of 20" for done in range(2, 21, 2)]


@pytest.mark.parametrize(
    "bar",
    [TQDMProgressBar(refresh_rate=0), RichProgressBar(refresh_rate=0), DisabledBar()],
    ids=["tqdm", "rich", "own"],
)
def test_no_bar_if_the_trainer_shows_none(make_trainer, capsys, bar):
    assert isinstance(advance(make_trainer(bar)), SilentProgress)
    assert "scoring" not in "".join(capsys.readouterr())


def test_no_bar_if_disabled_and_on_other_ranks(make_trainer):
    assert isinstance(advance(make_trainer(enable_progress_bar=False)), SilentProgress)
    second = SimpleNamespace(progress_bar_callback=TQDMProgressBar(), global_rank=1)
    assert isinstance(advance(second), SilentProgress)


def test_no_bar_without_steps(make_trainer):
    assert isinstance(advance(make_trainer(TQDMProgressBar()), total=0), SilentProgress)


@pytest.mark.slow
@pytest.mark.parametrize("early", [False, True], ids=["before training", "in configure_optimizers"])
@pytest.mark.parametrize("bar", [TQDMProgressBar, RichProgressBar, CustomBar])
def test_full_run(make_trainer, blobs, centroid_scorer, capsys, bar, early):
    class Estimating(Module):
        def configure_optimizers(self):
            assert self.trainer.estimated_stepping_batches > 0
            return super().configure_optimizers()

    sanitizer = Sanitizer(centroid_scorer())
    data = blobs(flipped=60)
    loader = DataLoader(TensorDataset(*data.tensors), 32)
    make_trainer(bar(), sanitizer).fit((Estimating if early else Module)(), loader)
    assert not sanitizer.verdict.keep.all()
