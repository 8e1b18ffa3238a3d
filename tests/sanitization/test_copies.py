import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from lightning_poison.data import kept_inputs, labeled_data
from lightning_poison.data.blocks import MemoryDataset
from lightning_poison.data.labeled_data import read_labeled
from lightning_poison.data.source import open_source
from lightning_poison.errors import DataChangedError
from lightning_poison.models.fitting import FitSettings
from lightning_poison.runtime import LocalRuntime
from lightning_poison.sanitization import copies
from lightning_poison.sanitization.copies import copy_notes, with_copies
from lightning_poison.sanitization.pipeline import sanitize
from lightning_poison.scorers.likelihood import LikelihoodScorer
from lightning_poison.statistics.near_copies import near_copies
from lightning_poison.testing.tiny_images import TinyImages

RUNTIME = LocalRuntime(precision="32", threads=1, quiet=True)
QUICK = FitSettings(epochs=5, batch_size=32, min_steps=60)


def quick():
    return LikelihoodScorer(fit_settings=QUICK)


def blobs(count, wrong=0, seed=0):
    truth = torch.arange(count) % 3
    points = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed)) + 6 * torch.eye(4)[truth]
    return points, torch.where(torch.arange(count) < wrong, (truth + 1) % 3, truth)


def known_copies(inputs, labels, groups=None, cache=None):
    data = read_labeled(open_source(TensorDataset(inputs, labels), sample=None), runtime=RUNTIME, name="data")
    return with_copies(data, groups, RUNTIME, cache=cache)


def test_finds_exact_copies_whatever_their_labels():
    data = known_copies(torch.tensor([[1.0], [2.0], [1.0], [1.0]]), torch.tensor([0, 1, 0, 1]))
    assert data.copies.first.tolist() == [0, 1, 0, 3]
    assert data.copies.group.tolist() == [0, 1, 0, 0]
    count, conflict = copy_notes(data)
    assert count.startswith("1 of the samples repeat another one with the same label.")
    assert conflict == "1 inputs occur with several labels: sample 0 labeled 0, sample 3 labeled 1."


def test_finds_near_copies_of_images():
    images = torch.stack([TinyImages(40)[index][0] for index in range(40)])
    noise = 0.005 * torch.randn(1, *images.shape[1:], generator=torch.Generator().manual_seed(0))
    data = known_copies(torch.cat([images, images[7:8] + noise]), torch.arange(41) % 2)
    assert data.copies.group.tolist() == [*range(40), 7]
    assert torch.equal(data.copies.first, torch.arange(41))
    assert copy_notes(data) == ("1 of the samples are in the fold of a near copy or of another sample of their group.",)


def test_near_copies_do_not_depend_on_what_is_kept_in_memory(monkeypatch):
    images = torch.rand(600, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    images[500] = images[3] + 0.001
    kept = known_copies(images, torch.arange(600) % 2)
    monkeypatch.setattr(labeled_data, "MEMORY_LIMIT", 0)
    read_again = known_copies(images, torch.arange(600) % 2)
    assert isinstance(kept.dataset, MemoryDataset) and not isinstance(read_again.dataset, MemoryDataset)  # noqa: PT018
    assert torch.equal(kept.copies.group, read_again.copies.group)
    assert int(kept.copies.group[500]) == 3
    monkeypatch.setattr(copies, "NEAR_COPY_LIMIT", 0)
    assert not known_copies(images, torch.arange(600) % 2).copies.has_groups


def test_near_copies_do_not_depend_on_bytes(monkeypatch):
    levels = torch.randint(256, (600, 3, 9, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    levels[500] = levels[3] ^ 1
    levels[501] = levels[3]
    kept = known_copies(levels / 255, torch.arange(600) % 2)
    monkeypatch.setattr(kept_inputs, "SCALINGS", ())
    as_float = known_copies(levels / 255, torch.arange(600) % 2)
    assert (kept.dataset.stored.num_bytes, as_float.dataset.stored.num_bytes) == (levels.numel(), 4 * levels.numel())
    assert torch.equal(kept.copies.group, as_float.copies.group)
    assert kept.copies.group[[500, 501]].tolist() == [3, 3]


def test_near_copies_of_the_same_images_are_searched_once(tmp_path, monkeypatch):
    searched = []
    monkeypatch.setattr(copies, "near_copies", lambda images: searched.append(len(images)) or near_copies(images))
    images = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    images[7] = images[3] + 0.001
    first = known_copies(images, torch.arange(20) % 2, cache=tmp_path)
    again = known_copies(images, torch.arange(20) % 5, cache=tmp_path)
    assert searched == [20]
    assert first.copies.group[7] == again.copies.group[7] == 3
    images[7] = images[5] + 0.001
    changed = known_copies(images, torch.arange(20) % 2, cache=tmp_path)
    assert searched == [20, 20]
    assert changed.copies.group[7] == 5


def test_no_copies_no_notes():
    data = known_copies(*blobs(30))
    assert torch.equal(data.copies.group, torch.arange(30))
    assert copy_notes(data) == ()


def test_groups_are_merged_with_copies():
    data = known_copies(torch.tensor([[1.0], [2.0], [1.0], [3.0]]), torch.arange(4) % 2, torch.tensor([0, 1, 2, 2]))
    assert data.copies.group.tolist() == [0, 1, 0, 0]


@pytest.mark.slow
def test_no_model_scores_a_copy_of_what_it_was_fitted_on():
    points, labels = blobs(240, wrong=12)
    verdict = sanitize(TensorDataset(points.repeat(8, 1), labels.repeat(8)), quick(), runtime=RUNTIME)
    kept = verdict.keep.view(8, -1)
    assert torch.equal(kept, kept[:1].expand(8, -1))
    assert int((~kept[0, :12]).sum()) >= 11
    assert kept[0, 12:].double().mean() > 0.98
    assert verdict.evidence.contamination == pytest.approx(0.05, abs=0.02)
    assert "1,680 of the samples repeat another one" in str(verdict)


@pytest.mark.slow
def test_data_without_copies_give_the_same_verdict_as_before():
    points, labels = blobs(240, wrong=12)
    plain = sanitize(TensorDataset(points, labels), quick(), runtime=RUNTIME)
    alone = sanitize(TensorDataset(points, labels), quick(), groups=list(range(240)), runtime=RUNTIME)
    for name in ("scores", "keep", "posterior", "p_values"):
        assert torch.equal(getattr(plain, name), getattr(alone, name))


@pytest.mark.slow
def test_class_of_few_distinct_samples_is_not_judged():
    points, labels = blobs(60)
    points, labels = torch.cat([points, points[:1].expand(20, -1) + 9]), torch.cat([labels, torch.full((20,), 3)])
    verdict = sanitize(TensorDataset(points, labels), quick(), runtime=RUNTIME)
    assert torch.equal(verdict.judged, labels < 3)
    assert "The 20 samples of class 3 are kept and not judged" in str(verdict)


@pytest.mark.slow
def test_other_groups_are_another_decision():
    data = TensorDataset(*blobs(60))
    verdict = sanitize(data, quick(), groups=lambda index: index // 2, runtime=RUNTIME)
    assert (
        sanitize(data, quick(), groups=[index // 2 for index in range(60)], known=verdict, runtime=RUNTIME) is verdict
    )
    with pytest.raises(DataChangedError, match=r"the settings groups '\w+', but got None\.\n.*`known: null`"):
        sanitize(data, quick(), known=verdict, runtime=RUNTIME)


@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        ([1, 2], ValueError, r"one group for each of 60 samples, but got 2\."),
        ([1.5] * 60, TypeError, r"`groups\[0\]` to be an integer, a text or None, but got"),
        (np.arange(61), ValueError, "but got 61"),
        (lambda index: 1 // (7 - index), ValueError, "the group of sample 7, but it raised ZeroDivisionError"),
        ([0] * 30 + [1] * 30, ValueError, "too few groups of a class.*`groups=`"),
    ],
)
def test_refuses_groups(groups, error, message):
    with pytest.raises(error, match=message):
        sanitize(TensorDataset(*blobs(60)), quick(), groups=groups, runtime=RUNTIME)
