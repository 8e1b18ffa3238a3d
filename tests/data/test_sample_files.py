import pytest
from torch.utils.data import ConcatDataset, Subset

from lightning_poison.data.sample_files import listed_file


class Folder(list):
    def __init__(self, name, values):
        super().__init__([None] * 3)
        setattr(self, name, values)


FILES = [("a.png", 0), ("b.png", 1), ("c.png", 0)]


@pytest.mark.parametrize("name", ["samples", "imgs"])
@pytest.mark.parametrize("values", [FILES, tuple(FILES), ["a.png", "b.png", "c.png"]])
def test_path_through_views(name, values):
    folder = Folder(name, values)
    assert listed_file(folder, 1) == "b.png"
    assert listed_file(Subset(ConcatDataset([folder, folder]), [5, 0]), 0) == "c.png"


@pytest.mark.parametrize("values", [FILES[:2], [1, 2, 3], [(), (), ()], "abc", None])
def test_other_lists_are_no_paths(values):
    assert listed_file(Folder("samples", values), 1) == ""


def test_properties_that_raise_are_ignored():
    class Raising(list):
        @property
        def samples(self):
            raise OSError

    assert listed_file(Raising([None]), 0) == ""
