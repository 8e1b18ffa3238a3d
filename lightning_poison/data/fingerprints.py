"""Fingerprints of data sets, settings, network architectures and tensors."""

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
_ADDRESS = re.compile(r"0x[0-9a-f]+")  # the address of an object differs in each process

_WAY_OUT = (
    "`settings()` of the scorer must return numbers, strings, booleans, `None`, and lists and dicts of them. Instead "
    "of an object return its name and arguments."
)


def fingerprint(dataset: Any, labels: Tensor, settings: Mapping[str, Any], *, sample: SampleSpec) -> str:
    """Return a digest of a data set and of the settings of a decision about it.

    It covers the class and length of the data set, all labels, a few samples read under a fixed random state, and the
    settings. It therefore detects data that are exchanged, reordered, relabeled, extended or transformed differently,
    but not a change of samples that are not among those few.

    Args:
        dataset: Map-style data set.
        labels: Its labels, int64 `(N,)`.
        settings: Settings of the decision, as JSON values.
        sample: Paths of input and label in a sample.

    Returns:
        64 hexadecimal digits.

    Raises:
        TypeError: If a setting is not a JSON value.

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
    """Raise if a value is not a JSON value. Its text may differ between processes, as an address does."""
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
        raise TypeError(expected(printable(where), "JSON-serializable", came, _WAY_OUT))


def architecture_of(module: nn.Module) -> str:
    """Return the class of a network and a digest of its modules, their settings and the shapes of their tensors.

    The weights are not included: a network with other weights has the same architecture.

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
    """Return a digest of named tensors, 64 hexadecimal digits.

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
