"""What a decision is good for: this data set, under these settings."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_poison.checks import expected, printable
from lightning_poison.data.blocks import read_blocks
from lightning_poison.data.sample_spec import SampleSpec

_PROBES = 16
_ADDRESS = re.compile(r"0x[0-9a-f]+")  # of an object that a part shows: another one in each process

_WAY_OUT = (
    "Let `settings()` of the scorer return numbers, strings, booleans, `None`, and lists and dicts of them: in the "
    "place of an object its name and what it was built with."
)


def fingerprint(dataset: Any, labels: Tensor, settings: Mapping[str, Any], *, sample: SampleSpec) -> str:
    """Return a digest of a data set and of the settings of a decision about it.

    It covers the class and the length of the data set, all labels, a few samples read under a fixed random state, and
    the settings. It finds that data were exchanged, reordered, relabeled, extended or transformed otherwise; it does
    not find one changed pixel in a sample that is not among the few.

    Args:
        dataset: a map-style data set.
        labels: int64 `(N,)`, its labels.
        settings: what the decision depends on, as JSON can hold it.
        sample: where input and label stand in a sample.

    Returns:
        64 hexadecimal digits.

    Raises:
        TypeError: where JSON cannot hold a setting.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> data = TensorDataset(torch.eye(3), torch.arange(3))
        >>> spec = SampleSpec()
        >>> one = fingerprint(data, torch.arange(3), {"folds": 3}, sample=spec)
        >>> one == fingerprint(data, torch.arange(3), {"folds": 5}, sample=spec)
        False
    """
    digest = hashlib.sha256()
    head = {"class": type(dataset).__qualname__, "length": len(labels), "settings": dict(settings)}
    _check_json(head["settings"], "settings")
    digest.update(json.dumps(head, sort_keys=True).encode())
    digest.update(labels.cpu().numpy().tobytes())
    probes = torch.linspace(0, len(labels) - 1, min(_PROBES, len(labels))).long()
    for block in read_blocks(dataset, [probe[None] for probe in probes], sample=sample, seed=0):
        digest.update(str(tuple(block.inputs.shape)).encode())
        digest.update(block.inputs.numpy().tobytes())
    return digest.hexdigest()


def _check_json(value: Any, where: str) -> None:
    """Raise where JSON cannot hold a value: its text may be another one in each process, as that of an address is."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise TypeError(
                    expected(printable(where), "a dict whose keys are strings", printable(repr(key)), _WAY_OUT)
                )
            _check_json(inner, f"{where}[{key!r}]")
    elif isinstance(value, list | tuple):
        for position, inner in enumerate(value):
            _check_json(inner, f"{where}[{position}]")
    elif not isinstance(value, str | int | float | None):
        came = f"{printable(repr(value))} of type {type(value).__name__}"
        raise TypeError(expected(printable(where), "a value that JSON can hold", came, _WAY_OUT))


def architecture_of(module: nn.Module) -> str:
    """Return the class of a network and a digest of what it is made of: its parts, their settings and their shapes.

    The weights have no part in it: a network that is built anew, from other random weights, is of the same one.

    Example:
        >>> deep, deeper = (nn.Sequential(*[nn.Linear(4, 4) for _ in range(count)]) for count in (2, 3))
        >>> architecture_of(deep) == architecture_of(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
        True
        >>> architecture_of(deep) == architecture_of(deeper)
        False
    """
    parts = [f"{name} {type(part).__qualname__} {part.extra_repr()}" for name, part in module.named_modules()]
    values = (*module.named_parameters(), *module.named_buffers())
    shapes = [f"{name} {'lazy' if is_lazy(value) else tuple(value.shape)}" for name, value in values]
    text = _ADDRESS.sub("", "\n".join([*parts, *shapes]))
    return f"{type(module).__qualname__} {hashlib.sha256(text.encode()).hexdigest()[:12]}"


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Return a digest of tensors by their names: 64 hexadecimal digits.

    Example:
        >>> weights = {"weight": torch.ones(2), "bias": torch.zeros(1)}
        >>> digest_of(weights) == digest_of({"weight": torch.ones(2), "bias": torch.ones(1)})
        False
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
