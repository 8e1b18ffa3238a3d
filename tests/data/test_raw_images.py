import pickle
import random
import textwrap
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset
from torchvision.datasets import FakeData
from torchvision.datasets.vision import VisionDataset
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from lightning_poison.data.pixel_range import PixelRange
from lightning_poison.data.raw_images import RawImages, as_raw_images, has_raw, read_edited, read_raw, transform_owner
from lightning_poison.data.views import SanitizedDataset
from lightning_poison.errors import UnreadableSampleError
from lightning_poison.testing.tiny_images import TinyImages


def gradient(channels=1):
    return torch.arange(channels * 12, dtype=torch.uint8).view(channels, 3, 4)


def pil(image):
    return F.to_pil_image(image, mode="L" if len(image) == 1 else "RGB")


def array(image):
    return image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy()


def read_only(image):
    values = array(image).copy()
    values.flags.writeable = False
    return values


class Images(Dataset):
    """Sample `i` is an image whose first pixel is `i`, through a `transform` that may be `None`."""

    def __init__(self, make=pil, channels=1, transform=None):
        self.make, self.channels, self.transform = make, channels, transform

    def __len__(self):
        return 6

    def __getitem__(self, index):
        image = gradient(self.channels)
        image[0, 0, 0] = index
        shown = self.make(image)
        return (shown if self.transform is None else self.transform(shown)), index % 2, "id"


class Never(Images):
    def __getitem__(self, index):
        return torch.zeros(1, 3, 4), 0


class Always(Images):
    """Calls its transform whether or not there is one."""

    def __getitem__(self, index):
        return self.transform(self.make(gradient(self.channels))), 0


def to_float(image):
    return F.to_dtype(F.to_image(image), torch.float32, scale=True)


def invert(image):
    return 255 - image


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("make", [pil, array, read_only, torch.clone])
def test_edits_image_before_transform(make, channels):
    data = Images(make, channels, transform=to_float)
    image, label, name = read_edited(data, 1, invert)
    raw = gradient(channels)
    raw[0, 0, 0] = 1
    torch.testing.assert_close(image.as_subclass(torch.Tensor), (255 - raw).float() / 255)
    assert (label, name) == (1, "id")
    assert torch.equal(read_raw(data, 1), raw)
    assert data.transform is to_float


@pytest.mark.parametrize("make", [pil, array, torch.clone])
def test_transform_receives_original_image_type(make):
    seen = []
    data = Images(make, transform=lambda image: seen.append(image) or 0)
    data[0]
    read_edited(data, 0, invert)
    assert type(seen[0]) is type(seen[1])
    assert np.asarray(seen[0]).shape == np.asarray(seen[1]).shape


def test_keeps_flat_tensors():
    assert read_edited(Images(lambda image: image[0], transform=torch.clone), 2, invert)[0].shape == (3, 4)


@pytest.mark.parametrize("transform", [None, to_float])
def test_refuses_data_set_that_does_not_call_transform(transform):
    with pytest.raises(TypeError, match="Expected Never to call its `transform` on the raw image") as caught:
        read_edited(Never(transform=transform), 0, invert)
    assert "self.transform(self.data[index])" in str(caught.value)


def test_accepts_none_as_transform():
    class TorchvisionLike(Images):
        def __getitem__(self, index):
            image = self.make(gradient(self.channels))
            return image if self.transform is None else self.transform(image), 1

    edited, _ = read_edited(TorchvisionLike(), 0, invert)
    assert isinstance(edited, Image.Image)
    assert torch.equal(F.pil_to_tensor(edited), 255 - gradient())


def test_torchvision_standard_transform():
    data = FakeData(4, (3, 8, 8), 10, transform=v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]))
    plain, label = data[2]
    edited, same = read_edited(data, 2, invert)
    torch.testing.assert_close(edited.as_subclass(torch.Tensor), 1 - plain.as_subclass(torch.Tensor))
    assert label == same


class Vision(VisionDataset):
    """Uses the joint `transforms`, as VOC and COCO do."""

    def __init__(self, **arguments):
        super().__init__(root="", **arguments)

    def __getitem__(self, index):
        image, label = pil(gradient()), 3
        return self.transforms(image, label) if self.transforms is not None else (image, label)

    def __len__(self):
        return 3


def test_joint_transform_keeps_target_transform():
    data = Vision(transform=to_float, target_transform=lambda label: label + 10)
    image, label = read_edited(data, 0, invert)
    torch.testing.assert_close(image.as_subclass(torch.Tensor), (255 - gradient()).float() / 255)
    assert label == 13
    assert data.transforms.transform is to_float


def test_refuses_other_joint_transform():
    with pytest.raises(TypeError, match="but it did not"):
        read_edited(Vision(transforms=lambda image, label: (to_float(image), label)), 0, invert)


def test_follows_views_to_transform_owner():
    one, two = Images(transform=to_float), Images(transform=to_float)
    keep = torch.tensor([False, True, True, True, True, True])
    data = Subset(ConcatDataset([Subset(one, [5, 4]), SanitizedDataset(two, keep)]), [1, 2, 6])
    assert [transform_owner(data, index) for index in range(3)] == [(one, 4), (two, 1), (two, 5)]
    assert [int(read_raw(data, index)[0, 0, 0]) for index in range(3)] == [4, 1, 5]


def test_negative_positions():
    data = ConcatDataset([Images(transform=to_float), Images(transform=to_float)])
    assert int(read_raw(data, -1)[0, 0, 0]) == 5
    assert int(read_raw(Subset(data, [2, 3]), -1)[0, 0, 0]) == 3


def test_refuses_data_set_without_transform():
    data = TensorDataset(torch.zeros(2, 1, 3, 4), torch.zeros(2).long())
    with pytest.raises(TypeError, match="calls its `transform` on the raw image, but got TensorDataset") as caught:
        read_edited(data, 0, invert)
    assert "None will do" not in str(caught.value)
    assert not has_raw(data)
    assert has_raw(Images(transform=to_float))
    assert not has_raw(Never(transform=to_float))


def test_example_in_error_message_works():
    floats = torch.rand(2, 1, 3, 4)
    with pytest.raises(TypeError) as caught:
        read_raw(TensorDataset(floats, torch.tensor([1, 0])), 0)
    code = "\n".join(line for line in str(caught.value).splitlines() if line.startswith("    "))
    names = {"torch": torch, "torchvision": torchvision}
    exec(textwrap.dedent(code), names)  # noqa: S102 (our own)
    raw = (255 * floats).round().byte()
    data = names["Images"](raw, torch.tensor([1, 0]))
    assert torch.equal(read_raw(data, 1), raw[1])
    image, label = read_edited(data, 0, invert)
    torch.testing.assert_close(image, 1 - raw[0] / 255)
    assert (len(data), label) == (2, 1)


@pytest.mark.parametrize(
    ("make", "came"),
    [
        (lambda image: pil(image).convert("P"), "a PIL image of mode P"),
        (lambda image: image.float(), "a float32 tensor"),
        (lambda image: image.numpy().astype(np.float32), "a float32 array"),
    ],
)
def test_refuses_raw_images_other_than_8_bit(make, came):
    with pytest.raises(TypeError, match=f"Expected 8-bit raw images.*, but got {came}"):
        read_edited(Images(make, transform=to_float), 0, invert)


@pytest.mark.parametrize("edit", [lambda image: image[:, :2], lambda image: image.float()])
def test_refuses_edit_that_changes_shape_or_type(edit):
    with pytest.raises(ValueError, match="Expected a raw image like a uint8 tensor of shape"):
        read_edited(Images(transform=to_float), 0, edit)


def test_passes_on_errors_of_data_set():
    with pytest.raises(ZeroDivisionError):
        read_edited(Images(transform=lambda image: 1 / 0), 0, invert)


def test_edits_are_thread_safe():
    data = Always(torch.clone, transform=to_float)

    def read(shade):
        return read_edited(data, 0, lambda image: torch.full_like(image, shade))[0]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(read, list(range(100))))
    assert [round(float(image.max()) * 255) for image in found] == list(range(100))
    assert data.transform is to_float


def test_data_set_stays_picklable():
    data = Images(transform=to_float)
    read_edited(data, 0, invert)
    assert pickle.dumps(data) == pickle.dumps(Images(transform=to_float))


NORMALIZED = PixelRange(mean=(0.5,), std=(0.25,))


@pytest.fixture
def tiny():
    return TinyImages(12)


def test_raw_images_have_given_order(tiny):
    rows = torch.tensor([7, 3, 3, 11, 7])
    images = RawImages(tiny, PixelRange(), seed=0, batch_size=2)
    assert torch.equal(images(rows), tiny.data[rows].float() / 255)
    assert [len(block) for block in images.blocks(rows)] == [2, 2, 1]


def test_undoes_normalization(tiny):
    images = RawImages(TinyImages(12, pixels=NORMALIZED), NORMALIZED, seed=0, batch_size=5)
    torch.testing.assert_close(images(torch.arange(12)), tiny.data.float() / 255)


def test_refuses_images_outside_range(tiny):
    tiny.transform = torch.Tensor.float
    images = RawImages(tiny, PixelRange(), seed=0, batch_size=4)
    with pytest.raises(ValueError, match=r"images in \[0, 1\] .* but got values from(.|\n)*pixels=PixelRange"):
        images(torch.arange(9))


def test_clamps_rounding_errors():
    assert as_raw_images(torch.tensor([-1e-6, 1 + 1e-6]), PixelRange()).tolist() == [0, 1]


class Shaky(Dataset):
    """Adds noise from all three global random states at each access."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        if index == 5:
            raise OSError("worn out")
        noise = (random.random() + np.random.rand() + torch.rand(1).item()) / 3  # noqa: S311, NPY002
        return torch.full((1, 2, 2), noise), index % 2


def test_fixes_random_transforms_and_restores_random_state():
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    images, same, other = (RawImages(Shaky(), PixelRange(), seed=seed, batch_size=2) for seed in (0, 0, 1))
    rows = torch.tensor([1, 4, 2])
    assert torch.equal(images(rows), images(rows))
    assert torch.equal(images(rows), same(rows))
    assert not torch.equal(images(rows), other(rows))
    assert random.getstate() == before[0]
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])


def test_raw_images_name_unreadable_sample():
    with pytest.raises(UnreadableSampleError, match="sample 5 of Shaky, but it raised OSError: worn out"):
        RawImages(Shaky(), PixelRange(), seed=0, batch_size=4)(torch.tensor([0, 5]))


def test_raw_images_repr(tiny):
    assert repr(RawImages(tiny, PixelRange(), seed=0, batch_size=4)).startswith("RawImages(TinyImages, PixelRange(")
