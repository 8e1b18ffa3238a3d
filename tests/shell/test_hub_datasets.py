import sys

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from lightning_poison.shell.sources import open_named_source


@pytest.fixture(autouse=True)
def quiet():
    datasets.disable_progress_bars()


def images(*values):
    pictures = [Image.fromarray(np.full((8, 8), value, dtype=np.uint8)) for value in values]
    features = {"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["dog", "cat"])}
    columns = {"picture": pictures, "kind": [number % 2 for number in range(len(values))]}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def test_images_with_classes(tmp_path):
    images(10, 20, 30).save_to_disk(tmp_path / "data")
    found = open_named_source(str(tmp_path / "data"))
    assert found.classes == ["cat", "dog"]
    assert [round(float(image.max()) * 255) for image, _ in found.dataset] == [10, 20, 30]
    assert found.dataset.samples == [("row 0", 1), ("row 1", 0), ("row 2", 1)]


def test_images_without_a_class_have_no_label(tmp_path):
    features = {"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["dog", "cat"])}
    pictures = [Image.fromarray(np.full((8, 8), value, dtype=np.uint8)) for value in (10, 20, 30)]
    columns = {"picture": pictures, "kind": [0, None, -1]}
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).save_to_disk(tmp_path / "data")
    found = open_named_source(str(tmp_path / "data"))
    assert (found.classes, found.dataset.targets) == (["dog"], [0, -1, -1])


def test_splits(tmp_path):
    place = tmp_path / "data"
    datasets.DatasetDict({"train": images(1, 2, 3), "test": images(4, 5)}).save_to_disk(place)
    assert len(open_named_source(str(place)).dataset) == 3
    assert len(open_named_source(f"{place}@test").dataset) == 2
    with pytest.raises(ValueError, match=r"one of train, test, but got 'tset'\.\nWrite `.*data@SPLIT`"):
        open_named_source(f"{place}@tset")


def test_embeddings_with_names(tmp_path):
    columns = {"embedding": [[1.0, 2.0], [3.0, 4.0]], "id": ["a7", "b1"], "y": ["cat", "dog"], "text": ["", ""]}
    datasets.Dataset.from_dict(columns).save_to_disk(tmp_path / "data")
    found = open_named_source(str(tmp_path / "data"))
    assert torch.equal(found.dataset.tensors[0], torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert found.dataset.samples == [("a7", 0), ("b1", 1)]
    assert found.notes == ["Unused columns: text."]


def test_image_that_cannot_be_read_is_left_out(tmp_path):
    stored = images(10, 20, 30).cast_column("picture", datasets.Image(decode=False))
    broken = stored.map(
        lambda row, number: {"picture": {"bytes": b"" if number == 1 else row["picture"]["bytes"]}}, with_indices=True
    )
    broken.cast_column("picture", datasets.Image()).save_to_disk(tmp_path / "data")
    found = open_named_source(str(tmp_path / "data"))
    assert [name for name, _ in found.dataset.samples] == ["row 0", "row 2"]
    assert [each.name for each in found.unreadable] == ["row 1"]


def test_names_the_column_that_is_missing(tmp_path):
    images(1, 2).save_to_disk(tmp_path / "data")
    with pytest.raises(ValueError, match="a column of images of picture, kind, but got 'photo'"):
        open_named_source(str(tmp_path / "data"), path="photo")
    with pytest.raises(ValueError, match="a column 'species'"):
        open_named_source(str(tmp_path / "data"), label="species")


def test_names_what_cannot_be_opened(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_dict.json").write_text("{")
    with pytest.raises(ValueError, match="data cannot be opened: "):
        open_named_source(str(tmp_path / "data"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"pip install 'lightning-poison\[hf\]'"):
        open_named_source("hf:some/name")


def test_name_and_split_reach_the_library(monkeypatch):
    asked = []

    def load(name, *, split):
        asked.append((name, split))
        return images(1, 2)

    monkeypatch.setattr(datasets, "load_dataset", load)
    open_named_source("hf:owner/name")
    open_named_source("hf:owner/name@train[:10%]")
    assert asked == [("owner/name", "train"), ("owner/name", "train[:10%]")]
