"""Small pictures of the first poison of an attack and of the samples from which it was made."""

import base64
import io
from typing import Any

from PIL import Image
from torch import Tensor

from lightning_poison.attacks.poison import Poison
from lightning_poison.data.raw_images import read_raw
from lightning_poison.randomness import seeded_rng

_COUNT, _SIDES, _MAX_LENGTH = 4, (64, 48, 32, 16), 12_000
"""Number of pairs, sides in pixels that are tried, and length of a picture in characters."""


def pictures_of(dataset: Any, poison: Poison) -> tuple[tuple[str, str], ...]:
    """Return pairs of the base and the poison as PNG in base64, of the first samples that an attack changes.

    There are none if it changes no inputs, the images of the data set before the transform are not accessible, or they
    have neither one nor three or four channels.

    Args:
        dataset: Clean training set.
        poison: Poison for this data set.
    """
    if poison.inputs is None or poison.domain != "raw" or poison.inputs.shape[1] not in (1, 3, 4):
        return ()
    bases = poison.indices if poison.base_indices is None else poison.base_indices
    pairs: list[tuple[str, str]] = []
    for position, base in enumerate(bases.tolist()):
        if not 0 <= base < len(dataset) or len(pairs) == _COUNT:
            continue
        try:
            with seeded_rng(0):
                original = read_raw(dataset, base)
        except TypeError:
            return ()
        pairs.append((_png(original), _png(poison.inputs[position])))
    return tuple(pairs)


def _png(image: Tensor) -> str:
    """Return an image, uint8 `(C, H, W)`, as PNG in base64, reduced until it is short enough."""
    array = image.permute(1, 2, 0).contiguous().numpy()
    picture = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array[..., :3])
    text = ""
    for side in _SIDES:
        picture.thumbnail((side, side))
        buffer = io.BytesIO()
        picture.save(buffer, "PNG", optimize=True)
        text = base64.b64encode(buffer.getvalue()).decode()
        if len(text) <= _MAX_LENGTH:
            break
    return text
