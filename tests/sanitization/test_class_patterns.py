from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from lightning_poison.data.labeled_data import read_labeled
from lightning_poison.data.source import open_source
from lightning_poison.errors import NothingKeptError
from lightning_poison.models.fitting import FitSettings
from lightning_poison.randomness import seeded_rng
from lightning_poison.runtime import LocalRuntime
from lightning_poison.sanitization import by_groups
from lightning_poison.sanitization.class_patterns import MIN_PATTERN, pattern_share, rest_of_class
from lightning_poison.sanitization.job import Job
from lightning_poison.sanitization.pipeline import sanitize
from lightning_poison.scorers.feature_model import FeatureModel
from lightning_poison.scorers.network_groups import NetworkGroupScorer
from lightning_poison.statistics.group_effects import SuspectGroup
from lightning_poison.statistics.subgroups import Subgroup

RUNTIME = LocalRuntime(precision="32", threads=1)


class CornerReader:
    """A network that takes a bright first pixel for class 0, and reads any other class from the second pixel."""

    def logits(self, inputs, *, shift=None):
        first, second = inputs.flatten(1)[:, 0], inputs.flatten(1)[:, 1]
        logits = -(second[:, None] - torch.arange(5) / 10).abs()
        logits[:, 0] = torch.where(first > 0.5, 1.0, -1.0)
        return logits


def images(brightness, *, shape=(1, 3, 3)):
    """250 images of five classes; of class 0, all but the first ten samples have a brighter first pixel."""
    labels = torch.arange(250) % 5
    inputs = torch.zeros(250, *shape)
    rows = inputs.view(250, -1)
    rows[:, 1] = labels / 10
    of_class = (labels == 0).nonzero().flatten()
    rows[of_class[10:], 0] = brightness
    data = read_labeled(open_source(TensorDataset(inputs, labels), sample=None), runtime=RUNTIME, name="data")
    log_odds = torch.where(torch.arange(50) < 10, -4.0, 4.0).double()
    return Job(data, None, RUNTIME), Subgroup(0, of_class, log_odds, 9.0)


@pytest.mark.parametrize(
    ("brightness", "shape", "expected"),
    [(0.3, (1, 3, 3), 1.0), (0.2, (1, 3, 3), 0.0), (0.0, (1, 3, 3), 0.0), (0.3, (9,), 0.0)],
    ids=["strong", "weak", "none", "vectors"],
)
def test_pattern_is_added_at_twice_its_strength(brightness, shape, expected):
    job, group = images(brightness, shape=shape)
    others = (job.labels != 0).nonzero().flatten()
    share = pattern_share(job, CornerReader(), group, torch.Size(shape), others)
    # Clamped to the brightest pixel that occurs, at which the reader does not see it.
    assert share == 0.0
    rows = job.data.dataset.inputs.view(250, -1)
    rows[group.members[0], 2] = 1.0
    assert pattern_share(job, CornerReader(), group, torch.Size(shape), others) == expected


def test_rest_of_class_takes_samples_of_earlier_groups_to_the_nearer_part():
    job, _ = images(0.3)
    of_class = (job.labels == 0).nonzero().flatten()
    searched = of_class[:40]
    log_odds = torch.where(torch.arange(40) < 10, 6.0, -5.0).double()
    features = torch.zeros(250, 2)
    features[of_class[:10], 0] = 8.0
    features[of_class[40:43], 0] = 7.0
    rest = rest_of_class(job, features, Subgroup(0, searched, log_odds, 7.0))
    assert rest.positions.equal(of_class)
    assert rest.members.equal(torch.cat([of_class[10:40], of_class[43:]]))
    assert rest.log_odds[:10].eq(-6).all()
    assert rest.log_odds[40:43].eq(-6).all()
    assert rest.log_odds[43:].eq(6).all()
    assert (rest.label, rest.separation) == (0, 7.0)


def drawings(*, poisoned):
    """Six shapes with noise; three quarters of the first class have faint stripes if `poisoned`."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(1800) % 6
    inputs = 0.25 + 0.06 * torch.randn(1800, 1, 12, 12, generator=generator)
    for label in range(6):
        place = 1 + 6 * (label // 3), 4 * (label % 3)
        inputs[labels == label, :, place[0] : place[0] + 4, place[1] : place[1] + 4] += 0.12
    of_class = (labels == 0).nonzero().flatten()
    chosen = of_class[75:]
    if poisoned:
        inputs[chosen] += 0.12 * (torch.arange(12) % 2)
    return TensorDataset(inputs.clamp(0, 1), labels), chosen


def groups():
    with seeded_rng(0):
        backbone = nn.Sequential(
            *(nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(12, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(576, 16)),
        )
    settings = FitSettings(epochs=6, learning_rate=4e-3, shift=0, mirror=False)
    model = FeatureModel(backbone=backbone, feature_size=16, fit_settings=settings)
    return NetworkGroupScorer(model, exclusion_model=model.for_fit())


def test_most_of_a_class_with_a_pattern_is_named_and_stops_the_run():
    data, chosen = drawings(poisoned=True)
    with pytest.raises(
        NothingKeptError, match=r"class 0 are suspicious, since they share a pattern that turns"
    ) as error:
        sanitize(data, groups(), runtime=RUNTIME)
    verdict = error.value.verdict
    assert float((~verdict.keep)[chosen].double().mean()) > 0.95
    assert int((~verdict.keep).sum()) <= len(chosen) + 3
    (group,) = [each for each in verdict.evidence.groups if each.is_poison]
    assert group.pattern >= MIN_PATTERN
    assert f"labeled 0: {group.size} samples, most of the class, share a pattern" in str(verdict)
    of_class = verdict.labels == 0
    assert verdict.scores[~verdict.keep].min() > verdict.scores[verdict.keep & of_class].max()
    verdict = sanitize(data, groups(), runtime=RUNTIME, max_removed=0.8)
    assert verdict.keep.equal(error.value.verdict.keep)


def test_clean_drawings_are_kept():
    verdict = sanitize(drawings(poisoned=False)[0], groups(), runtime=RUNTIME)
    assert verdict.keep.all()
    assert not verdict.evidence.present


def stubbed(monkeypatch, *, pattern=0.9, recognized=True):
    asked = []
    monkeypatch.setattr(by_groups, "pattern_share", lambda *_: asked.append(1) or pattern)
    monkeypatch.setattr(by_groups, "_is_recognized", lambda *_: recognized)
    return asked


def effect_of(group, *, separation=9.0, transfer=0.0, resemblance=0.0, poison=False, rest_margin=1.0):
    found = SuspectGroup(0, len(group.members), separation, transfer, resemblance, poison, rest_margin)
    return by_groups._Effect.of(group, found, torch.zeros(len(group.members)).long())


def with_patterns(job, effects, labels=None):
    probed = (job.labels != 0).nonzero().flatten() if labels is None else torch.isin(job.labels, labels).nonzero()[:, 0]
    return by_groups._with_patterns(job, None, None, torch.zeros(250, 2), probed, effects)


def clean_part(job, size=10):
    of_class = (job.labels == 0).nonzero().flatten()
    return Subgroup(0, of_class, torch.where(torch.arange(50) < size, 4.0, -4.0).double(), 9.0)


@pytest.mark.parametrize(
    ("recognized", "rest_margin", "replaced"),
    [(True, 1.0, True), (False, 1.0, False), (False, 3.5, True)],
    ids=["recognized", "another class", "something simple"],
)
def test_most_of_a_class_is_poison_if_it_is_still_of_its_class(monkeypatch, recognized, rest_margin, replaced):
    stubbed(monkeypatch, recognized=recognized)
    job, _ = images(0.3)
    (found,) = with_patterns(job, [effect_of(clean_part(job), rest_margin=rest_margin)])
    assert found.found.is_poison is replaced
    assert found.found.size == (40 if replaced else 10)
    assert found.found.pattern == (0.9 if replaced else 0.0)


def test_a_backdoor_in_the_class_stays_one(monkeypatch):
    asked = stubbed(monkeypatch)
    job, _ = images(0.3)
    natural = effect_of(clean_part(job))
    backdoor = effect_of(clean_part(job, 5), separation=7.0, transfer=0.95, poison=True)
    assert with_patterns(job, [natural, backdoor]) == [natural, backdoor]
    assert not asked


def test_a_group_that_looks_like_another_class_may_be_the_clean_part(monkeypatch):
    stubbed(monkeypatch)
    job, _ = images(0.3)
    (found,) = with_patterns(job, [effect_of(clean_part(job), resemblance=0.5, poison=True)])
    assert found.found.size == 40


@pytest.mark.parametrize("case", ["few classes", "small part", "little gap", "weak pattern"])
def test_patterns_of_natural_parts_are_no_evidence(monkeypatch, case):
    asked = stubbed(monkeypatch, pattern=0.4)
    job, _ = images(0.3)
    group = clean_part(job, 2 if case == "small part" else 10)
    if case == "little gap":
        group = replace(group, separation=4.5)
    effect = effect_of(group, separation=group.separation)
    assert with_patterns(job, [effect], torch.tensor([1, 2, 3]) if case == "few classes" else None) == [effect]
    assert bool(asked) is (case == "weak pattern")
