"""Nearest kept samples and near-duplicates: the right ones, of what can be compared, and never too many reads."""

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_poison.report import page_neighbors
from lightning_poison.report.page_neighbors import Neighbors
from lightning_poison.report.page_pictures import Pictures
from lightning_poison.sanitization.evidence import Evidence
from lightning_poison.sanitization.verdict import Verdict


def verdict_of(labels, removed=(), **parts):
    size = len(labels)
    posterior = torch.zeros(size).double()
    posterior[list(removed)] = 0.9
    evidence = Evidence(True, 0.1, 0.05, 0.2, 0.95, 0.003)
    labels = torch.as_tensor(labels)
    thresholds = torch.full((int(labels.max()) + 1,), torch.inf).double()
    return Verdict(
        posterior, 1 - posterior, posterior < 0.5, labels, labels, thresholds,
        evidence, "wrong-label null", 0.01, "likelihood", "5f0c", posterior=posterior, posterior_threshold=0.5, **parts,
    )  # fmt: skip


def neighbors_of(data, labels, removed=(0,), features=None, **parts):
    pictures = None if data is None else Pictures(data, None, limit=1_000)
    return Neighbors(verdict_of(labels, removed, **parts), pictures, asked=list(removed), features=features)


def images(count, size=24, channels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, channels, size, size, generator=generator)


def test_nearest_samples_are_kept_ones_with_the_label_by_distance():
    points = torch.randn(200, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 10, 100, 1, 1])
    labels = torch.arange(200) % 3
    data = list(zip(points, labels.tolist(), strict=True))
    neighbors = neighbors_of(data, labels, removed=(0, 3, 6))
    shown = [0, *[index for index in range(200) if index not in (3, 6)], 3, 6]
    scaled = points / points[shown[1:]].std(0, correction=0)
    for label in range(3):
        others = [index for index in range(200) if labels[index] == label and index not in (0, 3, 6)]
        by_distance = sorted(others, key=lambda index: float((scaled[index] - scaled[0]).norm()))
        assert neighbors.nearest(0, label=label) == by_distance[:4]
    assert "values" in neighbors.method
    assert neighbors.nearest(0, label=-1) == neighbors.nearest(0, label=7) == []


def test_images_are_compared_by_their_pixels_whatever_their_size():
    pixels = (255 * images(12, size=40)).byte().permute(0, 2, 3, 1).numpy()
    pixels[5] = np.clip(pixels[0].astype(int) + 9, 0, 255)
    data = [(Image.fromarray(each), index % 2) for index, each in enumerate(pixels)]
    data[7] = (data[0][0].resize((20, 20), Image.Resampling.BOX), 1)
    neighbors = neighbors_of(data, torch.arange(12) % 2)
    assert set(neighbors.nearest(0, label=1)[:2]) == {5, 7}
    assert neighbors.method == "Images are compared by their pixels, reduced to 16 \N{MULTIPLICATION SIGN} 16."


def test_gray_images_among_color_ones():
    data = [(image if index % 3 else image[:1], 0) for index, image in enumerate(images(9))]
    assert len(neighbors_of(data, [0] * 9).nearest(0, label=0)) == 4


def test_features_replace_pixels():
    data = [(image, 0) for image in images(10)]
    features = torch.arange(10.0).flip(0)[:, None]
    neighbors = neighbors_of(data, [0] * 10, features=features)
    assert neighbors.nearest(0, label=0) == [1, 2, 3, 4]
    assert "features" in neighbors.method
    without_data = neighbors_of(None, [0] * 10, features=features)
    assert without_data.nearest(0, label=0) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "features", [torch.zeros(9, 2), torch.zeros(10), torch.zeros(10, 0), torch.full((10, 1), torch.nan), "features"]
)
def test_wrong_features_are_refused(features):
    with pytest.raises(ValueError, match="`features`"):
        neighbors_of(None, [0] * 10, features=features)


@pytest.mark.parametrize("data", [[("a text", 0)] * 10, None, [(torch.zeros(9_999), 0)] * 10])
def test_what_cannot_be_compared_says_so(data):
    neighbors = neighbors_of(data, [0] * 10)
    assert neighbors.is_empty
    assert neighbors.nearest(0, label=0) == []
    assert neighbors.copies() == []
    assert "not" in neighbors.method


def test_samples_that_cannot_be_read_are_left_out():
    class Failing:
        def __len__(self):
            return 10

        def __getitem__(self, index):
            if index in (1, 2):
                raise OSError("gone")
            return images(1, seed=index)[0], 0

    assert set(neighbors_of(Failing(), [0] * 10).nearest(0, label=0)) <= {3, 4, 5, 6, 7, 8, 9}


def test_samples_that_were_not_judged_are_not_read(monkeypatch):
    judged = torch.arange(10) < 6
    reads = []
    data = [(image, 0) for image in images(10)]
    monkeypatch.setattr(Pictures, "read", lambda _, index: (reads.append(index), data[index][0])[1])
    near = neighbors_of(data, [0] * 10, judged=judged).nearest(0, label=0)
    assert max(reads) == 5
    assert set(near) <= {1, 2, 3, 4, 5}


def test_at_most_some_kept_samples_are_read_evenly_by_class(monkeypatch):
    monkeypatch.setattr(page_neighbors, "MAX_COMPARED", 60)
    reads = []
    monkeypatch.setattr(Pictures, "read", lambda _, index: (reads.append(index), torch.tensor([float(index)]))[1])
    labels = torch.cat([torch.zeros(480), torch.ones(20)]).long()
    neighbors = neighbors_of([None] * 500, labels, removed=(0, 499))
    compared = set(reads) - {0, 499}
    assert len(compared) == 60
    assert sum(index >= 480 for index in compared) == 19  # all of the small class that are kept
    assert neighbors.method.endswith("60 of 498 kept samples were compared.")
    first = set(reads)
    reads.clear()
    neighbors_of([None] * 500, labels, removed=(0, 499))
    assert set(reads) == first


def test_exact_and_near_copies_are_grouped_those_with_several_labels_first():
    pixels = (255 * images(40)).byte()
    pixels[9] = pixels[8] = pixels[7]
    pixels[21] = (pixels[20].int() + 1).clamp(0, 255).byte()  # one gray level
    labels = torch.arange(40) % 2
    digests = torch.arange(1, 41)
    digests[8:10] = digests[7]
    data = list(zip(pixels, labels.tolist(), strict=True))
    found = neighbors_of(data, labels, sample_digests=digests).copies()
    assert [(each.members, each.labels) for each in found] == [([7, 8, 9], 2), ([20, 21], 2)]
    same_label = torch.where(torch.isin(torch.arange(40), torch.tensor([7, 8, 9])), 1, labels)
    found = neighbors_of(data, same_label, sample_digests=digests).copies()
    assert [each.members for each in found] == [[20, 21], [7, 8, 9]]


def test_images_that_are_alike_only_at_a_low_resolution_are_no_copies():
    checks = images(30, size=32, channels=1)
    checks[0, :, ::2, ::2] = checks[0, :, 1::2, 1::2] = 1
    checks[0, :, 1::2, ::2] = checks[0, :, ::2, 1::2] = 0
    checks[1] = 1 - checks[0]  # the same when two by two pixels are averaged
    assert neighbors_of([(image, 0) for image in checks], [0] * 30).copies() == []


def test_unread_samples_have_no_digest_and_are_no_copies():
    assert neighbors_of(None, [0] * 10, sample_digests=torch.zeros(10).long()).copies() == []
