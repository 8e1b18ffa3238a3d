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

_ADDRESS = re.compile(r"0x[0-9a-f]+")  # the address of an object differs in each process

_WAY_OUT = (
    "`settings()` of the scorer must return numbers, strings, booleans, `None`, and lists and dicts of them. Instead "
    "of an object return its name and arguments."
)


def fingerprint(dataset: Any, labels: Tensor, settings: Mapping[str, Any], *, digests: Tensor | None = None) -> str:
    """Return a digest of a data set and of the settings of a decision about it.

    It covers the class and length of the data set, all labels, the settings, and with `digests` every sample.

    Args:
        dataset: Map-style data set.
        labels: Labels of its samples, int64 `(N,)`.
        settings: Settings of the decision, as JSON values.
        digests: Digests of the samples, int64 `(N,)`; see `digest_samples`. Default: samples are not covered.

    Returns:
        64 hexadecimal digits.

    Raises:
        TypeError: If a setting is not a JSON value.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> data, labels = TensorDataset(torch.eye(3), torch.arange(3)), torch.arange(3)
        >>> fingerprint(data, labels, {"folds": 3}) == fingerprint(data, labels, {"folds": 5})
        False
    """
    digest = hashlib.sha256()
    head = {"class": type(dataset).__qualname__, "length": len(labels), "settings": dict(settings)}
    check_json(head["settings"], "settings")
    digest.update(json.dumps(head, sort_keys=True).encode())
    digest.update(labels.cpu().numpy().tobytes())
    if digests is not None:
        digest.update(digests.cpu().numpy().tobytes())
    return digest.hexdigest()


def check_json(value: Any, where: str) -> None:
    """Raise if a value is not a JSON value, since the text of another may differ between processes, as addresses do.

    Raises:
        TypeError: Naming the value by `where`.
    """
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise TypeError(
                    expected(printable(where), "a dict whose keys are strings", printable(repr(key)), _WAY_OUT)
                )
            check_json(inner, f"{where}[{key!r}]")
    elif isinstance(value, list | tuple):
        for position, inner in enumerate(value):
            check_json(inner, f"{where}[{position}]")
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
        digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
