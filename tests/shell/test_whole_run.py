import io
import sys

import pytest

from lightning_poison.runtime import section
from lightning_poison.shell import whole_run
from lightning_poison.shell.whole_run import WholeRun


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Return a list whose only number is the time."""
    now = [100.0]
    monkeypatch.setattr(whole_run.time, "monotonic", lambda: now[0])
    return now


def test_parts_advance_one_share_that_never_falls():
    runtime, seen = WholeRun(), []
    with runtime.shown():
        for number in range(2):
            with section(number / 2, (number + 1) / 2):
                with section(0, 0.8), runtime.progress(4, "Fitting") as part:
                    for _ in range(4):
                        part.advance()
                        seen.append(runtime.done)
                with runtime.progress(1, "Scoring") as part:
                    part.advance()
                    seen.append(runtime.done)
                with runtime.progress(2, "once more") as part:
                    part.advance()
                    seen.append(runtime.done)
    assert seen == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1])


def test_lines_if_there_is_no_terminal(monkeypatch, clock):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    runtime = WholeRun()
    with runtime.shown(), runtime.progress(10, "Fitting fold 1") as part:
        for _ in range(8):
            clock[0] += 10
            part.advance()
        runtime.announce("a message")
    assert sys.stderr.getvalue().splitlines() == [
        "30 % after 30 s, about 1 min 10 s left: Fitting fold 1",
        "60 % after 1 min 0 s, about 40 s left: Fitting fold 1",
        "a message",
    ]


def test_one_bar_on_a_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    runtime = WholeRun()
    with runtime.shown(), runtime.progress(4, "Fitting fold 1") as part:
        part.advance(3)
        runtime.announce("a message")
        with runtime.aside():
            sys.stderr.write("another")
    shown = sys.stderr.getvalue()
    assert "Fitting fold 1  75 %|" in shown
    assert "steps/s" in shown
    assert "a message\n" in shown
    assert "another" in shown


def test_parts_without_steps_change_nothing():
    runtime = WholeRun()
    with runtime.shown(), runtime.progress(0, "nothing") as part:
        part.advance()
    assert runtime.done == 0
