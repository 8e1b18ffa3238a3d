import random

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from lightning_poison.data.pixel_range import PixelRange
from lightning_poison.data.raw_images import RawImages, as_raw_images
from lightning_poison.errors import UnreadableSampleError
from lightning_poison.testing.tiny_images import TinyImages

NORMALIZED = PixelRange(mean=(0.5,), std=(0.25,))


@pytest.fixture
def tiny():
    return TinyImages(12)


def test_raw_images_in_the_order_asked_for(tiny):
    rows = torch.tensor([7, 3, 3, 11, 7])
    images = RawImages(tiny, PixelRange(), seed=0, batch_size=2)
    assert torch.equal(images(rows), tiny.data[rows].float() / 255)
    assert [len(block) for block in images.blocks(rows)] == [2, 2, 1]


def test_normalization_is_undone(tiny):
    images = RawImages(TinyImages(12, pixels=NORMALIZED), NORMALIZED, seed=0, batch_size=5)
    torch.testing.assert_close(images(torch.arange(12)), tiny.data.float() / 255)


def test_images_outside_of_the_range(tiny):
    tiny.transform = torch.Tensor.float
    images = RawImages(tiny, PixelRange(), seed=0, batch_size=4)
    with pytest.raises(ValueError, match=r"images that lie in \[0, 1\] .* but got values from(.|\n)*pixels=PixelRange"):
        images(torch.arange(9))


def test_what_rounding_put_outside_is_cut_off():
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


def test_random_transforms_stand_still_and_leave_no_trace():
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    images, same, other = (RawImages(Shaky(), PixelRange(), seed=seed, batch_size=2) for seed in (0, 0, 1))
    rows = torch.tensor([1, 4, 2])
    assert torch.equal(images(rows), images(rows))
    assert torch.equal(images(rows), same(rows))
    assert not torch.equal(images(rows), other(rows))
    assert random.getstate() == before[0]
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])


def test_a_sample_that_cannot_be_read_is_named():
    with pytest.raises(UnreadableSampleError, match="sample 5 of Shaky, but it raised OSError: worn out"):
        RawImages(Shaky(), PixelRange(), seed=0, batch_size=4)(torch.tensor([0, 5]))


def test_repr(tiny):
    assert repr(RawImages(tiny, PixelRange(), seed=0, batch_size=4)).startswith("RawImages(TinyImages, PixelRange(")
