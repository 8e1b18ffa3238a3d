"""Changes of a data set object that was judged show on a reload."""

import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from lightning_poison._lightning.judged_data import COMPARED, JudgedData
from lightning_poison.data.reading import ReadSettings
from lightning_poison.data.source import Readable
from lightning_poison.sanitization.pipeline import sanitize
from lightning_poison.sanitization.stored_decision import StoredDecision

HIDDEN = {}
"""What data sets hold outside of themselves."""


class Hidden(Dataset):
    """Samples that are not in the memory of the data set, with a count of the reads."""

    reads = 0

    def __init__(self, data, *, listed=False):
        points, labels = data.tensors
        HIDDEN.update(points=points.clone(), labels=labels.clone())
        self.listed = listed

    def __len__(self):
        return len(HIDDEN["labels"])

    def __getitem__(self, index):
        type(self).reads += 1
        return HIDDEN["points"][index], HIDDEN["labels"][index]

    @property
    def targets(self):
        return HIDDEN["labels"] if self.listed else None


@pytest.fixture
def judge(centroid_scorer):
    def judge(data, positions=None, *, inputs=True, stored=False, **settings):
        readable = Readable(data, positions, ReadSettings(**settings))
        verdict = sanitize(readable, centroid_scorer())
        return JudgedData.of(readable, StoredDecision.of(verdict) if stored else verdict, inputs=inputs)

    return judge


def unchanged(judged, positions=None):
    return judged.is_unchanged(positions, sample=None, seed=0)


@pytest.mark.parametrize("settings", [{}, {"stored": True}, {"num_workers": 1}], ids=str)
def test_equal_data_are_recognized_by_a_few_samples(judge, blobs, settings):
    judged = judge(Hidden(blobs(flipped=60)), **settings)
    Hidden.reads = 0
    assert all(unchanged(judged) for _ in range(3))
    assert Hidden.reads <= 3 * (COMPARED + 20)


CHANGES = {
    "grown": lambda points, labels: HIDDEN.update(points=torch.cat([points, points]), labels=torch.cat([labels] * 2)),
    "shrunk": lambda points, labels: HIDDEN.update(points=points[:-1], labels=labels[:-1]),
    "resampled": lambda points, labels: (points.copy_(points.flip(0)), labels.copy_(labels.flip(0))),
    "other inputs": lambda points, labels: points.add_(1),
    "one in ten": lambda points, labels: points[::10].add_(1),
    "other shape": lambda points, labels: HIDDEN.update(points=points[:, :2]),
    "unreadable": lambda points, labels: HIDDEN.update(points=None),
}


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("case", CHANGES)
def test_changes_outside_of_memory_show_in_samples(judge, blobs, case, stored):
    judged = judge(Hidden(blobs(flipped=60)), stored=stored)
    CHANGES[case](HIDDEN["points"], HIDDEN["labels"])
    assert not unchanged(judged)


def test_other_samples_are_read_at_each_check(judge, blobs):
    judged = judge(Hidden(blobs(flipped=60)))
    HIDDEN["points"][::150] += 1
    assert not all(unchanged(judged) for _ in range(10))


def test_a_single_listed_label_shows(judge, blobs):
    judged = judge(Hidden(blobs(flipped=60), listed=True))
    HIDDEN["labels"][77] = (HIDDEN["labels"][77] + 1) % 3
    assert not unchanged(judged)


def test_a_single_value_in_memory_shows(judge, blobs):
    data = TensorDataset(*(each.clone() for each in blobs(flipped=60).tensors))
    judged = judge(data)
    assert unchanged(judged)
    data.tensors[0][333, 2] += 1e-3
    assert not unchanged(judged)


def test_labels_alone_are_compared_if_the_inputs_are_others(judge, blobs):
    judged = judge(Hidden(blobs(flipped=60)), inputs=False)
    HIDDEN["points"] += 1
    assert unchanged(judged)
    HIDDEN["labels"] = (HIDDEN["labels"] + 1) % 3
    assert not unchanged(judged)


@pytest.mark.parametrize(
    ("positions", "same"),
    [(range(450), True), (range(50, 300), True), (range(451), False), (range(500, 600), False), (None, False)],
    ids=str,
)
def test_samples_that_were_not_judged_show(judge, blobs, positions, same):
    judged = judge(Hidden(blobs(flipped=60)), torch.arange(450))
    assert unchanged(judged, None if positions is None else torch.tensor(positions)) is same


def test_samples_that_are_not_drawn_are_not_read(judge, blobs):
    class Partly(Hidden):
        def __getitem__(self, index):
            if index < 100:
                raise OSError("not a training sample")
            return super().__getitem__(index)

    judged = judge(Partly(blobs(flipped=60)), torch.arange(100, 600))
    assert unchanged(judged, torch.arange(100, 600))


def test_random_states_and_handles_are_unchanged(judge, blobs):
    class Lazy(Hidden):
        file = None

        def __getitem__(self, index):
            self.file = self.file or object()
            point, label = super().__getitem__(index)
            return point + 0.1 * torch.randn(4), label

    judged = judge(Lazy(blobs(flipped=60)))
    torch.manual_seed(0)
    assert unchanged(judged)
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(after, torch.rand(1))
    assert judged.data.dataset.file is None


def test_rows_that_a_collate_fn_pads(judge, blobs):
    points, labels = blobs(flipped=60).tensors
    rows = [(points[index, : 4 - index % 2].tolist(), int(labels[index])) for index in range(600)]

    def pad(samples):
        rows = torch.tensor([row + [0.0] * (4 - len(row)) for row, _ in samples])
        return {"x": rows, "labels": torch.tensor([label for _, label in samples])}

    assert unchanged(judge(rows, collate_fn=pad))


@pytest.mark.filterwarnings("ignore:The inputs differ whenever:UserWarning")
def test_inputs_that_differ_at_each_read_are_not_compared(judge, blobs):
    class Jittered(Hidden):
        generator = torch.Generator().manual_seed(0)

        def __getitem__(self, index):
            point, label = super().__getitem__(index)
            return point + 0.01 * torch.rand(4, generator=self.generator), label

    judged = judge(Jittered(blobs(flipped=60)))
    assert unchanged(judged)
    HIDDEN["labels"] = (HIDDEN["labels"] + 1) % 3
    assert not unchanged(judged)
