import numpy as np
import pytest
import torch

from lightning_poison.data.embeddings import EmbeddingDataset
from lightning_poison.sanitization.pipeline import sanitize
from lightning_poison.scorers.linear_probe import LinearProbeScorer

ROWS = np.arange(12, dtype=np.float64).reshape(4, 3)


def file_of(tmp_path, array, name="embeddings.npy", **settings):
    path = tmp_path / name
    with path.open("wb") as file:
        np.save(file, array, **settings)
    return path


@pytest.mark.parametrize(
    "embeddings",
    [ROWS, ROWS.astype(np.float16), ROWS.astype(np.int64), torch.from_numpy(ROWS).bfloat16(), ROWS.tolist()],
)
def test_rows_are_float32_vectors(embeddings):
    data = EmbeddingDataset(embeddings, [3, 1, 0, 1])
    row, label = data[2]
    assert len(data) == 4
    assert row.dtype == torch.float32
    assert row.tolist() == [6, 7, 8]
    assert label == 0
    assert data.targets.tolist() == [3, 1, 0, 1]
    assert [label for _, label in data.__getitems__([1, 0])] == [1, 3]


@pytest.mark.parametrize("as_path", [str, lambda path: path])
def test_file_is_memory_mapped(tmp_path, as_path):
    data = EmbeddingDataset(as_path(file_of(tmp_path, ROWS)), torch.tensor([0, 1, 0, 1]))
    assert isinstance(data.embeddings, np.memmap)
    assert data[3][0].tolist() == [9, 10, 11]


def test_rows_are_copies():
    rows = ROWS.astype(np.float32)
    row, _ = EmbeddingDataset(rows, [0] * 4)[0]
    row += 1
    assert rows[0, 0] == 0


@pytest.mark.parametrize("labels", [[0, 1], [0, 1, 0, 1, 0]])
def test_other_number_of_labels(labels):
    with pytest.raises(
        ValueError, match=f"(?s)for each of the 4 embeddings, but got {len(labels)}.*Embed every sample"
    ):
        EmbeddingDataset(ROWS, labels)


@pytest.mark.parametrize(
    ("embeddings", "error", "message"),
    [
        (ROWS[0], ValueError, r"vectors \(N, D\), one for each sample, but got shape \(3,\)"),
        (ROWS.reshape(2, 2, 3), ValueError, "Flatten or pool"),
        (ROWS[:0], ValueError, r"shape \(0, 3\)"),
        (ROWS.astype(str), TypeError, "an array of numbers"),
        (ROWS > 3, TypeError, "an array of numbers"),
        (ROWS.astype(complex), TypeError, "an array of numbers"),
        (torch.zeros(4, 3, dtype=torch.bool), TypeError, "an array of numbers"),
        (None, TypeError, "an array of numbers"),
    ],
)
def test_embeddings_that_are_none(embeddings, error, message):
    with pytest.raises(error, match=message):
        EmbeddingDataset(embeddings, [0] * 4)


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="an existing file"):
        EmbeddingDataset(tmp_path / "missing.npy", [0])
    with pytest.raises(ValueError, match=r"a `.npy` file"):
        EmbeddingDataset("embeddings.pt", [0])
    objects = file_of(tmp_path, np.array([{}, {}]), allow_pickle=True)
    with pytest.raises(ValueError, match="arrays of objects are not read"):
        EmbeddingDataset(objects, [0, 1])
    short = file_of(tmp_path, ROWS)
    short.write_bytes(short.read_bytes()[:100])
    with pytest.raises(ValueError, match="a file with an array of numbers"):
        EmbeddingDataset(short, [0, 1])


def test_embeddings_can_be_judged(tmp_path):
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(300) % 3
    points = torch.randn(300, 4, generator=generator) + 6 * torch.eye(4)[truth]
    labels = torch.where(torch.arange(300) < 15, (truth + 1) % 3, truth)
    path = file_of(tmp_path, points.numpy())
    verdict = sanitize(EmbeddingDataset(path, labels), LinearProbeScorer())
    removed = (~verdict.keep).nonzero().flatten()
    assert len(removed) >= 10
    assert int(removed.max()) < 15
    assert float((verdict.suggested_labels == truth).double().mean()) > 0.98


def test_embeddings_that_are_not_finite():
    rows = torch.from_numpy(ROWS).clone()
    rows[2, 1] = torch.nan
    with pytest.raises(Exception, match="sample 2"):
        sanitize(EmbeddingDataset(rows, [0, 1, 0, 1]), LinearProbeScorer())
