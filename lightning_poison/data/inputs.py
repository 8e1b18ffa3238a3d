"""Conversion of the inputs of samples to one float32 tensor, and checks of their scale."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lightning_poison.checks import describe, printable
from lightning_poison.data.packed_inputs import MOST_EXACT, InputLayout, PackedInputs
from lightning_poison.errors import UnreadableSampleError

_LARGEST_IMAGE = 1e4
_SMALLEST_IMAGE = 1e-6
_LARGEST, _SMALLEST = 1e15, 1e-15
"""Range of the largest absolute value of inputs. Vectors are standardized, so only their squares must not overflow."""

_LARGEST_OFFSET = 100.0
"""Largest mean of images, in standard deviations."""

_FEWEST = 16
"""Smallest number of images whose mean and standard deviation are compared."""

_USUAL, _ODD = 4, 64
"""Values of an image in relation to those of half of the images: up to the first, and above the second if it is odd."""

_LARGEST_CODE = 16
"""Largest integer in an integer image that may be a code, such as that of a piece on a board, and not a brightness."""


def stack_inputs(
    inputs: Sequence[Any], positions: Sequence[int], *, dtype: str | None = None, layout: InputLayout | None = None
) -> Tensor:
    """Return the inputs of some samples as one tensor, float32 `(B, ...)`.

    Args:
        inputs: Tensors, NumPy arrays, objects that convert to arrays, or nested lists of numbers, of one shape. Images
            of type uint8 are scaled to [0, 1]. Sparse tensors become dense. Dicts and tuples of arrays become
            `PackedInputs`.
        positions: Positions of the samples in the data set, for error messages.
        dtype: Type of the input of sample 0, from `dtype_of`. Default: that of the first of `inputs`.
        layout: Layout of the inputs of sample 0, if they are several. Default: that of the first of `inputs`.

    Raises:
        UnreadableSampleError: If an input is no array of real numbers, is empty or not finite, is an integer image of
            unknown scale, or differs from the first in shape or in scale.

    Example:
        >>> stack_inputs([[0, 51, 255], torch.tensor([1.0, 2.0, 3.0])], [7, 8])
        tensor([[  0.,  51., 255.],
                [  1.,   2.,   3.]])
        >>> stack_inputs([torch.tensor([51, 255], dtype=torch.uint8)], [7])
        tensor([[0.2000, 1.0000]])
    """
    if layout is None and dtype in (None, "float32") and (plain := _stacked_plain(inputs)) is not None:
        return _finite(plain, positions)
    layout = layout or (InputLayout.of(inputs[0]) if isinstance(inputs[0], Mapping | list | tuple) else None)
    if layout is not None:
        packed = [_packed(value, layout, index) for value, index in zip(inputs, positions, strict=True)]
        return PackedInputs.of(_finite(torch.stack(packed), positions), layout)
    _check_types(inputs, positions, dtype)
    tensors = [_as_float(value, index) for value, index in zip(inputs, positions, strict=True)]
    shape = tensors[0].shape
    for tensor, index in zip(tensors, positions, strict=True):
        if tensor.shape != shape:
            raise UnreadableSampleError(
                f"Expected samples of one shape, but sample {index} has {tuple(tensor.shape)} and sample "
                f"{positions[0]} has {tuple(shape)}.\n{shape_hint(shape, tensor.shape)}"
            )
    return _finite(torch.stack(tensors), positions)


def _stacked_plain(inputs: Sequence[Any]) -> Tensor | None:
    """Return inputs as one tensor if they are what most data sets return, float32 tensors of one shape: quickly."""
    if set(map(type, inputs)) != {Tensor} or {value.dtype for value in inputs} != {torch.float32}:
        return None
    try:
        stacked = torch.stack(list(inputs))
    except RuntimeError:
        return None
    return stacked if stacked.ndim > 1 and _is_plain(stacked) else None


def _finite(stacked: Tensor, positions: Sequence[int]) -> Tensor:
    if not torch.isfinite(stacked.sum()):  # one pass over the block; the sum of huge numbers may overflow
        odd = (~torch.isfinite(stacked.reshape(len(stacked), -1))).any(1).nonzero().flatten()
        if len(odd):
            raise UnreadableSampleError(
                f"Expected finite inputs, but sample {positions[int(odd[0])]} contains NaN or infinite values.\n"
                "Repair or remove the sample."
            )
    return stacked


def dtype_of(value: Any) -> str:
    """Return the name of the data type of an input, such as `"uint8"`; that of its class if it has none.

    Example:
        >>> dtype_of(torch.zeros(2)), dtype_of(np.zeros(2, np.uint8)), dtype_of([1, 2])
        ('float32', 'uint8', 'list')
    """
    dtype = getattr(value, "dtype", None)
    return type(value).__name__ if dtype is None else str(dtype).removeprefix("torch.")


def shape_hint(one: Sequence[int], other: Sequence[int]) -> str:
    """Return how to give samples of two different shapes one shape.

    Example:
        >>> shape_hint((17,), (20,)).splitlines()[0]
        'Pad sequences to one length, in the data set, in a view of it (`score_dataset=`), or in a function:'
    """
    if max(len(one), len(other)) <= 2:
        return _PAD
    if len(one) != len(other) or one[1:] == other[1:]:
        return (
            "Convert images to one number of channels in the transform, such as with `v2.RGB()`, or pass a view of the "
            "data set that does: `score_dataset=`."
        )
    return "Pass a view of the data set that resizes them: `score_dataset=`."


def describe_scale(inputs: Tensor) -> str:
    """Describe range, mean and standard deviation of inputs.

    Example:
        >>> describe_scale(torch.tensor([0.0, 255.0]))
        'values from 0 to 255 (mean 128, standard deviation 180)'
    """
    low, high = inputs.aminmax()
    std, mean = torch.std_mean(inputs.double()) if inputs.numel() > 1 else (torch.zeros(()), inputs.double().mean())
    return f"values from {low:.5g} to {high:.5g} (mean {mean:.3g}, standard deviation {std:.3g})"


def check_scale(inputs: Tensor, positions: Sequence[int]) -> None:
    """Check that networks can learn from inputs of this scale.

    Images may contain values up to 10,000 and must not have a mean above 100 standard deviations; vectors and signals
    may contain values up to 1e15, since they are standardized.

    Args:
        inputs: Finite inputs of some samples, float32 `(B, ...)`.
        positions: Their positions in the data set, for error messages.

    Raises:
        UnreadableSampleError: If a few of the samples have other values than the rest.
        ValueError: If all inputs are too large or too small, or vary too little.

    Example:
        >>> check_scale(torch.rand(4, 1, 8, 8), range(4))
        >>> check_scale(1e30 * torch.ones(4, 1, 8, 8), range(4))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: Expected inputs that networks can learn from, with values of the order of 1, but samples 0 to 3 ...
        Scale them in the transform: ...
    """
    are_images = inputs.ndim >= 4
    largest, smallest = (_LARGEST_IMAGE, _SMALLEST_IMAGE) if are_images else (_LARGEST, _SMALLEST)
    flat = inputs.reshape(len(inputs), -1)
    low, high = flat.aminmax(dim=1)
    peaks = torch.maximum(high, -low)
    odd = (peaks > largest).nonzero().flatten()
    if 0 < len(odd) <= len(inputs) // 2:
        place, rest = int(odd[0]), peaks[peaks <= largest].max()
        raise UnreadableSampleError(
            f"Expected inputs of one scale, but sample {positions[place]} contains absolute values up to "
            f"{peaks[place]:.3g} and others up to {rest:.3g}.\nRepair or remove the sample."
        )
    varies_little = False
    if are_images and len(inputs) >= _FEWEST:
        std, mean = torch.std_mean(flat)
        varies_little = 0 < float(std) * _LARGEST_OFFSET < abs(float(mean))
    if len(odd) or 0 < float(peaks.max()) < smallest or varies_little:
        raise ValueError(
            "Expected inputs that networks can learn from, with values of the order of 1, but samples "
            f"{positions[0]} to {positions[-1]} have {describe_scale(inputs)}.\nScale them in the transform: subtract "
            "the mean and divide by the standard deviation, or divide by the largest possible value."
        )


def peaks_of(inputs: Tensor) -> Tensor:
    """Return the largest absolute value of each sample, float32 `(B,)`.

    Example:
        >>> peaks_of(torch.tensor([[0.0, -3.0], [1.0, 2.0]]))
        tensor([3., 2.])
    """
    low, high = inputs.reshape(len(inputs), -1).aminmax(dim=1)
    return torch.maximum(high, -low)


def check_one_scale(peaks: Tensor, positions: Tensor, inputs: Tensor) -> None:
    """Check that no image has another scale than the others, as one with values up to 255 among images in [0, 1].

    Such an image is more than 64 times brighter than half of the images are, and none is between 4 and 64 times.

    Args:
        peaks: Largest absolute value of each sample, `(N,)`.
        positions: Positions of the samples in the data set, int64 `(N,)`, for error messages.
        inputs: Some of the samples. Nothing is checked unless they are images, `(B, C, H, W)`.

    Raises:
        UnreadableSampleError: If there is such an image.

    Example:
        >>> check_one_scale(torch.tensor([1.0, 0.9, 255.0]), torch.arange(3), torch.zeros(1, 1, 8, 8))
        Traceback (most recent call last):
        lightning_poison.errors.UnreadableSampleError: Expected images of one scale, but sample 2 contains values up to
        255 and the 2 others up to 1.
        Scale all images in the same way, such as `image / 255` for 8-bit images.
    """
    usual = float(peaks.median())
    odd = (peaks > _ODD * usual).nonzero().flatten()
    if inputs.ndim < 4 or not usual or not len(odd) or bool(((peaks > _USUAL * usual) & (peaks <= _ODD * usual)).any()):
        return
    rest = peaks[peaks <= _USUAL * usual]
    most = f" (and {len(odd) - 1:,} more)" if len(odd) > 1 else ""
    raise UnreadableSampleError(
        f"Expected images of one scale, but sample {int(positions[odd[0]])}{most} contains values up to "
        f"{peaks[odd].max():.4g} and the {len(rest):,} others up to {rest.max():.4g}.\nScale all images in the same "
        "way, such as `image / 255` for 8-bit images."
    )


def check_variation(blocks: Sequence[Tensor]) -> None:
    """Check that samples differ.

    Args:
        blocks: Inputs of some samples, float32 `(B, ...)`.

    Raises:
        ValueError: If there are at least 16, all equal.

    Example:
        >>> check_variation([torch.zeros(20, 1, 8, 8)])
        Traceback (most recent call last):
        ValueError: Expected inputs that differ between samples, but all 20 that were compared are equal, with values
        from 0 to 0.
        Check the transform, and the path of the input: `sample=SampleSpec(inputs=...)`.
    """
    origin, count = blocks[0][:1], sum(map(len, blocks))
    if count < _FEWEST or any(block.shape[1:] != origin.shape[1:] for block in blocks):
        return
    if not all(torch.equal(block, origin.expand_as(block)) for block in blocks):
        return
    raise ValueError(
        f"Expected inputs that differ between samples, but all {count:,} that were compared are equal, with values "
        f"from {origin.min():.4g} to {origin.max():.4g}.\nCheck the transform, and the path of the input: "
        "`sample=SampleSpec(inputs=...)`."
    )


def _check_types(inputs: Sequence[Any], positions: Sequence[int], first: str | None) -> None:
    """Raise if some inputs are of type uint8, which are scaled to [0, 1], and others are not."""
    types = [dtype_of(value) for value in inputs]
    expected, index = (types[0], positions[0]) if first is None else (first, 0)
    if (expected == "uint8" or "uint8" in types) and any(each != expected for each in types):
        for each, position in zip(types, positions, strict=True):
            if (each == "uint8") != (expected == "uint8") and "bool" not in (each, expected):
                raise UnreadableSampleError(
                    f"Expected inputs of one type, but sample {position} is of type {each} and sample {index} of type "
                    f"{expected}.\nuint8 is scaled to [0, 1], other types are not. Convert all samples to one type."
                )


def _as_float(value: Any, index: int) -> Tensor:
    if isinstance(value, Tensor) and value.dtype == torch.float32 and _is_plain(value):
        return value
    tensor = _as_tensor(value, index)
    if tensor.is_meta or tensor.is_nested:
        came = "a tensor without values, of the device meta" if tensor.is_meta else "a nested tensor"
        raise _unreadable(index, came, "Return ordinary tensors, of one shape, from the data set.")
    if tensor.is_complex():
        way = "Convert it to real numbers: `torch.view_as_real(x)`, or its magnitude, `x.abs()`."
        raise _unreadable(index, describe(tensor), way)
    if not tensor.ndim:
        way = "Return a vector of one number, `x.reshape(1)`, or name another part: `sample=SampleSpec(inputs=...)`."
        raise _unreadable(index, "a single number", way)
    if not tensor.numel():
        raise _unreadable(index, f"an empty one, {describe(tensor)}", "Repair or remove the sample.")
    tensor = tensor.detach()
    tensor = (tensor.to_dense() if tensor.layout != torch.strided else tensor).cpu()
    if tensor.dtype == torch.uint8:
        return tensor.float() / 255
    converted = tensor.float()
    if not tensor.is_floating_point() and tensor.dtype != torch.bool:
        _check_integers(tensor, converted, index)
    return converted


def _packed(value: Any, layout: InputLayout, index: int) -> Tensor:
    """Return several inputs of one sample as one vector `(P,)`."""
    own = InputLayout.of(value)
    names = None if own is None else own.names
    if own is None or (names is None) != (layout.names is None) or set(names or ()) != set(layout.names or ()):
        came = "no dict or tuple of arrays" if own is None else str(own)
        way = "Return the same inputs for every sample."
        raise UnreadableSampleError(f"Expected the inputs of sample {index} to be {layout}, but got {came}.\n{way}")
    by_name = {str(key): part for key, part in value.items()} if isinstance(value, Mapping) else {}
    parts = list(value) if layout.names is None else [by_name[name] for name in layout.names]
    shapes = own.shapes if own.names is None else [own.shapes[own.names.index(name)] for name in layout.names or ()]
    if tuple(shapes) != layout.shapes:
        one, other = next(each for each in zip(layout.shapes, shapes, strict=True) if each[0] != each[1])
        raise UnreadableSampleError(
            f"Expected the inputs of sample {index} to be {layout}, but got {own}.\n{shape_hint(one, other)}"
        )
    return torch.cat([_as_vector(part, index) for part in parts])


def _as_vector(part: Any, index: int) -> Tensor:
    array = part.reshape(-1) if isinstance(part, Tensor) else np.asarray(part).reshape(-1)
    if isinstance(part, Tensor | np.ndarray) and part.ndim:
        array = part
    vector = _as_float(array, index).reshape(-1)
    if bool((vector.abs() >= MOST_EXACT).any()) and not np.issubdtype(np.asarray(array).dtype, np.floating):
        came = f"integers up to {vector.abs().max():.0f}"
        raise _unreadable(index, came, f"Number them from 0: integers below {MOST_EXACT:,} are exact in float32.")
    return vector


def _is_plain(tensor: Tensor) -> bool:
    return (
        tensor.layout == torch.strided
        and not tensor.requires_grad
        and tensor.device.type == "cpu"
        and tensor.ndim > 0
        and tensor.numel() > 0
        and not tensor.is_nested
    )


def _as_tensor(value: Any, index: int) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Image.Image):
        way = "Add torchvision's `ToImage()` and `ToDtype(torch.float32, scale=True)` to the data set's transform."
        raise _unreadable(index, "a PIL image", way)
    if isinstance(value, np.ma.MaskedArray) and value.mask.any():
        raise _unreadable(index, "a masked array with missing values", "Fill them in: `array.filled(0)`.")
    array = _as_array(value)
    if array is not None and array.dtype.kind in "biuf":
        kept = np.float64 if array.dtype.itemsize > 8 else array.dtype.newbyteorder("=")
        return torch.from_numpy(np.array(array, dtype=kept, order="C"))
    kind = "" if array is None else array.dtype.kind
    if isinstance(value, str | bytes) or kind in ("U", "S"):
        came = printable(repr(value), limit=80) if isinstance(value, str | bytes) else "an array of texts"
        way = "Convert texts to numbers, and files to images, in the data set. Or name the input's path: "
        raise _unreadable(index, came, way + "`sample=SampleSpec(inputs=..., labels=...)`.")
    if kind == "O" and isinstance(value, np.ndarray):
        way = "Convert it to numbers in the data set, such as with `array.astype(np.float32)`."
        raise _unreadable(index, describe(value), way)
    if isinstance(value, list | tuple) and array is None:
        came = f"a {type(value).__name__} whose rows differ in length or type"
        raise _unreadable(index, came, "Pad its rows to one length, or name another part: `SampleSpec(inputs=...)`.")
    if isinstance(value, Mapping):
        keys = printable(", ".join(str(key) for key in list(value)[:6]))
        way = "Name the one to judge by its path, such as `sample=SampleSpec(inputs='inputs.image', labels='label')`."
        raise _unreadable(index, f"a dict with the keys {keys}", way)
    way = "Name the input's path: `sample=SampleSpec(inputs=..., labels=...)`."
    raise _unreadable(index, describe(value), "Repair or remove the sample." if value is None else way)


def _as_array(value: Any) -> np.ndarray | None:
    try:
        if isinstance(value, list | tuple) or hasattr(value, "__array__"):
            array = np.asarray(value)
            return np.array(array.tolist()) if array.dtype.kind == "O" else array
    except Exception:  # noqa: BLE001 (an object of unknown kind, or rows of different lengths)
        return None
    return None


def _check_integers(tensor: Tensor, values: Tensor, index: int) -> None:
    """Raise if a tensor is an integer image of unknown scale. uint16 is a type of images only."""
    if tensor.ndim < (2 if tensor.dtype == torch.uint16 else 3):
        return
    low, high = (float(each) for each in values.aminmax())
    if max(high, -low) > _LARGEST_CODE:
        most = next((each for each in (255, 4095, 65535) if high <= each and low >= 0), None)
        way = f"`image.float() / {most}`" if most is not None else "`(image.float() - mean) / std`"
        came = f"{describe(tensor)} with values from {low:.0f} to {high:.0f}"
        raise _unreadable(index, came, f"Scale it in the transform: {way}. Only uint8 is scaled to [0, 1].")


def _unreadable(index: int, came: str, way: str) -> UnreadableSampleError:
    return UnreadableSampleError(f"Expected a tensor as the input of sample {index}, but got {came}.\n{way}")


_PAD = (
    "Pad sequences to one length, in the data set, in a view of it (`score_dataset=`), or in a function:\n"
    "    def padded(sample):\n"
    "        ids = sample['input_ids']\n"
    "        return torch.nn.functional.pad(ids, (0, 128 - len(ids)))  # also cuts those that are longer\n"
    "and pass `sample=SampleSpec(padded, 'label')`."
)
