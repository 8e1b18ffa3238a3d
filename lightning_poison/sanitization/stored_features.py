"""Features of networks that do not change: computed once for all scorers, and kept in the cache folder."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from lightning_poison.data.fingerprints import digest_of
from lightning_poison.data.labeled_data import LabeledData, digest_all
from lightning_poison.data.large_matrices import selected_rows, zeros_in_file
from lightning_poison.data.sample_digests import SampleDigests
from lightning_poison.runtime import Runtime
from lightning_poison.sanitization.cache_folder import FEATURES
from lightning_poison.sanitization.job import Job
from lightning_poison.sanitization.scorer_calls import call_state
from lightning_poison.sanitization.units import FileUnits, code_of_parts, package_code, precision_of
from lightning_poison.scorers.protocol import FeatureSource

_KEPT = 4
"""Number of data sets whose features under one network are kept in a cache folder, latest first."""


@dataclass
class _Rows:
    """Features of some of the samples of a data set of N, float32 `(N, D)`."""

    values: Tensor
    known: Tensor


_MEMORY: WeakKeyDictionary[SampleDigests, dict[str, _Rows]] = WeakKeyDictionary()
"""Features of the data sets that are in use, by a key of the network. They are dropped with the data set."""


def once(job: Job, model: FeatureSource, data: LabeledData, indices: Tensor, compute: Callable[[], Tensor]) -> Tensor:
    """Return features of samples under a network that does not change, computed at most once.

    Features are reused within a decision, whichever scorer needs them, and in later decisions with the same cache
    folder about the same samples, whatever their labels and the settings. Features of inputs that differ whenever they
    are read are not reused.

    Args:
        job: Where to compute.
        model: A network that does not change.
        data: The data set of the samples.
        indices: Positions of the samples in it, int64 `(M,)`.
        compute: Computes the features on all ranks.

    Returns:
        float32 `(M, D)`, on the CPU. They are shared with later calls: do not change them.
    """
    if not data.repeats:
        return compute()
    key, positions = _key_of(model, job), data.positions[indices]
    rows = _MEMORY.setdefault(data.source.digests, {})
    if key in rows and bool(rows[key].known[positions].all()):
        return selected_rows(rows[key].values, positions)
    folder = _folder(job.runtime, key, data)
    features = None if folder is None else _load(folder, data, positions, job.runtime)
    if features is None:
        features = compute().cpu()
        if folder is not None:
            _save(folder, data, positions, features, job.runtime)
    _remember(rows, key, len(data.source.digests), positions, features)
    return features


def _remember(rows: dict[str, _Rows], key: str, length: int, positions: Tensor, features: Tensor) -> None:
    """Keep features of some of N samples; those of all of them are not copied."""
    if torch.equal(positions, torch.arange(length)):
        rows[key] = _Rows(features, torch.ones(length, dtype=torch.bool))
        return
    if key not in rows:
        values = zeros_in_file((length, features.shape[1]), features.dtype)
        rows[key] = _Rows(values, torch.zeros(length, dtype=torch.bool))
    rows[key].values[positions] = features
    rows[key].known[positions] = True


def _key_of(model: FeatureSource, job: Job) -> str:
    """Return a digest of everything that features depend on besides the samples."""
    parts: dict[str, Any] = {"settings": dict(model.settings()), "weights": digest_of(call_state(model))}
    parts |= {"code": code_of_parts(model), "package": package_code(), "torch": torch.__version__, "seed": job.seed}
    parts |= {"device": job.runtime.device.type, "precision": precision_of(job.runtime), "threads": job.runtime.threads}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _folder(runtime: Runtime, key: str, data: LabeledData) -> FileUnits | None:
    """Return the storage of features under a network, `None` if nothing is stored."""
    units = runtime.units
    return units.beside(key, data.source.digests) if isinstance(units, FileUnits) else None


def _name(data: LabeledData, positions: Tensor) -> str:
    values = data.source.digests.values[positions]
    return FEATURES + hashlib.sha256(values.numpy().tobytes()).hexdigest()[:32]


def _load(folder: FileUnits, data: LabeledData, positions: Tensor, runtime: Runtime) -> Tensor | None:
    if not runtime.all_true(bool(_files(folder.folder))):
        return None
    digest_all(data, runtime)
    stored = folder.load(_name(data, positions))
    features = None if stored is None else stored[0].get("features")
    fits = features is not None and features.ndim == 2 and len(features) == len(positions)
    return features if runtime.all_true(fits) else None


def _save(folder: FileUnits, data: LabeledData, positions: Tensor, features: Tensor, runtime: Runtime) -> None:
    digest_all(data, runtime)
    if runtime.rank != 0:
        return
    for old in _files(folder.folder)[_KEPT - 1 :]:
        old.unlink(missing_ok=True)
    folder.save(_name(data, positions), {"features": features.contiguous()}, {})


def _files(folder: Path) -> list[Path]:
    """Return the files with features, latest first."""
    found = {}
    for path in folder.glob(f"{FEATURES}*.safetensors"):
        try:
            found[path] = path.stat().st_mtime
        except OSError:
            continue
    return sorted(found, key=lambda path: found[path], reverse=True)
