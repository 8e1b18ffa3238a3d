from contextlib import contextmanager

import pytest

from lightning_poison.runtime import LocalRuntime, SilentProgress
from lightning_poison.scorers.progress import progress_bar, progress_in


class Recording(LocalRuntime):
    """Records the bars that are shown, and their steps."""

    def __init__(self):
        super().__init__()
        self.bars = []

    @contextmanager
    def progress(self, total, description):
        self.bars.append([description, 0, total])
        yield self

    def advance(self, steps=1):
        self.bars[-1][1] += steps


def test_bars_are_those_of_the_surrounding_runtime():
    runtime = Recording()
    with progress_in(runtime), progress_bar(3, "Fitting") as bar:
        bar.advance(2)
    assert runtime.bars == [["Fitting", 2, 3]]


def test_nothing_is_shown_outside(capsys):
    runtime = Recording()
    with pytest.raises(KeyError), progress_in(runtime):
        raise KeyError
    with progress_bar(3, "Fitting") as bar:
        bar.advance()
    assert isinstance(bar, SilentProgress)
    assert not runtime.bars
    assert not capsys.readouterr().err
