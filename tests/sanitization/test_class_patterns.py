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
from lightning_poison.sanitization.class_patterns import MIN_PATTERN, pattern_share, rest_of_class
from lightning_poison.sanitization.job import Job
from lightning_poison.sanitization.pipeline import sanitize
from lightning_poison.scorers.feature_model import FeatureModel
from lightning_poison.scorers.network_groups import NetworkGroupScorer
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
    """Four shapes with noise; three quarters of the first class have faint stripes if `poisoned`."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(1200) % 4
    inputs = 0.25 + 0.06 * torch.randn(1200, 1, 12, 12, generator=generator)
    for label in range(4):
        place = 2 + 4 * (label // 2), 2 + 4 * (label % 2)
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
    verdict = sanitize(data, groups(), runtime=RUNTIME, max_removed=0.8)
    assert verdict.keep.equal(error.value.verdict.keep)


def test_clean_drawings_are_kept():
    verdict = sanitize(drawings(poisoned=False)[0], groups(), runtime=RUNTIME)
    assert verdict.keep.all()
    assert not verdict.evidence.present
