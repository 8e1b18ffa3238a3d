"""What each bad input of the tables gets: the right verdict, a warning, or one error with a way out."""

import pytest
import torch

from . import datasets, inputs, labels, samples, settings, training, trusted
from .cases import assert_refused, assert_right, assert_warned

pytestmark = pytest.mark.slow


def cases_of(table):
    """Return the cases of a table of every module that has one."""
    return [
        pytest.param(case, id=f"{module.__name__.rpartition('.')[2]}: {name}")
        for module in (datasets, inputs, labels, samples, settings, training, trusted)
        for name, case in getattr(module, table, {}).items()
    ]


@pytest.mark.parametrize("run", cases_of("WORKS"))
def test_works(run, d):
    assert_right(run(d), d.wrong)


@pytest.mark.parametrize("case", cases_of("REFUSED"))
def test_is_refused_with_a_way_out(case, d):
    run, (error, match) = case
    assert_refused(run, d, error, match)


@pytest.mark.parametrize("case", cases_of("WARNED"))
@pytest.mark.filterwarnings("ignore:.isinstance.treespec:FutureWarning", "ignore:Total length of")
def test_works_with_a_warning(case, d):
    run, match = case
    assert_warned(run, d, match)


@pytest.mark.parametrize("run", cases_of("SAME_AS_TRUSTED"))
@pytest.mark.filterwarnings(f"ignore:{trusted.FEW_TRUSTED}")
def test_takes_trusted_samples_in_many_forms(run, d):
    plain = d.judge(d.data, trusted=d.trusted)
    assert torch.equal(run(d).keep, plain.keep)
    assert plain.evidence.present
