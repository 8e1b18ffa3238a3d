"""Unions of scorers whose decisions are known: each rule is exact on the data of these tests."""

import importlib
from dataclasses import replace

import pytest
import torch
from torch.utils.data import TensorDataset

from lightning_poison import sanitize
from lightning_poison.errors import InconclusiveError
from lightning_poison.manifest import Manifest
from lightning_poison.sanitization import Verdict, reason_of
from lightning_poison.scorers import Scorer, UnionScorer

COUNT, CLASSES, WRONG = 600, 3, 30

by_union = importlib.import_module("lightning_poison.sanitization.by_union")


class Nearest(Scorer):
    """Distance to the mean of each class, along some of the features."""

    fitted_tensors = ("means",)
    scores_labels = True

    def __init__(self, name, start, stop, seen=None):
        self.name, self.start, self.stop = name, start, stop
        self.seen = seen

    def settings(self):
        return {"start": self.start, "stop": self.stop}

    def __deepcopy__(self, memo):
        return Nearest(self.name, self.start, self.stop, self.seen)

    def fit(self, trusted, *, runtime=None, generator=None):
        samples = [trusted[index] for index in range(len(trusted))]
        inputs, labels = torch.stack([x for x, *_ in samples]), torch.tensor([int(y) for _, y, *_ in samples])
        if self.seen is not None:
            self.seen.append(len(samples))
        self.means = torch.stack([inputs[labels == k].median(0).values for k in range(int(labels.max()) + 1)])
        return self

    def score_labels(self, inputs):
        part = slice(self.start, self.stop)
        return torch.cdist(inputs[:, part], self.means[:, part])


class Failing(Nearest):
    def fit(self, trusted, *, runtime=None, generator=None):
        raise ValueError("Expected more of everything.\nBring it.")

    def __deepcopy__(self, memo):
        return Failing(self.name, self.start, self.stop, self.seen)


def data_of(seed=0):
    """Features 0 to 2 and 3 to 5 show the class; of some samples, only the first or only the last ones are wrong."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(COUNT) % CLASSES
    inputs = 0.3 * torch.randn(COUNT, 6, generator=generator)
    first, second = labels.clone(), labels.clone()
    first[:WRONG] = (labels[:WRONG] + 1) % CLASSES
    second[-WRONG:] = (labels[-WRONG:] + 1) % CLASSES
    inputs[torch.arange(COUNT), first] += 6
    inputs[torch.arange(COUNT), 3 + second] += 6
    return TensorDataset(inputs, labels)


def pair(seen=None):
    return [Nearest("left", 0, 3, seen), Nearest("right", 3, 6)]


def test_removes_what_any_member_removes():
    verdict = sanitize(data_of(), UnionScorer(pair()))
    assert verdict.removed.sort().values.tolist() == [*range(WRONG), *range(COUNT - WRONG, COUNT)]
    assert verdict.removed_by_scorer == {"left": WRONG, "right": WRONG}
    assert verdict.found_by[:WRONG].eq(0).all()
    assert verdict.found_by[-WRONG:].eq(1).all()
    assert verdict.found_by[WRONG:-WRONG].eq(-1).all()
    assert [each.removed for each in verdict.findings] == [WRONG, WRONG]
    assert verdict.evidence.kind == "several kinds"
    assert verdict.evidence.contamination == pytest.approx(0.1, abs=0.01)


@pytest.mark.slow
def test_members_are_not_shown_what_others_removed():
    seen = []
    sanitize(data_of(), UnionScorer([*pair(seen)[::-1]], rounds=1))
    assert sum(seen) == (COUNT - WRONG) * 2  # three folds, each fitted on two thirds
    seen.clear()
    sanitize(data_of(), UnionScorer(pair(seen)))
    assert sum(seen) == COUNT * 2 + (COUNT - 2 * WRONG) * 2  # and again, after the other member removed samples


def test_members_decide_once_if_nothing_is_removed():
    seen, inputs = [], data_of().tensors[0][WRONG:-WRONG]
    verdict = sanitize(TensorDataset(inputs, torch.arange(WRONG, COUNT - WRONG) % CLASSES), UnionScorer(pair(seen)))
    assert verdict.keep.all()
    assert not verdict.evidence.present
    assert len(seen) == 3


def test_member_that_fails_is_reported():
    verdict = sanitize(data_of(), UnionScorer([Failing("broken", 0, 3), pair()[1]]))
    assert verdict.removed.sort().values.tolist() == list(range(COUNT - WRONG, COUNT))
    assert "broken could not decide: " in str(verdict)
    assert "Expected more of everything. Bring it." in str(verdict)
    with pytest.raises(InconclusiveError, match="none of the union can") as caught:
        sanitize(data_of(), UnionScorer([Failing("broken", 0, 3), Failing("other", 3, 6)]))
    assert "\n- broken: " in str(caught.value)
    assert "\n- other: " in str(caught.value)


@pytest.mark.slow
def test_verdict_is_saved_with_its_findings(tmp_path):
    verdict = sanitize(data_of(), UnionScorer(pair()))
    verdict.save(tmp_path / "verdict.safetensors")
    loaded = Verdict.load(tmp_path / "verdict.safetensors")
    assert str(loaded) == str(verdict)
    assert torch.equal(loaded.found_by, verdict.found_by)
    assert loaded.findings == verdict.findings


@pytest.mark.slow
def test_manifest_says_why_and_who():
    data = data_of()
    verdict = sanitize(data, UnionScorer(pair()))
    rows = {row.sample_id: row for row in Manifest.from_verdict(verdict, data, class_names=["a", "b", "c"]).rows}
    assert rows[0].found_by == "left"
    assert rows[0].reason == reason_of(verdict, 0, ["a", "b", "c"]) == "labeled a, looks like b"
    assert rows[COUNT - 1].found_by == "right"
    assert "found by right" in str(rows[COUNT - 1])


def rates_of_members(monkeypatch, scorers, *, posterior=None, **settings):
    """The false-positive rate with which each member decides, and the verdict."""
    rates, decide = [], importlib.import_module("lightning_poison.sanitization.decide")
    original = decide.judge_by_union

    def judge_by_union(job, union, trusted, judge):
        def recorded(part, own):
            rates.append((part.scorer.name, part.settings.false_positive_rate))
            outcome = judge(part, own)
            if posterior is None or outcome.decision.keep.all():
                return outcome
            decision = replace(outcome.decision, posterior=outcome.decision.posterior.clamp(max=posterior))
            return replace(outcome, decision=decision)

        return original(job, union, trusted, recorded)

    monkeypatch.setattr(decide, "judge_by_union", judge_by_union)
    return rates, sanitize(data_of(), UnionScorer(scorers), **settings)


def test_each_member_may_spend_three_quarters_of_what_is_left(monkeypatch):
    rates, _ = rates_of_members(monkeypatch, pair(), false_positive_rate=0.02)
    assert rates[0] == ("left", pytest.approx(0.015))
    assert rates[1] == ("right", pytest.approx(0.015, rel=1e-3))  # the posteriors are nearly 1


def test_clean_samples_that_are_expected_to_be_removed_are_spent(monkeypatch):
    rates, verdict = rates_of_members(monkeypatch, pair(), posterior=0.9, false_positive_rate=0.02)
    assert rates[1] == ("right", pytest.approx(0.015 - 0.075 * WRONG / (COUNT - 0.9 * WRONG), rel=1e-3))
    removed = verdict.p_values[~verdict.keep]
    assert float(removed.max()) <= 0.02


def test_rate_is_never_spent_to_the_last(monkeypatch):
    rates, _ = rates_of_members(monkeypatch, pair(), posterior=0.51, false_positive_rate=0.02)
    assert rates[1] == ("right", pytest.approx(0.00015))


def test_later_members_know_how_well_a_network_learned_the_labels_of_an_earlier_one(monkeypatch):
    given, decide = [], importlib.import_module("lightning_poison.sanitization.decide")
    original = decide.judge_by_union

    def judge_by_union(job, union, trusted, judge):
        def recorded(part, own):
            given.append((part.scorer.name, part.training_margins))
            outcome = judge(part, own)
            return replace(outcome, training_margins=part.data.positions.double()) if len(given) == 1 else outcome

        return original(job, union, trusted, recorded)

    monkeypatch.setattr(decide, "judge_by_union", judge_by_union)
    verdict = sanitize(data_of(), UnionScorer(pair()))
    assert given[0] == ("left", None)
    name, margins = given[1]
    assert name == "right"
    assert torch.equal(margins, torch.arange(WRONG, COUNT).double())  # the first ones were removed
    assert torch.equal(verdict.keep, sanitize(data_of(), UnionScorer(pair())).keep)


@pytest.mark.filterwarnings("ignore:The false-positive rate is calibrated on")
def test_members_with_trusted_data_have_equal_shares(monkeypatch):
    clean = data_of(seed=1)
    trusted = TensorDataset(clean.tensors[0][WRONG:-WRONG], clean.tensors[1][WRONG:-WRONG])
    rates, _ = rates_of_members(monkeypatch, pair(), trusted=trusted, false_positive_rate=0.2)
    assert dict(rates) == {"left": pytest.approx(0.1), "right": pytest.approx(0.1)}


@pytest.mark.filterwarnings("ignore:The false-positive rate is calibrated on")
def test_trusted_data_calibrate_each_member():
    clean = data_of(seed=1)
    trusted = TensorDataset(clean.tensors[0][WRONG:-WRONG], clean.tensors[1][WRONG:-WRONG])
    verdict = sanitize(data_of(), UnionScorer(pair()), trusted=trusted)
    removed = (~verdict.keep).nonzero().flatten().tolist()
    assert {*range(WRONG), *range(COUNT - WRONG, COUNT)} <= set(removed)
    assert len(removed) < 2 * WRONG + 0.04 * COUNT
    assert verdict.posterior is None
    assert {each.evidence.kind for each in verdict.findings} == {"unlike trusted data"}


def test_classes_with_gaps_and_small_classes_are_handled_per_member():
    inputs, labels = data_of().tensors
    labels = torch.tensor([2, 5, 9])[labels]
    labels[WRONG] = 7  # a class of one sample
    verdict = sanitize(TensorDataset(inputs, labels), UnionScorer(pair()))
    assert set(verdict.suggested_labels[:WRONG].tolist()) <= {2, 5, 9}
    assert verdict.keep[WRONG]
    assert any("class 7" in note for note in verdict.notes)
    assert int((~verdict.keep).sum()) == 2 * WRONG


@pytest.mark.slow
def test_same_seed_gives_the_same_verdict():
    first, second = (sanitize(data_of(), UnionScorer(pair())) for _ in range(2))
    assert torch.equal(first.posterior, second.posterior)
    assert first.fingerprint == second.fingerprint


class Odd(Nearest):
    """Returns NaN for one sample, which one rank scores."""

    def score_labels(self, inputs):
        scores = super().score_labels(inputs)
        scores[inputs[:, 0] > 100] = torch.nan
        return scores

    def __deepcopy__(self, memo):
        return Odd(self.name, self.start, self.stop, self.seen)


@pytest.mark.slow
def test_member_that_fails_on_one_rank_is_skipped_on_all(several_ranks):
    inputs, labels = data_of().tensors
    inputs[50, 0] = 1000.0
    data = TensorDataset(inputs, labels)
    union = [Odd("odd", 0, 3), pair()[1]]
    alone = sanitize(data, UnionScorer(union))
    verdicts = several_ranks(2, lambda runtime: sanitize(data, UnionScorer(union), runtime=runtime))
    assert alone.findings[0].failure
    for verdict in verdicts:
        assert verdict.findings[0].failure
        assert torch.equal(verdict.keep, alone.keep)
        assert verdict.removed_by_scorer == {"right": WRONG}


@pytest.mark.slow
def test_samples_that_no_member_judges_are_not_judged():
    inputs, labels = data_of().tensors
    labels = labels.clone()
    labels[WRONG] = 3
    verdict = sanitize(TensorDataset(inputs, labels), UnionScorer(pair()))
    assert verdict.judged.logical_not().nonzero().flatten().tolist() == [WRONG]


@pytest.mark.slow
def test_samples_kept_by_hand_count_for_no_scorer():
    verdict = sanitize(data_of(), UnionScorer(pair()))
    kept = verdict.with_kept(verdict.removed[:1])
    assert sum(kept.removed_by_scorer.values()) == 2 * WRONG - 1


@pytest.mark.slow
def test_interrupted_union_continues(tmp_path, monkeypatch):
    calls, real = [], by_union.judged_part

    def interrupted(*arguments, **settings):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **settings)

    first, second = [], []
    monkeypatch.setattr(by_union, "judged_part", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sanitize(data_of(), UnionScorer(pair(first)), cache=tmp_path)
    monkeypatch.undo()
    assert len(first) == 3
    again = sanitize(data_of(), UnionScorer(pair(second)), cache=tmp_path)
    assert len(second) == 3  # in the second round alone: the folds of the first are stored
    assert torch.equal(again.keep, sanitize(data_of(), UnionScorer(pair())).keep)


def test_another_order_of_members_is_another_decision(tmp_path):
    data = data_of()
    first = sanitize(data, UnionScorer(pair()), cache=tmp_path)
    second = sanitize(data, UnionScorer(pair()[::-1]), cache=tmp_path)
    assert first.fingerprint != second.fingerprint
    assert [each.scorer for each in second.findings] == ["right", "left"]
    alone = sanitize(data, UnionScorer(pair()[::-1]))
    assert torch.equal(second.p_values, alone.p_values)
