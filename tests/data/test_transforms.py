import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset
from torchvision import transforms as v1
from torchvision.datasets import FakeData
from torchvision.transforms import v2

from lightning_poison import PixelRange
from lightning_poison.data.transforms import normalization_of, random_transforms_of
from lightning_poison.testing import TinyImages

NORMALIZE = v2.Normalize([0.5, 0.4, 0.3], (0.2, 0.3, 0.4))
FOUND = PixelRange(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


class Wrapper(Dataset):
    def __init__(self, dataset, **attributes):
        self.dataset = dataset
        vars(self).update(attributes)

    def __len__(self):
        return len(self.dataset)


def with_transform(*transforms):
    return FakeData(4, (3, 8, 8), transform=v2.Compose(transforms))


@pytest.mark.parametrize(
    "view",
    [
        lambda data: data,
        lambda data: Subset(data, [3, 1]),
        lambda data: ConcatDataset([data, with_transform(v2.RandomCrop(8), v2.Compose([NORMALIZE]))]),
        lambda data: Wrapper(Subset(data, [2])),
        lambda data: Wrapper(TinyImages(3), augment=v2.RandomCrop(8), last=torch.nn.Sequential(NORMALIZE)),
    ],
    ids=["itself", "subset", "concatenation", "wrapper", "other attribute"],
)
def test_transform_is_found(view):
    data = view(with_transform(v2.RandomCrop(8), v2.ToImage(), NORMALIZE))
    assert normalization_of(data).mean == pytest.approx(FOUND.mean)
    assert normalization_of(data).std == pytest.approx(FOUND.std)
    assert random_transforms_of(data) == ["RandomCrop"]


def test_nothing_is_found_elsewhere():
    assert normalization_of(TinyImages(3)) is None
    assert normalization_of([(torch.zeros(3, 8, 8), 0)]) is normalization_of([]) is None
    assert random_transforms_of(with_transform(v2.ToImage(), v2.Resize(8))) == []


def test_attributes_with_another_meaning_are_no_views():
    data = Wrapper(with_transform(NORMALIZE), indices=None)
    assert normalization_of(data).mean == pytest.approx(FOUND.mean)
    assert random_transforms_of(Wrapper([1, 2], indices={}, transform=v2.RandomCrop(8))) == ["RandomCrop"]


def test_normalizations_that_differ_are_not_taken():
    other = with_transform(v2.ToImage(), v2.Normalize([0.5], [0.5]))
    assert normalization_of(ConcatDataset([with_transform(NORMALIZE), other])) is None


def test_data_sets_that_contain_themselves_end():
    loop = Wrapper(TinyImages(3))
    loop.dataset = loop
    loop.__class__ = type("Sized", (Wrapper,), {"__len__": lambda _: 3})
    assert normalization_of(loop) is None


@pytest.mark.parametrize("kind", [v1.Normalize, v2.Normalize])
def test_one_number_stands_for_all_channels(kind):
    wide = PixelRange(mean=(0.5,) * 3, std=(0.25,) * 3)
    assert normalization_of(with_transform(kind([0.5] * 3, [0.25]))) == wide
    assert normalization_of(with_transform(kind([0.5], [0.25] * 3))) == wide


@pytest.mark.parametrize("parts", [([0.5], [0.0]), ([0.5] * 3, [0.1] * 2), ("x", [0.1]), (None, None)])
def test_what_cannot_be_undone_is_no_normalization(parts):
    strange = v1.Normalize(*parts)
    assert normalization_of(with_transform(strange)) is None
    assert normalization_of(with_transform(NORMALIZE, strange)).mean == pytest.approx(FOUND.mean)


def test_transforms_of_views_are_found():
    class Transformed(Subset):
        def __init__(self, dataset, transform):
            super().__init__(dataset, [0, 1])
            self.transform = transform

    data = Transformed(with_transform(v2.GaussianNoise()), v2.Compose([v2.RandomCrop(8), NORMALIZE]))
    for each in (data, Wrapper(data), ConcatDataset([TinyImages(3), data])):
        assert normalization_of(each).mean == pytest.approx(FOUND.mean)
        assert sorted(random_transforms_of(each)) == ["GaussianNoise", "RandomCrop"]


def test_all_parts_of_a_concatenation_are_read():
    plain, other = with_transform(NORMALIZE), with_transform(v2.RandomCrop(8), v2.Normalize([0.5], [0.5]))
    assert normalization_of(Wrapper(ConcatDataset([plain, plain]))).mean == pytest.approx(FOUND.mean)
    between = ConcatDataset([plain, other, plain])
    assert normalization_of(between) is None
    assert random_transforms_of(between) == ["RandomCrop"]


def test_transforms_that_draw_are_named():
    drawn = [v1.GaussianBlur(3, (0.1, 2.0)), v2.GaussianNoise(), v2.ScaleJitter((8, 8)), v2.JPEG((50, 90))]
    assert random_transforms_of(with_transform(*drawn, v2.Grayscale())) == [type(each).__name__ for each in drawn]
