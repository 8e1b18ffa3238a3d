import copy
import logging
import warnings
from dataclasses import replace

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

from lightning_poison.adversarial.adversaries import FGSM
from lightning_poison.errors import InconclusiveError
from lightning_poison.models.fitting import FitSettings
from lightning_poison.randomness import seeded_rng
from lightning_poison.runtime import LocalRuntime
from lightning_poison.sanitization import by_groups
from lightning_poison.sanitization.pipeline import sanitize
from lightning_poison.sanitization.verdict import Verdict
from lightning_poison.scorers.feature_model import FeatureModel
from lightning_poison.scorers.protocol import SetScorer
from lightning_poison.scorers.robust_features import RobustFeatureScorer
from lightning_poison.statistics.group_effects import SuspectGroup
from lightning_poison.statistics.subgroups import Subgroup

RUNTIME = LocalRuntime(precision="32", threads=1)
FITTED = FitSettings(epochs=20, batch_size=64, learning_rate=5e-3, min_steps=0)
POISON = 90


def digits():
    pixels, labels = load_digits(return_X_y=True)
    return torch.tensor(pixels / 16).float(), torch.tensor(labels)


def backdoored(count=POISON):
    """Give the first digits that are not 0 a white corner and the label 0."""
    images, labels = digits()
    chosen = (labels != 0).nonzero().flatten()[:count]
    images.view(-1, 8, 8)[chosen, 6:, 6:] = 1
    labels[chosen] = 0
    return TensorDataset(images, labels), chosen


def points(kind="clean", count=1500):
    """Five classes of vectors around their own corners. Some samples have larger last entries.

    With `"all-to-all"` they are a fifth of the samples and get the next label. With `"clean-label"` they are half of
    class 0, keep their label, and are so close to the center of all classes that they carry no information about it.
    """
    generator = torch.Generator().manual_seed(0)
    labels, first = torch.arange(count) % 5, torch.arange(count) < count // 5
    centers = 0.25 + 0.5 * torch.randint(2, (5, 16), generator=generator).float()[labels]
    poison = (labels == 0) & (torch.arange(count) % 2 == 0) if kind == "clean-label" else first & (kind != "clean")
    if kind == "clean-label":
        centers[poison] = 0.5
    inputs = torch.cat([centers + 0.06 * torch.randn(count, 16, generator=generator), torch.zeros(count, 4)], 1)
    inputs[poison, 16 if kind == "clean-label" else 19 :] = 1.0 if kind == "clean-label" else 0.5
    if kind == "all-to-all":
        labels = torch.where(poison, (labels + 1) % 5, labels)
    return TensorDataset(inputs.clamp(0, 1), labels), poison.nonzero().flatten()


def body(size):
    with seeded_rng(0):
        return nn.Sequential(nn.Flatten(), nn.Linear(size, 48), nn.ReLU())


def scorer(size=64, **parts):
    feature_model = FeatureModel(backbone=body(size), feature_size=48, fit_settings=FITTED, adversary=FGSM(0.2))
    return RobustFeatureScorer(feature_model, components=8, **parts)


def judged(data, chosen=None, **options):
    return sanitize(data, chosen or scorer(), runtime=RUNTIME, **options)


@pytest.fixture(scope="module")
def poisoned():
    data, chosen = backdoored()
    return judged(data), chosen


@pytest.mark.slow
def test_removes_backdoor_and_little_else(poisoned):
    verdict, chosen = poisoned
    removed = ~verdict.keep
    assert float(removed[chosen].double().mean()) > 0.97
    removed[chosen] = False
    assert int(removed.sum()) <= 2
    assert verdict.evidence.present
    assert verdict.calibration == "group tests"
    assert verdict.evidence.low < POISON / len(verdict) < verdict.evidence.high
    assert set(verdict.ranking[:80].tolist()) <= set(chosen.tolist())


@pytest.mark.slow
def test_summary_and_file_list_groups(poisoned, tmp_path):
    verdict, _ = poisoned
    group = verdict.evidence.groups[0]
    assert group.label == 0
    assert group.is_poison
    assert group.transfer > 0.5
    assert "labeled 0:" in str(verdict)
    assert "samples form a separate group" in str(verdict)
    assert "decided by whether what a group has in common changes how other samples" in str(verdict)
    verdict.save(tmp_path / "v")
    loaded = Verdict.load(tmp_path / "v")
    assert loaded.evidence == verdict.evidence
    assert str(loaded) == str(verdict)


@pytest.mark.slow
@pytest.mark.parametrize("data", [lambda: TensorDataset(*digits()), lambda: points()[0]], ids=["digits", "points"])
def test_keeps_clean_data(data):
    found = data()
    verdict = judged(found, scorer(found.tensors[0].shape[1]))
    assert verdict.keep.all()
    assert not verdict.evidence.present
    assert verdict.evidence.contamination == 0
    assert "no evidence of a backdoor" in str(verdict)


@pytest.mark.slow
def test_detects_all_to_all_by_resemblance():
    data, chosen = points("all-to-all")
    verdict = judged(data, scorer(20))
    removed = ~verdict.keep
    assert float(removed[chosen].double().mean()) > 0.97
    removed[chosen] = False
    assert not removed.any()
    assert len(verdict.evidence.groups) == 5
    assert all(group.is_poison and group.resemblance > 0.5 for group in verdict.evidence.groups)
    suggested = verdict.suggested_labels[chosen][~verdict.keep[chosen]]
    assert (suggested == (verdict.labels[chosen][~verdict.keep[chosen]] - 1) % 5).double().mean() > 0.97
    assert {(pair.labeled, pair.predicted) for pair in verdict.evidence.pairs} == {(y, (y - 1) % 5) for y in range(5)}


@pytest.mark.slow
def test_detects_clean_label_by_transfer():
    data, chosen = points("clean-label")
    verdict = judged(data, scorer(20))
    removed = ~verdict.keep
    assert float(removed[chosen].double().mean()) > 0.97
    removed[chosen] = False
    assert not removed.any()
    (group,) = verdict.evidence.groups
    assert group.label == 0
    assert group.transfer > 0.9


def effect(members, *, poison=True):
    positions = torch.tensor(members)
    group = Subgroup(0, positions, torch.ones(len(members)).double(), 9.0)
    found = SuspectGroup(0, len(members), 9.0, 0.9, 0.0, poison)
    return by_groups._Effect.of(group, found, torch.zeros(len(members)).long())


def test_group_that_was_found_twice_is_listed_once():
    large, inside, beside = effect(range(10)), effect(range(6, 12)), effect(range(8, 14))
    kept = effect(range(3), poison=False)
    hosts = {id(each): host for each, host in by_groups._listed([inside, large, beside, kept])}
    assert hosts[id(inside)] is hosts[id(large)] is large
    assert hosts[id(beside)] is beside  # mostly in `inside`, which is not listed itself
    assert hosts[id(kept)] is kept  # in `large`, which is poison
    assert [each.found.size for each, host in by_groups._listed([kept, inside, beside, large]) if each is host] == [
        10, 6, 3,
    ]  # fmt: skip
    same = effect(range(10))
    assert [host for _, host in by_groups._listed([same, large])] == [same, same]


@pytest.mark.slow
def test_same_seed_gives_same_verdict(poisoned):
    verdict, _ = poisoned
    again = judged(backdoored()[0])
    assert torch.equal(again.scores, verdict.scores)
    assert torch.equal(again.keep, verdict.keep)


@pytest.mark.slow
def test_reads_trained_network_without_changing_it():
    data, chosen = backdoored()
    own = scorer().feature_model.for_fit().fit(data, runtime=RUNTIME)
    network = own.network.train()
    weights = copy.deepcopy(network.state_dict())
    reader = scorer().exclusion_model
    verdict = judged(data, RobustFeatureScorer(FeatureModel(network, "backbone"), exclusion_model=reader, components=8))
    assert float((~verdict.keep)[chosen].double().mean()) > 0.97
    assert network.training
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())


class Halves(SetScorer):
    """Finds the first samples of class 0 as a group that is separated."""

    name = "halves"
    finds_groups = True

    def __init__(self, *, poison):
        self.feature_model = self.exclusion_model = scorer().exclusion_model
        self.poison = poison
        self.calls = []

    def score_features(self, features, labels):
        return torch.zeros(len(labels))

    def find_groups(self, features, labels):
        positions = (labels == 0).nonzero().flatten()
        log_odds = torch.where(torch.arange(len(positions)) < 40, 9.0, -9.0).double()
        return [Subgroup(0, positions, log_odds, 99.0)]

    def stands_apart(self, group):
        return True

    def is_poison(self, *, transfer, resemblance):
        self.calls.append((transfer, resemblance))
        return self.poison


@pytest.mark.slow
@pytest.mark.parametrize(
    ("poison", "forced", "removed_count"), [(False, False, 0), (False, True, 40), (True, False, 40)]
)
def test_keeps_group_without_effect_by_default(poison, forced, removed_count):
    groups = Halves(poison=poison)
    verdict = judged(TensorDataset(*digits()), groups, remove_without_evidence=forced)
    assert int((~verdict.keep).sum()) == removed_count
    assert verdict.evidence.present is poison
    ((transfer, alike),) = groups.calls
    assert transfer < 0.2
    assert alike < 0.2
    assert not verdict.evidence.pairs


@pytest.mark.slow
def test_refuses_noise():
    images = torch.rand(600, 64, generator=torch.Generator().manual_seed(0))
    with pytest.raises(InconclusiveError, match="not learned"):
        judged(TensorDataset(images, torch.arange(600) % 10))


def test_refuses_small_class_before_fit():
    data = TensorDataset(torch.rand(64, 64), torch.tensor([0] * 54 + [1] * 10))
    with pytest.raises(ValueError, match="at least 12 samples per class, but got 10 of class 1"):
        judged(data)


@pytest.mark.slow
def test_trusted_data_set_threshold():
    data, chosen = backdoored()
    half = torch.arange(len(data)) % 3 != 0
    clean = TensorDataset(*(part[~half] for part in digits()))
    rest = TensorDataset(*(part[half] for part in data.tensors))
    truth = torch.zeros(len(data), dtype=torch.bool)
    truth[chosen] = True
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The false-positive rate is calibrated on")
        verdict = judged(rest, trusted=clean, false_positive_rate=0.02)
    assert verdict.calibration == "trusted"
    assert float((~verdict.keep)[truth[half]].double().mean()) > 0.95
    assert float((~verdict.keep)[~truth[half]].double().mean()) < 0.06


@pytest.mark.slow
@pytest.mark.parametrize(("separation", "counts"), [(5.9, False), (6.0, True)])
def test_effect_on_few_classes_counts_if_the_gap_is_wide(separation, counts, monkeypatch):
    data, _ = points("clean-label")
    few = data.tensors[1] < 3
    groups = Halves(poison=False)
    find = groups.find_groups
    monkeypatch.setattr(by_groups, "transfer_share", lambda *_: 0.9)
    groups.find_groups = lambda *given: [replace(group, separation=separation) for group in find(*given)]
    groups.feature_model = groups.exclusion_model = scorer(20).exclusion_model
    judged(TensorDataset(*(part[few] for part in data.tensors)), groups)
    ((transfer, _),) = groups.calls
    assert transfer == (0.9 if counts else 0.0)


def test_the_fit_of_the_network_is_announced_with_its_time_unless_it_was_fitted_before(caplog, monkeypatch, tmp_path):
    model = FeatureModel(fit_settings=FITTED)
    groups = RobustFeatureScorer(model, exclusion_model=model)
    find, calls = groups.find_groups, []

    def find_groups(*given):
        calls.append(given)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return find(*given)

    monkeypatch.setattr(RobustFeatureScorer, "find_groups", lambda _, *given: find_groups(*given))
    data = points()[0]
    with caplog.at_level(logging.INFO, logger="lightning_poison"):
        with pytest.raises(KeyboardInterrupt):
            sanitize(data, groups, runtime=RUNTIME, cache=tmp_path)
        sanitize(data, groups, runtime=RUNTIME, cache=tmp_path)
    (message,) = [each for each in caplog.messages if "fitting a network" in each]
    assert message.startswith(
        "No trusted data: fitting a network on 1,500 samples to look for groups in its features, about "
    )
    assert len(calls) == 2
