import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset

from lightning_poison.attacks.objectives import ProtectedClassObjective
from lightning_poison.attacks.poison import COVER, Poison
from lightning_poison.attacks.poisoned_dataset import PoisonedDataset
from lightning_poison.evaluation.measurement import (
    Judgment,
    Removal,
    judgment_of,
    mask_of,
    measured,
    predictions_by_class,
    random_mask,
)


def test_random_filter_is_independent_of_attack_with_same_seed():
    drawn = torch.randperm(1000, generator=torch.Generator().manual_seed(0))[:100]
    out = ~random_mask(1000, 100, seed=0)
    assert int(out.sum()) == 100
    assert int(out[drawn].sum()) < 30
    assert torch.equal(out, ~random_mask(1000, 100, seed=0))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the record cannot be reset")
def test_memory_is_that_of_the_block():
    with measured() as large:
        block = torch.ones(2**26)  # 256 MiB
        del block
    with measured() as small:
        time.sleep(0.02)
    assert small.seconds >= 0.02
    assert large.peak_memory_mib > small.peak_memory_mib + 100


def test_removal_counts_classes_and_leaves_out_cover():
    data = TensorDataset(torch.zeros(6, 1), torch.tensor([0, 0, 0, 1, 1, 2]))
    role = torch.tensor([0, COVER])
    poison = Poison(torch.tensor([0, 1]), torch.tensor([1, 0]), ProtectedClassObjective(0), attack="a", role=role)
    keep = torch.tensor([False, False, True, False, True, True])
    removal = Removal.of(keep, PoisonedDataset(data, poison))
    assert removal.removed == 3
    assert removal.removed_by_class == {"0": 1, "1": 2}
    assert removal.poison_caught == 1
    assert removal.clean_lost == pytest.approx(1 / 4)


def poisoned_by_two():
    data = TensorDataset(torch.zeros(6, 1), torch.tensor([0, 0, 0, 1, 1, 2]))
    role = torch.tensor([0, COVER])
    poison = Poison(torch.tensor([0, 1]), torch.tensor([1, 0]), ProtectedClassObjective(0), attack="a", role=role)
    return PoisonedDataset(data, poison)


def test_judgment_is_copied_and_compared_with_the_truth_without_cover():
    poisoned, keep = poisoned_by_two(), torch.ones(6, dtype=torch.bool)
    suspicion = torch.tensor([0.9, 0.8, 0.1, 0.2, 0.3, float("nan")])
    judgment = judgment_of("mine", lambda _: Judgment(keep, suspicion), poisoned)
    keep[0], suspicion[0] = False, 0.0
    assert judgment.keep.all()
    summary = judgment.summary(poisoned)
    assert (sum(summary.clean), sum(summary.poison), summary.auroc) == (3, 1, 1.0)
    assert mask_of("mine", lambda _: Judgment(keep, suspicion), poisoned).equal(keep)


@pytest.mark.parametrize(
    "result",
    [
        Judgment(torch.ones(5, dtype=torch.bool), torch.zeros(6)),
        Judgment(torch.ones(6, dtype=torch.bool), torch.zeros(5)),
        Judgment(torch.ones(6, dtype=torch.bool), None),
        Judgment(torch.ones(6, dtype=torch.bool), torch.zeros(6), torch.zeros(6).long()),
        torch.ones(6),
    ],
)
def test_invalid_judgment_names_the_defense(result):
    with pytest.raises(ValueError, match="of mine"):
        judgment_of("mine", lambda _: result, poisoned_by_two())


def test_predictions_of_many_labels_are_not_counted():
    labels = torch.arange(21)
    assert predictions_by_class(labels, labels) is None
    assert predictions_by_class(labels[:20], labels[:20])["19"] == {"19": 1}
    assert predictions_by_class(labels[:0], labels[:0]) is None
