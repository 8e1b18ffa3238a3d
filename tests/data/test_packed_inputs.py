import copy

import numpy as np
import pytest
import torch

from lightning_poison.data.inputs import stack_inputs
from lightning_poison.data.packed_inputs import InputLayout, PackedInputs, unpacked
from lightning_poison.errors import UnreadableSampleError

IDS, MASK = torch.tensor([5, 7, 9]), torch.tensor([True, True, False])


def packed(count=2):
    return stack_inputs([{"ids": IDS + index, "mask": MASK} for index in range(count)], range(count))


def test_dict_is_unpacked_as_it_was():
    found = unpacked(packed())
    assert list(found) == ["ids", "mask"]
    assert (found["ids"].dtype, found["mask"].dtype) == (torch.int64, torch.bool)
    assert torch.equal(found["ids"], torch.stack([IDS, IDS + 1]))
    assert torch.equal(found["mask"], torch.stack([MASK, MASK]))


@pytest.mark.parametrize("kind", [tuple, list])
def test_tuple_is_unpacked_as_a_tuple(kind):
    image = torch.rand(1, 4, 4)
    (ids, pixels) = unpacked(stack_inputs([kind([IDS, image])], [0]))
    assert torch.equal(ids, IDS[None])
    assert torch.equal(pixels, image[None])


@pytest.mark.parametrize(
    "value",
    [
        {"ids": [5, 7, 9], "mask": [True, True, False]},
        {"mask": MASK.numpy(), "ids": np.array([5, 7, 9], dtype=np.int32)},
    ],
    ids=["lists", "arrays in another order"],
)
def test_other_forms_and_orders(value):
    found = unpacked(stack_inputs([{"ids": IDS, "mask": MASK}, value], [0, 1]))
    assert torch.equal(found["ids"][0], found["ids"][1])
    assert torch.equal(found["mask"][0], found["mask"][1])


def test_single_numbers_and_8_bit_images():
    found = unpacked(stack_inputs([{"length": 3, "image": torch.full((1, 2, 2), 255, dtype=torch.uint8)}], [0]))
    assert found["length"].tolist() == [3]
    assert found["image"].tolist() == [[[[1.0, 1.0], [1.0, 1.0]]]]


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: x[:1],
        lambda x: x[torch.tensor([1, 0])],
        torch.clone,
        copy.deepcopy,
        lambda x: x.to("cpu", torch.float64),
        lambda x: torch.cat([x, x]),
        lambda x: x.split(1)[0],
        lambda x: x.detach().contiguous(),
    ],
)
def test_operations_keep_the_structure(operation):
    assert operation(packed()).structure == packed().structure


@pytest.mark.parametrize(
    "operation",
    [lambda x: x.sum(0), lambda x: x[:, :2], lambda x: x == 5, lambda x: x.T, lambda x: x.aminmax().max, torch.mean],
)
def test_other_operations_return_plain_tensors(operation):
    assert type(operation(packed())) is torch.Tensor


def test_one_input_has_no_layout():
    assert all(InputLayout.of(each) is None for each in (IDS, [1, 2], "text", {"a": "text"}, {}, (), [["a"]]))
    assert unpacked(torch.zeros(2)).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"ids": IDS[:2], "mask": MASK},
            r"sample 8 to be a dict of ids \(3,\), mask \(3,\), but got .*\nPad sequences",
        ),
        ({"ids": IDS}, r"but got a dict of ids \(3,\)\.\nReturn the same inputs"),
        ((IDS, MASK), "but got a tuple"),
        ({"ids": IDS, "mask": None}, "but got no dict or tuple of arrays"),
        ({"ids": IDS + 2**24, "mask": MASK}, "integers up to 16777224.\nNumber them from 0"),
        ({"ids": torch.tensor([1.0, torch.nan, 2.0]), "mask": MASK}, "sample 8 contains NaN"),
    ],
)
def test_names_the_sample_that_differs(other, message):
    with pytest.raises(UnreadableSampleError, match=message):
        stack_inputs([{"ids": IDS, "mask": MASK}, other], [7, 8])


def test_layout_of_another_block():
    layout = packed().structure
    assert isinstance(packed(), PackedInputs)
    with pytest.raises(UnreadableSampleError, match="sample 3 to be a dict"):
        stack_inputs([{"ids": IDS[:2], "mask": MASK}], [3], layout=layout)
