import pytest
import torch
from torch.utils.data import DataLoader, Subset

from lightning_poison._lightning.judged_data import JudgedData
from lightning_poison._lightning.loader_decision import LoaderDecision
from lightning_poison._lightning.records import Edits
from lightning_poison.data.reading import ReadSettings
from lightning_poison.data.source import Readable
from lightning_poison.errors import NothingKeptError
from lightning_poison.sanitization.pipeline import sanitize
from lightning_poison.sanitization.stored_decision import StoredDecision


@pytest.fixture
def data(blobs):
    return blobs(flipped=60)


@pytest.fixture
def decide(centroid_scorer):
    """Return a function that decides about a data set, as a verdict or as a checkpoint stores it."""

    def decide(data, *, stored=False):
        verdict = sanitize(data, centroid_scorer())
        made = StoredDecision.of(verdict) if stored else verdict
        judged = [JudgedData.of(Readable(data), made)]
        return LoaderDecision(made=made, edits=Edits(), dataset=data, reading=ReadSettings(), judged=judged)

    return decide


def is_about(decision, dataset):
    return decision.is_about(DataLoader(dataset, batch_size=8), sample=None, seed=0)


@pytest.mark.parametrize("stored", [False, True])
def test_decision_is_about_its_data_set_until_that_changes(decide, data, stored):
    decision = decide(data, stored=stored)
    assert is_about(decision, data)
    assert not is_about(decision, Subset(data, range(len(data)))), "another object may read other samples"
    data.tensors[0].add_(1)
    assert not is_about(decision, data)


def test_kept_samples_are_the_same_view_at_each_call(decide, data):
    decision = decide(data)
    view = decision.kept_samples(0.5)
    assert len(view) == int(decision.made.keep.sum()) < len(data)
    assert decision.kept_samples(0.5) is view


def test_kept_samples_are_refused_if_too_many_were_removed(decide, data):
    with pytest.raises(NothingKeptError):
        decide(data).kept_samples(0.01)


def test_stored_decision_has_no_verdict(decide, data):
    assert decide(data).verdict is not None
    assert decide(data, stored=True).verdict is None


def test_decision_differs_from_one_that_keeps_other_samples_or_is_about_other_data(decide, data, blobs):
    decision = decide(data)
    same = StoredDecision.of(decision.verdict)
    assert not decision.differs_from(same)
    assert decision.differs_from(StoredDecision("other data", {}, same.keep))
    assert decision.differs_from(StoredDecision(same.fingerprint, {}, torch.zeros_like(same.keep)))
    restored = decide(data, stored=True)
    assert not restored.differs_from(StoredDecision("other data", {}, same.keep)), "its mask says all that is known"
