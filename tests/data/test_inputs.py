"""Inputs of every form: converted, or named with their sample; and their scale."""

import textwrap

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_poison.data.inputs import (
    check_one_scale,
    check_scale,
    check_variation,
    describe_scale,
    dtype_of,
    shape_hint,
    stack_inputs,
)
from lightning_poison.errors import UnreadableSampleError

IMAGE = torch.linspace(0, 1, 64).view(1, 8, 8)
VECTOR = torch.tensor([0.0, 0.25, 1.0])


class Row:
    """Stands for a row of a frame."""

    def __array__(self, dtype=None, copy=None):
        return VECTOR.numpy()


@pytest.mark.parametrize(
    "value",
    [
        *(
            VECTOR,
            VECTOR.double(),
            VECTOR.half(),
            VECTOR.bfloat16(),
            VECTOR.to_sparse(),
            VECTOR.clone().requires_grad_(),
        ),
        *(
            VECTOR.numpy(),
            VECTOR.numpy().astype(">f8"),
            VECTOR.numpy().astype(np.longdouble),
            VECTOR.numpy()[::-1][::-1],
        ),
        *(VECTOR.tolist(), tuple(VECTOR.tolist()), np.array(VECTOR.tolist(), dtype=object), Row()),
        np.ma.array(VECTOR.numpy(), mask=False),
    ],
)
def test_forms_of_a_vector(value):
    stacked = stack_inputs([value, VECTOR], [4, 5])
    assert stacked.dtype == torch.float32
    assert not stacked.requires_grad
    assert stacked.tolist() == [VECTOR.tolist()] * 2


def test_integers_stay_as_they_are_and_8_bit_images_are_scaled():
    assert stack_inputs([torch.tensor([0, 51, 255])], [0]).tolist() == [[0, 51, 255]]
    assert stack_inputs([torch.tensor([False, True])], [0]).tolist() == [[0, 1]]
    assert stack_inputs([torch.tensor([0, 51, 255]).byte()], [0])[0].tolist() == pytest.approx([0, 0.2, 1])
    planes = torch.arange(16).view(1, 4, 4)  # codes, such as those of pieces on a board
    assert torch.equal(stack_inputs([planes], [0])[0], planes.float())


@pytest.mark.parametrize(
    ("value", "what", "way"),
    [
        (IMAGE + 0j, "a complex64 tensor", "view_as_real"),
        (torch.zeros(1, 8, 8, device="meta"), "a tensor without values", "ordinary tensors"),
        (torch.nested.nested_tensor([VECTOR, VECTOR[:2]], layout=torch.jagged), "a nested tensor", "ordinary tensors"),
        (torch.zeros(0, 8, 8), r"an empty one, a float32 tensor of shape \(0, 8, 8\)", "Repair or remove"),
        (torch.tensor(0.5), "a single number", r"reshape\(1\)"),
        (np.float32(0.5), "a single number", r"reshape\(1\)"),
        ([], r"an empty one, a float64 tensor of shape \(0,\)", "Repair or remove"),
        (np.array([[None]]), r"a object array of shape \(1, 1\)", "astype"),
        (np.ma.array([1.0, 2.0], mask=[True, False]), "a masked array with missing values", "filled"),
        (np.array(["a"]), "an array of texts", "Convert texts to numbers"),
        ("cat.png", "'cat.png'", "files to images"),
        (None, "None", "Repair or remove"),
        ({"ids": VECTOR, "text": "a"}, "a dict with the keys ids, text", "Name the one to judge"),
        (Image.new("L", (2, 2)), "a PIL image", "ToImage"),
        (object(), "object", "Name the input's path"),
        ([[1, 2], [3]], "a list whose rows differ in length or type", "Pad its rows"),
        ((255 * IMAGE).long(), r"a int64 tensor of shape \(1, 8, 8\) with values from 0 to 255", r"float\(\) / 255`"),
        ((4095 * IMAGE).int(), ".* values from 0 to 4095", r"float\(\) / 4095`"),
        ((65535 * IMAGE).numpy().astype(np.uint16), "a uint16 tensor .* from 0 to 65535", r"float\(\) / 65535`"),
        ((65535 * IMAGE)[0].numpy().astype(np.uint16), r"a uint16 tensor of shape \(8, 8\)", r"float\(\) / 65535`"),
        ((4000 * IMAGE - 1000).short(), ".* values from -1000 to 3000", r"\(image\.float\(\) - mean\) / std"),
    ],
)
def test_other_forms_are_named(value, what, way):
    with pytest.raises(UnreadableSampleError, match=rf"input of sample 17, but got {what}.*\n.*{way}"):
        stack_inputs([value, value], [17, 18])


@pytest.mark.parametrize("odd", [torch.nan, torch.inf, 1e200])
def test_names_sample_that_is_not_finite(odd):
    with pytest.raises(UnreadableSampleError, match="finite inputs, but sample 8 contains NaN or infinite values"):
        stack_inputs([IMAGE, IMAGE.double() + odd], [7, 8])


@pytest.mark.parametrize(
    ("one", "other", "way"),
    [
        ((17,), (20,), "Pad sequences"),
        ((17, 4), (20, 4), "Pad sequences"),
        ((1, 8, 8), (3, 8, 8), "one number of channels"),
        ((8, 8), (1, 8, 8), "one number of channels"),
        ((1, 8, 8), (1, 9, 8), "resizes"),
    ],
)
def test_way_out_of_other_shapes(one, other, way):
    assert way in shape_hint(one, other)
    assert "score_dataset=" in shape_hint(one, other)
    with pytest.raises(UnreadableSampleError, match=rf"sample 8 has .* and sample 7 has .*\n.*{way}"):
        stack_inputs([torch.zeros(one), torch.zeros(other)], [7, 8])


def test_way_out_of_rows_of_different_lengths_can_be_copied():
    code = shape_hint((17,), (20,)).split("function:\n")[1].split("\nand pass")[0]
    space = {"torch": torch}
    exec(textwrap.dedent(code), space)  # noqa: S102 (a text of this package)
    assert [len(space["padded"]({"input_ids": torch.ones(length)})) for length in (17, 200)] == [128, 128]


def test_refuses_types_of_different_scale():
    bytes_ = (255 * IMAGE).byte()
    with pytest.raises(
        UnreadableSampleError, match=r"sample 9 is of type float32 and sample 7 of type uint8\.\nuint8 is"
    ):
        stack_inputs([bytes_, bytes_, 255 * IMAGE], [7, 8, 9])
    with pytest.raises(UnreadableSampleError, match="sample 8 is of type uint8 and sample 7 of type float32"):
        stack_inputs([IMAGE, bytes_.numpy()], [7, 8])
    with pytest.raises(UnreadableSampleError, match="sample 7 is of type float32 and sample 0 of type uint8"):
        stack_inputs([IMAGE, IMAGE], [7, 8], dtype=dtype_of(bytes_))
    assert stack_inputs([IMAGE, IMAGE.double(), IMAGE > 0.5], [7, 8, 9], dtype="float16").shape == (3, 1, 8, 8)
    assert stack_inputs([bytes_, bytes_ > 99], [7, 8], dtype="bool").max() == 1


def images(count=32):
    return torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "inputs",
    [
        images(),
        255 * images(),
        4000 * images() - 1000,
        (images() - 0.5) / 0.01,
        torch.zeros(32, 1, 4, 4),
        torch.ones(32, 1, 4, 4),
        images(4) + 1000,
        (images() < 0.003).float(),
        torch.tensor([[3000.0, 1e9, 0.1]] * 32),
        images().flatten(1) * 1e-9,
        images().flatten(1) + 1e6,
        images().flatten(2) * 1e6,
        torch.ones(4),
    ],
)
def test_usual_scales(inputs):
    check_scale(inputs, range(len(inputs)))


@pytest.mark.parametrize(
    ("inputs", "shown"),
    [
        (1e30 * images(), r"to 9\.9\d*e\+29 \(mean 4.97e\+29"),
        (65535 * images(), r"to 65\d+ \(mean 3\.\d*e\+04"),
        (1e-30 * images(), r"to 9\.9\d*e-31 \(mean"),
        (images() + 1e4, r"from 10000 to 10001 \(mean 1e\+04, standard deviation 0\.2"),
        (images() - 1e3, r"\(mean -1e\+03, standard deviation 0\.2"),
        (torch.cat([images(), torch.full((32, 1, 4, 4), 1e30)], 1), r"to 1e\+30"),
        (1e30 * images().flatten(1), r"to 9\.9\d*e\+29"),
        (1e-30 * images().flatten(1), r"to 9\.9\d*e-31"),
    ],
)
def test_scales_at_which_nothing_is_learned(inputs, shown):
    with pytest.raises(ValueError, match=rf"samples 40 to 71 have values .*{shown}.*\.\nScale them in the transform"):
        check_scale(inputs, range(40, 72))


@pytest.mark.parametrize(("inputs", "odd"), [(images(), 1e38), (images(), -1e5), (images().flatten(1), 1e30)])
def test_names_sample_with_odd_value(inputs, odd):
    inputs[17].view(-1)[3] = odd
    with pytest.raises(
        UnreadableSampleError, match=r"sample 57 contains absolute values up to 1e\+\d+ and others up to 1"
    ):
        check_scale(inputs, range(40, 72))


def test_describes_scale():
    assert describe_scale(torch.tensor([-1.0, 0.0, 4.0])) == "values from -1 to 4 (mean 1, standard deviation 2.65)"
    assert describe_scale(torch.tensor([2.0])) == "values from 2 to 2 (mean 2, standard deviation 0)"


def test_nested_lists_of_numbers():
    assert stack_inputs([[[0, 1], [2, 3]], [[4, 5], [6, 7]]], [0, 1]).tolist() == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]


@pytest.mark.parametrize("rows", [[[0, 1], [2]], [[[1.0], [2.0, 3.0]]]])
def test_ragged_lists_are_padded(rows):
    with pytest.raises(UnreadableSampleError, match=r"sample 5, but got a list whose rows differ .*\nPad its rows"):
        stack_inputs([rows], [5])


def peaks(*values):
    return torch.tensor([1.0] * 100 + list(values))


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        ([255.0], "sample 200 contains values up to 255 and the 100 others up to 1"),
        ([255.0] * 90, r"sample 200 \(and 89 more\) contains"),
        ([0.0, 4095.0], "sample 201 contains values up to 4095 and the 101 others"),
    ],
)
def test_images_of_another_scale_are_named(odd, message):
    with pytest.raises(UnreadableSampleError, match=message):
        check_one_scale(peaks(*odd), torch.arange(100, 300), torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("values", [[3.0], [0.0], [1e-6], [255.0, 30.0], [5.0, 20.0, 60.0, 300.0]])
def test_bright_and_black_images_are_no_fault(values):
    check_one_scale(peaks(*values), torch.arange(200), torch.zeros(1, 3, 8, 8))


def test_vectors_may_have_any_scale():
    check_one_scale(peaks(255.0), torch.arange(101), torch.zeros(1, 8))


def test_equal_inputs_are_refused():
    with pytest.raises(ValueError, match=r"all 32 that were compared are equal, with values from 0.5 to 0.5"):
        check_variation([torch.full((16, 1, 4, 4), 0.5)] * 2)
    check_variation([torch.zeros(8, 4)])
    check_variation([torch.zeros(16, 4), torch.ones(16, 4)])


@pytest.mark.parametrize(
    "odd",
    [
        torch.rand(2, 3, requires_grad=True),
        torch.rand(2, 3).to_sparse(),
        torch.rand(2, 3).double(),
        np.ones((2, 3), np.float32),
        [[1.0, 2, 3], [4, 5, 6]],
        torch.nn.Parameter(torch.rand(2, 3)),
    ],
    ids=["gradient", "sparse", "double", "array", "list", "parameter"],
)
def test_usual_inputs_and_others_are_stacked_alike(odd):
    """Tensors of float32 take a quicker way, unless one of them is not plain."""
    usual = [torch.rand(2, 3, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    mixed = stack_inputs([*usual, odd], range(4))
    assert torch.equal(stack_inputs(usual, range(3)), torch.stack(usual))
    assert torch.equal(mixed[:3], torch.stack(usual))
    assert (mixed.dtype, mixed.requires_grad, mixed.layout) == (torch.float32, False, torch.strided)


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (torch.rand(3, 2), r"one shape, but sample 8 has \(3, 2\)"),
        (torch.full((2, 3), torch.nan), "sample 8 contains NaN"),
        (torch.zeros(2, 3, device="meta"), "sample 8, but got a tensor without values"),
        (torch.zeros(2, 3, dtype=torch.uint8), "sample 8 is of type uint8"),
    ],
    ids=["shape", "NaN", "meta", "type"],
)
def test_an_odd_input_among_usual_ones_is_named(odd, message):
    with pytest.raises(UnreadableSampleError, match=message):
        stack_inputs([torch.rand(2, 3), odd], [7, 8])


def test_usual_inputs_are_compared_with_the_type_of_sample_0():
    with pytest.raises(UnreadableSampleError, match="sample 7 is of type float32 and sample 0 of type uint8"):
        stack_inputs([torch.rand(2, 3)], [7], dtype="uint8")


@pytest.mark.parametrize("inputs", [[torch.tensor(1.0)], [torch.zeros(0)]], ids=["number", "empty"])
def test_usual_types_without_a_vector_are_refused(inputs):
    with pytest.raises(UnreadableSampleError, match="sample 7"):
        stack_inputs(inputs, [7])
