"""Digests of data sets and models, to detect changes."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from lightning_poison.data.labels import labels_of, read_sample
from lightning_poison.data.raw_images import has_raw, read_raw
from lightning_poison.randomness import seeded_rng

MAX_SAMPLES = 4096
"""Maximum number of samples to read. In larger data sets, a fixed seed selects as many."""

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
"""Attributes of a module with its hooks by their ids."""

_PROBES = 8
"""Number of samples to read twice, to find out whether reading is deterministic."""


def snapshot_dataset(dataset: Any) -> dict[str, str]:
    """Digest a data set: its samples, all labels, and its tensors, arrays and transforms.

    Samples are read under a fixed random state, so that random transforms are repeatable. If the data set has its own
    random state, the raw images are digested instead of the samples, if accessible.

    Args:
        dataset: Map-style data set; views and concatenations are resolved.

    Returns:
        Digest of each part by its description.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> dataset = TensorDataset(torch.zeros(3, 2), torch.tensor([0, 1, 0]))
        >>> before = snapshot_dataset(dataset)
        >>> dataset.tensors[0][1] = 1
        >>> first_change(before, snapshot_dataset(dataset))
        'sample 1'
    """
    indices = _sample_indices(len(dataset))
    samples = _sample_digests(dataset, indices)
    with seeded_rng(0):
        if any(samples[name] != digest for name, digest in _sample_digests(dataset, indices[:_PROBES]).items()):
            raw = indices if has_raw(dataset) else []
            samples = {f"raw image {index}": _digest(read_raw(dataset, index)) for index in raw}
        return samples | {"labels": _digest(labels_of(dataset))} | _attribute_digests(dataset, "")


def snapshot_module(module: nn.Module) -> dict[str, str]:
    """Digest a model: parameters, buffers, training flags, `requires_grad` flags, gradients, hooks, patched methods.

    Example:
        >>> model = nn.BatchNorm1d(2)
        >>> before = snapshot_module(model)
        >>> _ = model(torch.ones(4, 2))
        >>> first_change(before, snapshot_module(model))
        'running_mean'
    """
    parts = {name: _digest(tensor) for name, tensor in [*module.named_parameters(), *module.named_buffers()]}
    parts |= {f"{name}.requires_grad": str(tensor.requires_grad) for name, tensor in module.named_parameters()}
    parts |= {f"{name}.grad": _digest(tensor.grad) for name, tensor in module.named_parameters()}
    for name, part in module.named_modules():
        parts[f"{name or 'model'}.training"] = str(part.training)
        parts[f"{name or 'model'}.hooks"] = str([list(getattr(part, kind)) for kind in _HOOKS])
        parts[f"{name or 'model'}.forward"] = str(id(vars(part).get("forward")))
    return parts


def first_change(before: Mapping[str, str], after: Mapping[str, str]) -> str | None:
    """Return the first part that differs, or `None`."""
    return next((name for name, digest in before.items() if after.get(name) != digest), None)


def _sample_digests(dataset: Any, indices: list[int]) -> dict[str, str]:
    with seeded_rng(0):
        return {f"sample {index}": _digest(read_sample(dataset, index)) for index in indices}


def _sample_indices(length: int) -> list[int]:
    if length <= MAX_SAMPLES:
        return list(range(length))
    order = torch.randperm(length, generator=torch.Generator().manual_seed(0))
    return sorted(order[:MAX_SAMPLES].tolist())


def _attribute_digests(dataset: Any, prefix: str) -> dict[str, str]:
    parts: dict[str, str] = {}
    for name, value in getattr(dataset, "__dict__", {}).items():
        items = list(enumerate(value)) if name in ("tensors", "datasets") else [(None, value)]
        for position, item in items:
            path = f"{prefix}{name}" if position is None else f"{prefix}{name}[{position}]"
            if isinstance(item, Tensor | np.ndarray):
                parts[f"attribute `{path}`"] = _digest(item)
            elif name in ("dataset", "datasets"):
                parts |= _attribute_digests(item, f"{path}.")
            elif name in ("transform", "target_transform", "transforms"):
                parts[f"attribute `{path}`"] = str(id(item))
    return parts


def _digest(value: Any) -> str:
    hasher = hashlib.blake2b(digest_size=16)
    _update(hasher, value)
    return hasher.hexdigest()


def _update(hasher: "hashlib.blake2b", value: Any) -> None:
    hasher.update(type(value).__name__.encode())
    if isinstance(value, Tensor):
        array = value.detach().cpu().contiguous().view(-1).view(torch.uint8) if value.numel() else torch.zeros(0)
        hasher.update(f"{value.dtype}{tuple(value.shape)}".encode() + array.numpy().tobytes())
    elif isinstance(value, np.ndarray):
        hasher.update(f"{value.dtype}{value.shape}".encode() + value.tobytes())
    elif isinstance(value, Image.Image):
        hasher.update(f"{value.mode}{value.size}".encode() + value.tobytes())
    elif isinstance(value, Mapping):
        _update(hasher, list(value.items()))
    elif isinstance(value, list | tuple):
        for item in value:
            _update(hasher, item)
    elif isinstance(value, str | bytes | int | float | np.generic):
        hasher.update(repr(value).encode())
