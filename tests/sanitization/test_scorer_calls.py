"""Scorers that return, raise or change what they must not: each gets one error that names scorer and method."""

import logging
import os
import signal
import threading
import warnings

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from lightning_poison.data.blocks import MemoryDataset, SelectedDataset
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.data.source import Source
from lightning_poison.errors import NotFittedError, PluginError
from lightning_poison.sanitization.scorer_calls import (
    call_check_set,
    call_deepcopy,
    call_features,
    call_find_groups,
    call_fit,
    call_is_poison,
    call_load,
    call_logits,
    call_rehearse,
    call_score_batch,
    call_score_feature_labels,
    call_score_features,
    call_score_labels,
    call_stands_apart,
    call_state,
    call_training_margins,
)
from lightning_poison.scorers.pixel_counting import PixelCountingScorer
from lightning_poison.scorers.protocol import Scorer, SetScorer
from lightning_poison.statistics.subgroups import Subgroup
from lightning_poison.testing.tiny_images import TinyImages

INPUTS, LABELS = torch.arange(12.0).reshape(4, 3), torch.tensor([0, 1, 0, 1])


class Odd(Scorer):
    """A scorer that does what it is told."""

    name, fitted_tensors, scores_labels = "odd", ("mean",), True

    def __init__(self, result=None, act=lambda *given: None):
        self.result = result
        self.act = act

    def fit(self, trusted, *, runtime=None, generator=None):
        self.act(trusted)
        self.mean = torch.zeros(1)
        return self

    def score_batch(self, inputs, labels):
        self.act(inputs, labels)
        return self.result

    def score_labels(self, inputs):
        self.act(inputs)
        return self.result

    def rehearse(self, trusted, *, steps, runtime=None):
        self.act(trusted)
        return self.result

    def state(self):
        return self.result

    def load(self, state):
        return self


class OddSet(SetScorer):
    name, scores_labels, finds_groups = "odd-set", True, True

    def __init__(self, result=None, act=lambda *given: None):
        self.result = result
        self.act = act

    def check_set(self, labels):
        self.act(labels)

    def score_features(self, features, labels):
        self.act(features, labels)
        return self.result

    def score_feature_labels(self, features, labels):
        self.act(features, labels)
        return self.result

    def find_groups(self, features, labels):
        self.act(features, labels)
        return self.result

    def stands_apart(self, group):
        self.act(group.positions, group.log_odds)
        return self.result

    def is_poison(self, *, transfer, resemblance):
        return self.result


class OddSource:
    def __init__(self, result):
        self.result = result

    def features(self, inputs):
        return self.result

    def logits(self, inputs, *, shift=None):
        return self.result


CALLS = {
    "score_batch": lambda **given: call_score_batch(Odd(**given), INPUTS, LABELS),
    "score_labels": lambda **given: call_score_labels(Odd(**given), INPUTS, 2),
    "score_features": lambda **given: call_score_features(OddSet(**given), INPUTS, LABELS),
    "score_feature_labels": lambda **given: call_score_feature_labels(OddSet(**given), INPUTS, LABELS, 2),
}
MATRICES = ("score_labels", "score_feature_labels")

WRONG = {
    "nothing": (None, "return a tensor, but got None"),
    "a list": ([1.0, 2.0, 3.0, 4.0], "return a tensor, but got a list of length 4"),
    "a tuple": ((torch.zeros(4),), "return a tensor, but got a tuple of length 1"),
    "a number": (3.0, r"return a tensor, but got 3\.0"),
    "a string": ("\x1b[2J", r"return a tensor, but got \\x1b\[2J"),
    "a class": (torch.Tensor, "return a tensor, but got "),
    "strings": (np.array(["a"] * 4), r"return a tensor, but got a <U1 array of shape \(4,\)"),
    "objects": (np.array([None] * 4), r"return a tensor, but got a object array of shape \(4,\)"),
    "booleans": (torch.zeros(4).bool(), r"tensor of real numbers, but got a bool tensor of shape \(4,\)"),
    "complex": (torch.zeros(4).cfloat(), r"tensor of real numbers, but got a complex64 tensor of shape \(4,\)"),
    "sparse": (torch.zeros(4, 2).to_sparse(), "tensor of real numbers, but got a float32 tensor .*sparse"),
    "meta": (torch.zeros(4, device="meta"), "tensor of real numbers, but got a float32 tensor .*meta"),
    "too few": (torch.zeros(3, 2), r"for each of 4 samples.*but got a float32 tensor of shape \(3, 2\)"),
    "no dimension": (torch.zeros(()), r"for each of 4 samples.*but got a float32 tensor of shape \(\)"),
    "three dimensions": (torch.zeros(4, 2, 1), r"for each of 4 samples.*but got a float32 tensor of shape \(4, 2, 1\)"),
    "no column": (torch.zeros(4, 0), r"for each of 4 samples.*but got a float32 tensor of shape \(4, 0\)"),
}


@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize(("result", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_result_names_scorer_method_and_shape(method, result, message):
    with pytest.raises(PluginError, match=rf"(?s)^Expected `{method}` of the scorer `odd(-set)?` to .*{message}"):
        CALLS[method](result=result)


@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_result_that_is_not_finite_names_the_sample(method, value):
    result = torch.zeros(4, 2) if method in MATRICES else torch.zeros(4)
    result[2] = value
    with pytest.raises(ValueError, match=rf"`{method}` of the scorer `odd(-set)?` to return finite.*at sample 2\."):
        CALLS[method](result=result)


def test_sample_that_is_not_finite_is_named_by_its_place_in_the_data():
    with pytest.raises(ValueError, match=r"at sample 91\."):
        call_score_batch(Odd(torch.tensor([0, 0, torch.nan, 0])), INPUTS, LABELS, indices=torch.tensor([7, 8, 91, 9]))


@pytest.mark.parametrize("method", CALLS)
def test_matrix_and_vector_are_told_apart(method):
    result = torch.zeros(4) if method in MATRICES else torch.zeros(4, 1)
    with pytest.raises(PluginError, match=rf"`{method}` of .*but got a float32 tensor of shape \(4"):
        CALLS[method](result=result)


@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize(
    "convert",
    [
        torch.Tensor.double,
        torch.Tensor.half,
        torch.Tensor.long,
        torch.Tensor.numpy,
        lambda scores: scores.numpy().astype(">f8"),
        lambda scores: scores.numpy().astype(np.uint16),
        lambda scores: scores.clone().requires_grad_(),
        lambda scores: torch.nn.Parameter(scores),
        lambda scores: torch.stack([scores, scores])[0],
    ],
)
def test_real_numbers_of_other_types_are_converted(method, convert):
    expected = torch.arange(8.0).reshape(4, 2) if method in MATRICES else torch.arange(4.0)
    found = CALLS[method](result=convert(expected))
    assert type(found) is torch.Tensor
    assert found.dtype == torch.float64
    assert not found.requires_grad
    assert torch.equal(found, expected.double())


def test_too_few_classes_are_named():
    with pytest.raises(
        ValueError, match=r"`dataset` to be labels below 2, the number of classes of the scorer, but got 4"
    ):
        call_score_labels(Odd(torch.zeros(4, 2)), INPUTS, 5)
    assert call_score_labels(Odd(torch.zeros(4, 9)), INPUTS, 5).shape == (4, 9)
    assert call_score_labels(Odd(torch.zeros(4, 2)), INPUTS).shape == (4, 2)


def test_features_and_logits_of_a_source_are_checked():
    assert call_features(OddSource(torch.ones(4, 2).half()), INPUTS).dtype == torch.float16
    assert call_logits(OddSource(np.ones((4, 2))), INPUTS).dtype == torch.float64
    with pytest.raises(
        PluginError, match="`features` of the feature model `OddSource` to return a tensor, but got None"
    ):
        call_features(OddSource(None), INPUTS)
    with pytest.raises(PluginError, match=r"`logits` of the feature model `OddSource` .*shape \(4,\)"):
        call_logits(OddSource(torch.zeros(4)), INPUTS)


def fails(error):
    def act(*given):
        raise error

    return act


@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize("kind", [AttributeError, IndexError, RuntimeError, SystemExit, KeyboardInterrupt, MemoryError])
def test_error_names_scorer_and_method(method, kind):
    error = kind("boo")
    with pytest.raises(
        PluginError, match=f"`{method}` of the scorer `odd(-set)?` to succeed.*{kind.__name__}: boo"
    ) as caught:
        CALLS[method](act=fails(error))
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("kind", [ValueError, NotFittedError])
def test_error_for_the_user_keeps_its_type(kind):
    with pytest.raises(kind, match=r"^In `score_batch` of the scorer `odd`: boo$"):
        call_score_batch(Odd(act=fails(kind("boo"))), INPUTS, LABELS)
    with pytest.raises(kind, match=r"^In `check_set` of the scorer `odd-set`: boo$"):
        call_check_set(OddSet(act=fails(kind("boo"))), LABELS)


def test_interrupt_of_the_user_passes():
    with pytest.raises(KeyboardInterrupt):
        call_score_batch(Odd(act=lambda *_: signal.raise_signal(signal.SIGINT)), INPUTS, LABELS)


@pytest.mark.parametrize("method", CALLS)
def test_scorer_gets_copies_and_gives_a_copy(method):
    result = torch.ones(4, 2) if method in MATRICES else torch.ones(4, dtype=torch.float64)
    inputs, labels = INPUTS.clone(), LABELS.clone()
    found = CALLS[method](result=result, act=lambda *given: [each.zero_() for each in given])
    result.zero_()
    assert torch.equal(INPUTS, inputs)
    assert torch.equal(LABELS, labels)
    assert (found == 1).all()


def change_process(*_):
    torch.set_grad_enabled(True)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(7)
    torch.set_num_threads(torch.get_num_threads() + 1)
    warnings.simplefilter("ignore")
    os.environ["EVIL"] = "1"
    logging.root.setLevel(1)


def process():
    settings = torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads(), logging.root.level
    return *settings, torch.get_rng_state().tolist(), list(warnings.filters), os.environ.get("EVIL")


@pytest.mark.parametrize("method", CALLS)
def test_process_is_restored(method):
    result = torch.ones(4, 2) if method in MATRICES else torch.ones(4)
    with torch.no_grad():
        before = process()
        CALLS[method](result=result, act=change_process)
        assert process() == before
    before = process()
    call_fit(Odd(act=change_process), MemoryDataset(INPUTS, LABELS))
    assert process() == before


def test_global_random_states_are_seeded():
    drawn = []
    for seed in (3, 3, 4):
        torch.rand(1)
        generator = torch.Generator().manual_seed(seed)
        call_fit(Odd(act=lambda *_: drawn.append(torch.rand(()).item())), TinyImages(4), generator=generator)
    assert drawn[0] == drawn[1] != drawn[2]


def zero_all(dataset):
    for index in range(len(dataset)):
        dataset[index][0].zero_()


@pytest.mark.parametrize(
    "call", [lambda scorer, data: call_fit(scorer, data), lambda scorer, data: call_rehearse(scorer, data, steps=1)]
)
@pytest.mark.parametrize("whole", [False, True])
def test_fit_reads_copies_of_samples(call, whole):
    data = TensorDataset(INPUTS.clone(), LABELS)
    part = data if whole else SelectedDataset(Source(data, SampleSpec("0", "1")), torch.tensor([1, 2]), LABELS[[1, 2]])
    seen = []
    call(Odd(act=lambda dataset: (zero_all(dataset), seen.append(dataset))), part)
    assert torch.equal(data.tensors[0], INPUTS)
    assert len(seen[0]) == len(part)
    if not whole:
        assert isinstance(seen[0], SelectedDataset)
        assert seen[0].targets.tolist() == [1, 0]


def test_fit_reads_copies_of_other_structures():
    rows = [{"image": np.ones(2), "more": [torch.ones(2), (torch.ones(2), "cat")]}]

    def act(dataset):
        row = dataset.__getitems__([0])[0]
        row["image"][:] = 0
        row["more"][0].zero_()
        row["more"][1][0].zero_()

    call_fit(Odd(act=act), rows)
    assert rows[0]["image"].sum() == rows[0]["more"][0].sum() == rows[0]["more"][1][0].sum() == 2


class TestFit:
    def test_returns_the_scorer(self):
        scorer = Odd()
        assert call_fit(scorer, TinyImages(4)) is scorer

    @pytest.mark.parametrize(("returned", "came"), [(None, "None"), (3, "3"), (Odd(), "Odd"), ("\x1b", r"\\x1b")])
    def test_refuses_another_result(self, returned, came):
        class Returns(Odd):
            def fit(self, trusted, *, runtime=None, generator=None):
                super().fit(trusted)
                return returned

        with pytest.raises(
            PluginError,
            match=f"`fit` of the scorer `odd` to return the scorer itself, but got {came}.\nEnd .*`return self`",
        ):
            call_fit(Returns(), TinyImages(4))

    def test_refuses_scorer_that_is_not_fitted_afterwards(self):
        class Forgets(Odd):
            def fit(self, trusted, *, runtime=None, generator=None):
                return self

        with pytest.raises(PluginError, match=r"(?s)leave the scorer fitted, but got is_fitted = False.*names: `mean`"):
            call_fit(Forgets(), TinyImages(4))

    def test_names_missing_arguments(self):
        class Short(Odd):
            def fit(self, trusted):
                return self

        with pytest.raises(PluginError, match=r"`fit` of the scorer `odd` to succeed.*TypeError.*'runtime'"):
            call_fit(Short(), TinyImages(4))

    def test_own_scorers_read_the_data_itself(self):
        data = TinyImages(12)
        scorer = call_fit(PixelCountingScorer(), data, generator=torch.Generator())
        inputs = torch.stack([image for image, _ in data])
        expected = PixelCountingScorer().fit(data).score_batch(inputs, data.targets)
        assert torch.equal(call_score_batch(scorer, inputs, data.targets), expected.double())


@pytest.mark.parametrize("result", ["many", 1.5, True, -1])
def test_rehearsal_returns_a_number(result):
    with pytest.raises(PluginError, match="`rehearse` of the scorer `odd` to return a number of steps or None"):
        call_rehearse(Odd(result), TinyImages(4), steps=1)
    assert call_rehearse(Odd(7), TinyImages(4), steps=1) == 7


@pytest.mark.parametrize("result", [None, [1], {"a": 1}, {3: torch.zeros(1)}])
def test_state_is_tensors_by_name(result):
    with pytest.raises(PluginError, match="`state` of the scorer `odd` to"):
        call_state(Odd(result))
    kept = torch.zeros(1)
    found = call_state(Odd({"mean": kept}))
    kept.fill_(1)
    assert found["mean"] == 0


def test_load_leaves_scorer_fitted():
    with pytest.raises(PluginError, match="`load` of the scorer `odd` to leave the scorer fitted"):
        call_load(Odd(), {})
    scorer = call_fit(Odd(), TinyImages(4))
    assert call_load(scorer, {}) is scorer


def test_scorer_that_cannot_be_copied_is_named():
    with pytest.raises(PluginError, match=r"of the scorer `odd` to succeed.*TypeError: cannot pickle '_thread.lock'"):
        call_deepcopy(Odd(threading.Lock()))
    assert call_deepcopy(Odd(3)).result == 3


def group(**parts):
    return Subgroup(
        **{
            "label": 0,
            "positions": torch.tensor([0, 2]),
            "log_odds": torch.tensor([1.0, -1.0]),
            "separation": 4.0,
            **parts,
        }
    )


GROUPS = {
    "nothing": (None, "a sequence of `Subgroup`, but got None"),
    "a group": (group(), "a sequence of `Subgroup`, but got Subgroup"),
    "other objects": ([3], "a sequence of `Subgroup`, but got a list of length 1"),
    "a list of positions": ([group(), group(positions=[0, 2])], "`positions` of list in group 1"),
    "positions of floats": ([group(positions=torch.zeros(2))], "`positions` of a float32 tensor"),
    "no position": ([group(positions=torch.zeros(0).long(), log_odds=torch.zeros(0))], "`positions` of a int64"),
    "other length": ([group(log_odds=torch.zeros(3))], r"`log_odds` of a float32 tensor of shape \(3,\) for 2"),
    "outside": ([group(positions=torch.tensor([0, 4]))], "outside of the 4 samples"),
    "negative": ([group(positions=torch.tensor([0, -1]))], "outside of the 4 samples"),
    "repeated": ([group(positions=torch.tensor([0, 0]))], "positions that repeat"),
    "another class": ([group(label=1)], "samples of several classes"),
    "NaN": ([group(separation=float("nan"))], "NaN"),
    "no number": ([group(separation="far")], "NaN"),
}


@pytest.mark.parametrize(("result", "message"), GROUPS.values(), ids=GROUPS.keys())
def test_groups_are_checked(result, message):
    with pytest.raises(PluginError, match=f"`find_groups` of the scorer `odd-set` to return.*{message}"):
        call_find_groups(OddSet(result), INPUTS, LABELS)


def test_groups_are_copies():
    result = [group()]
    (found,) = call_find_groups(OddSet(result), INPUTS, LABELS)
    result[0].positions.zero_()
    assert found.members.tolist() == [0]
    call_stands_apart(OddSet(True, lambda *given: [each.zero_() for each in given]), found)
    assert found.rest.tolist() == [2]


@pytest.mark.parametrize("result", [True, np.True_, torch.tensor(True)])
def test_flags_are_converted(result):
    assert call_stands_apart(OddSet(result), group()) is True
    assert call_is_poison(OddSet(result), transfer=0.1, resemblance=0.2) is True


@pytest.mark.parametrize("result", [None, 1, torch.ones(1).bool(), "yes"])
def test_other_flags_are_refused(result):
    with pytest.raises(PluginError, match="`stands_apart` of the scorer `odd-set` to return True or False"):
        call_stands_apart(OddSet(result), group())


def test_name_that_cannot_be_read_is_named_by_the_class():
    odd = type("Nameless", (Odd,), {"name": property(lambda self: 1 / 0)})
    with pytest.raises(PluginError, match=r"`name` of `?Nameless`? to succeed, but it raised ZeroDivisionError"):
        call_score_batch(odd(), INPUTS, LABELS)


@pytest.mark.parametrize("margins", [torch.zeros(3), "none", torch.full((4,), torch.nan)])
def test_training_margins_of_another_form_are_refused(margins):
    scorer = Odd()
    scorer.training_margins = margins
    with pytest.raises(PluginError, match=r"`training_margins` of the scorer `odd`"):
        call_training_margins(scorer, 4)


def test_training_margins_are_optional_and_converted():
    scorer = Odd()
    assert call_training_margins(scorer, 4) is None
    scorer.training_margins = torch.arange(4.0, requires_grad=True)
    found = call_training_margins(scorer, 4)
    assert (found.dtype, found.requires_grad) == (torch.float64, False)
