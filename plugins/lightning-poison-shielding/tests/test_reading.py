import pytest
import torch
from torch.utils.data import TensorDataset

from lightning_poison.pixels import PixelRange
from lightning_poison_shielding.reading import RawReader


def test_raw_images_in_the_order_asked_for(digits):
    rows = torch.tensor([7, 3, 3, 900, 7])
    read = RawReader(digits, PixelRange(levels=17), seed=0, batch_size=2)
    assert torch.equal(read(rows), digits.tensors[0][rows])
    assert [len(block) for block in read.blocks(rows)] == [2, 2, 1]


def test_normalisation_is_undone(digits):
    pixels = PixelRange(mean=(0.5,), std=(0.25,))
    normalised = TensorDataset(pixels.from_raw(digits.tensors[0][:9]), digits.tensors[1][:9])
    read = RawReader(normalised, pixels, seed=0, batch_size=4)
    torch.testing.assert_close(read(torch.arange(9)), digits.tensors[0][:9])


def test_images_outside_of_the_range(digits):
    grey = TensorDataset(255 * digits.tensors[0][:9], digits.tensors[1][:9])
    with pytest.raises(ValueError, match=r"images that lie in \[0, 1\] .* but got values from 0 to 255"):
        RawReader(grey, PixelRange(), seed=0, batch_size=4)(torch.arange(9))
