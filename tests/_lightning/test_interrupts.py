"""SIGTERM during scoring: Lightning's handler without its collective, restored afterwards."""

import os
import signal

import lightning.pytorch as pl
import pytest
import pytorch_lightning

from lightning_poison._lightning.interrupts import has_sigterm, heeding_sigterm, sigterm_exception


@pytest.fixture(params=[pl, pytorch_lightning], ids=["lightning", "pytorch_lightning"])
def trainer(request, tmp_path):
    made = request.param.Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    yield made
    signal.signal(signal.SIGTERM, before)


def test_lightning_has_the_private_names(trainer):
    connector = trainer._signal_connector
    assert connector.received_sigterm is False
    connector.register_signal_handlers()
    assert connector._sigterm_notifier_fn in signal.getsignal(signal.SIGTERM).signal_handlers


def test_signal_is_noted_without_lightnings_handler(trainer, monkeypatch):
    connector = trainer._signal_connector
    monkeypatch.setattr(type(connector), "_sigterm_notifier_fn", lambda *_: pytest.fail("it uses a collective"))
    received = []
    signal.signal(signal.SIGTERM, lambda *_: received.append("the user's handler"))
    connector.register_signal_handlers()
    handler = signal.getsignal(signal.SIGTERM)
    with heeding_sigterm(trainer), heeding_sigterm(trainer):
        assert not has_sigterm(trainer)
        os.kill(os.getpid(), signal.SIGTERM)
        assert has_sigterm(trainer)
    assert received == ["the user's handler"]
    assert signal.getsignal(signal.SIGTERM) is handler


def test_processes_of_the_launcher_receive_the_signal_once(trainer, monkeypatch):
    class Launcher:
        sent = []  # noqa: RUF012 (a test looks at it)

        def kill(self, number):
            self.sent.append(number)

    trainer._signal_connector.register_signal_handlers()
    monkeypatch.setattr(trainer.strategy, "_launcher", Launcher())
    with heeding_sigterm(trainer):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
    assert Launcher.sent == [signal.SIGTERM]


def test_other_handlers_stay(trainer):
    def own(number, frame):
        raise AssertionError

    signal.signal(signal.SIGTERM, own)
    with heeding_sigterm(trainer):
        assert signal.getsignal(signal.SIGTERM) is own


def test_exception_is_that_of_the_namespace(trainer):
    exception = sigterm_exception(trainer)
    assert isinstance(exception, SystemExit)
    assert type(exception).__module__.partition(".")[0] == type(trainer).__module__.partition(".")[0]
