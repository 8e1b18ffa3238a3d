import copy
import threading

import pytest
import torch
from torch.utils.data import TensorDataset

from lightning_poison.data.labeled_data import read_labeled
from lightning_poison.data.source import open_source
from lightning_poison.errors import PluginError, RankFailedError
from lightning_poison.runtime import LocalRuntime
from lightning_poison.sanitization.job import Job
from lightning_poison.scorers.protocol import Scorer

DATA = TensorDataset(torch.arange(12.0)[:, None], torch.arange(12) % 2)
PLACE = threading.local()


class Center(Scorer):
    """Fails on rank 1 in one of its methods. Its center differs between ranks, as weights on other hardware."""

    name, fitted_tensors = "center", ("center",)

    def __init__(self, fails_in=""):
        self.fails_in = fails_in

    def _enter(self, method):
        if method == self.fails_in and getattr(PLACE, "rank", 0) == 1:
            raise ValueError(f"{method} failed")

    def __deepcopy__(self, memo):
        self._enter("copy")
        made = Center(self.fails_in)
        made.__dict__.update(copy.deepcopy(vars(self), memo))
        return made

    def fit(self, trusted, *, runtime=None, generator=None):
        self._enter("fit")
        self.center = torch.full((1,), 7.0 + getattr(PLACE, "rank", 0))
        return self

    def score_batch(self, inputs, labels):
        return (inputs - self.center).abs()[:, 0]

    def state(self):
        self._enter("state")
        return super().state()

    def load(self, state):
        self._enter("load")
        return super().load(state)


def fit_on(runtime, model):
    PLACE.rank = runtime.rank
    quiet = LocalRuntime(precision="32", threads=1, quiet=True)
    data = read_labeled(open_source(DATA, sample=None), runtime=quiet, name="data")
    return Job(data, model, runtime).fit(model, lambda: DATA, "test")


def test_fitted_model_is_that_of_rank_0_on_every_rank(several_ranks):
    model = Center()
    fitted = several_ranks(2, lambda runtime: fit_on(runtime, model))
    assert [each.center.item() for each in fitted] == [7.0, 7.0]
    assert not model.is_fitted


@pytest.mark.parametrize("method", ["copy", "fit", "state", "load"])
def test_failure_on_one_rank_reaches_all(several_ranks, method):
    model = Center(method)
    others, failing = several_ranks(2, lambda runtime: fit_on(runtime, model))
    assert isinstance(failing, PluginError | ValueError)
    assert f"{method} failed" in str(failing)
    assert isinstance(others, RankFailedError)
    assert "rank 1" in str(others).lower()
