import sys
from pathlib import Path

import pytest
from PIL import Image

from lightning_poison.shell.sources import open_named_source


def test_table_of_paths_relative_to_its_folder(tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(3):
        Image.new("L", (8, 8), number).save(tmp_path / "images" / f"{number}.png")
    (tmp_path / "table.csv").write_text("file,label\nimages/2.png,b\nimages/0.png,a\nimages/9.png,a\n")
    found = open_named_source(str(tmp_path / "table.csv"))
    assert [int(image.max() * 255) for image, _ in (found.dataset[0], found.dataset[1])] == [2, 0]
    assert found.dataset.targets == [1, 0]
    assert [Path(each.name).name for each in found.unreadable] == ["9.png"]
    assert "FileNotFoundError" in found.unreadable[0].reason


def test_function_of_a_module_in_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "own_data_set.py").write_text(
        "class Data:\n"
        "    def __len__(self): return 2\n"
        "    def __getitem__(self, index): return index, index\n"
        "def broken(): raise KeyError('missing')\n"
        "def nothing(): return None\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert len(open_named_source("own_data_set:Data").dataset) == 2
    with pytest.raises(ValueError, match="own_data_set:broken failed: KeyError: 'missing'"):
        open_named_source("own_data_set:broken")
    with pytest.raises(ValueError, match="a function that returns a data set, but got"):
        open_named_source("own_data_set:nothing")
    with pytest.raises(ValueError, match="own_data_set:absent failed: AttributeError"):
        open_named_source("own_data_set:absent")
    with pytest.raises(ValueError, match="no_such_module:data failed: ModuleNotFoundError"):
        open_named_source("no_such_module:data")


@pytest.mark.parametrize("name", ["absent", "absent.csv", "notes.txt"])
def test_refuses_what_it_does_not_know(tmp_path, name):
    (tmp_path / "notes.txt").write_text("text")
    with pytest.raises(ValueError, match=r"Give a folder of images, a \.csv"):
        open_named_source(str(tmp_path / name))
