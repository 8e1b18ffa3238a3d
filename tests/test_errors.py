import pickle

import pytest

from lightning_poison import errors
from lightning_poison.errors import NothingKeptError, RankFailedError, UnsupportedDataError

CLASSES = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, Exception)]


@pytest.mark.parametrize("kind", CLASSES)
def test_survives_pickling_between_processes(kind):
    """With a message and a note, as errors of workers and ranks have."""
    again = pickle.loads(pickle.dumps(kind("what was expected")))  # noqa: S301 (our own)
    assert type(again) is kind
    assert str(again) == str(kind("what was expected"))


def test_another_rank_is_named_if_it_is_known():
    assert "rank 2 failed: OSError: gone.\nSee the log of rank 2." in str(RankFailedError(2, "OSError: gone"))
    assert "another rank failed.\nSee the log of another rank." in str(RankFailedError(None))


def test_rank_failure_survives_pickling_with_its_parts():
    again = pickle.loads(pickle.dumps(RankFailedError(1, "killed", True)))  # noqa: S301 (our own)
    assert (again.rank, again.reason, again.is_interrupt) == (1, "killed", True)


def test_decision_that_keeps_nothing_can_be_inspected():
    assert NothingKeptError("no", verdict="a verdict").verdict == "a verdict"
    assert NothingKeptError("no").verdict is None


def test_wrong_data_are_a_wrong_type():
    assert issubclass(UnsupportedDataError, TypeError)
