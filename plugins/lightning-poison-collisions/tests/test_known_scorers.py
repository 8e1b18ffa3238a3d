import json

import pytest
import torch
from torch.utils.data import TensorDataset

from lightning_poison import CombinedScorer, PixelRange
from lightning_poison.scorers import DeepKNNScorer, PixelCountingScorer
from lightning_poison_collisions import KnownScorer
from lightning_poison_collisions.known_scorers import check_differentiable, held_out_part, worst_excess

from .conftest import Brightness, BrightPixels


def ramps(count=2000):
    values = torch.arange(count) / count
    return TensorDataset(values[:, None], (torch.arange(count) % 2))


def test_of_calibrates_like_defender():
    known = KnownScorer.of(Brightness(), ramps(), false_positive_rate=0.1)
    torch.testing.assert_close(known.thresholds, torch.tensor([0.9, 0.9]), atol=5e-3, rtol=0)
    torch.testing.assert_close(known.scales, torch.tensor([0.45, 0.45]), atol=5e-3, rtol=0)
    assert json.loads(json.dumps(known.settings()))["scorer"] == "brightness"


def test_worst_excess_is_maximum_over_scorers():
    strict = KnownScorer(Brightness(), torch.tensor([0.2, 0.4]), torch.tensor([0.1, 0.1]))
    lax = KnownScorer(Brightness(), torch.tensor([0.9, 0.9]), torch.tensor([0.1, 0.1]))
    images, labels = torch.full((2, 3), 0.4), torch.tensor([0, 1])
    torch.testing.assert_close(worst_excess([lax, strict], images, labels, PixelRange()), torch.tensor([2.0, 0.0]))


def test_worst_excess_normalizes_images():
    known = KnownScorer(Brightness(), torch.tensor([0.0]), torch.tensor([1.0]))
    pixels = PixelRange(mean=(0.5,), std=(0.25,))
    found = worst_excess([known], torch.full((1, 1, 2, 2), 0.75), torch.tensor([0]), pixels)
    torch.testing.assert_close(found, torch.tensor([1.0]))


def test_check_differentiable_refuses_scores_without_gradient():
    images = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(images, torch.arange(40) % 2)
    known = KnownScorer.of(BrightPixels(), data, false_positive_rate=0.2)
    with pytest.raises(ValueError, match="those of bright-pixels are not"):
        check_differentiable([known], images, data.tensors[1], PixelRange())
    check_differentiable([KnownScorer.of(Brightness(), data)], images, data.tensors[1], PixelRange())


@pytest.mark.parametrize(
    ("thresholds", "scales", "message"),
    [
        (torch.tensor([1.0, torch.inf]), torch.ones(2), "`thresholds` to be a finite vector"),
        (torch.ones(2, 2), torch.ones(2), "`thresholds` to be a finite vector"),
        (torch.ones(2), torch.ones(3), r"`scales` to be above 0 and of shape \(2,\)"),
        (torch.ones(2), torch.tensor([1.0, 0.0]), "`scales` to be above 0"),
    ],
)
def test_refuses_invalid_thresholds_and_scales(thresholds, scales, message):
    with pytest.raises(ValueError, match=message):
        KnownScorer(PixelCountingScorer(), thresholds, scales)


def test_of_refuses_invalid_rate_and_absent_class():
    with pytest.raises(ValueError, match="`false_positive_rate`"):
        KnownScorer.of(Brightness(), ramps(), false_positive_rate=5)
    with pytest.raises(ValueError, match="none of class 0"):
        KnownScorer.of(Brightness(), TensorDataset(torch.rand(9, 1), torch.ones(9).long()))


def test_refuses_set_scorers_and_combined_scorers():
    with pytest.raises(TypeError, match="needs the whole set"):
        KnownScorer.of(DeepKNNScorer(), ramps())
    combined = CombinedScorer([PixelCountingScorer(), PixelCountingScorer()])
    with pytest.raises(TypeError, match=r"`scorer` to be a `Scorer`, but got CombinedScorer\.\nFor a `CombinedScorer`"):
        KnownScorer(combined, torch.ones(2), torch.ones(2))


def test_held_out_part_has_each_class_and_refuses_single_samples():
    labels = torch.tensor([0] * 20 + [2] * 2)
    part = held_out_part(labels, torch.Generator().manual_seed(0))
    assert labels[part].bincount().tolist() == [6, 0, 1]
    with pytest.raises(ValueError, match="one of class 1"):
        held_out_part(torch.tensor([0, 0, 1]), torch.Generator())
