"""What identifies data and model of an evaluation in its results. Loads torch only for data that programs make."""

import hashlib
import importlib.util
import os
from importlib import metadata
from pathlib import Path
from typing import Any

import xxhash

from lightning_poison.checks import expected, printable
from lightning_poison.shell.evaluate_settings import BUILT_IN_DATA, DataSettings, ModelSettings, as_json

_AT_ONCE = 2**20


def key_of_data(settings: DataSettings) -> dict[str, Any]:
    """Return the fingerprint of the data and how they are read and divided.

    Files are identified by their content, not by their place.

    Raises:
        ValueError: If there are none.
        OSError: If a file cannot be read.

    Example:
        >>> key_of_data(DataSettings("digits"))["fingerprint"]
        'digits'
    """
    reading = {name: value for name, value in as_json(settings).items() if name not in ("source", "root")}
    return {"fingerprint": _fingerprint(settings), **reading}


def key_of_model(settings: ModelSettings) -> dict[str, Any]:
    """Return class, arguments and training of the model, and a digest of the file in which the class is."""
    key = as_json(settings)
    if settings.class_path is not None:
        key["code"] = _digest_of_module(settings.class_path.rpartition(".")[0])
    return key


def package_version() -> str:
    """Return the version of this package."""
    return metadata.version("lightning-poison")


def _fingerprint(settings: DataSettings) -> str:
    place = Path(settings.source)
    if settings.source == "digits":
        return "digits"
    if settings.source in BUILT_IN_DATA:
        folder = Path(settings.root or "") / "MNIST" / "raw"
        if settings.root is None or not folder.is_dir():
            what = "a folder with MNIST/raw, as created by torchvision"
            raise FileNotFoundError(expected("--data-root", what, printable(settings.root)))
        return _digest_of_files(folder, [path for path in folder.iterdir() if not path.suffix])
    if place.is_dir():
        return _digest_of_files(place, [path for path in place.rglob("*") if path.is_file()])
    if place.is_file() and place.suffix.lower() in (".npz", ".npy"):
        files = [place, *([Path(settings.label)] if settings.label and Path(settings.label).is_file() else [])]
        return _digest_of_files(place.parent, files)
    from lightning_poison.shell.evaluate_data import digest_of_samples

    return digest_of_samples(settings)


def _digest_of_files(folder: Path, files: list[Path]) -> str:
    digest = xxhash.xxh3_128()
    for path in sorted(files):
        digest.update(os.fsencode(os.path.relpath(path, folder)) + b"\0")
        with path.open("rb") as file:
            while part := file.read(_AT_ONCE):
                digest.update(part)
        digest.update(b"\0")
    return digest.hexdigest()


def _digest_of_module(name: str) -> str:
    try:
        spec = importlib.util.find_spec(name)
    except Exception:  # noqa: BLE001 (the class is imported later, with an error that says what is wrong)
        return ""
    origin = spec.origin if spec is not None else None
    if origin is None or not Path(origin).is_file():
        return ""
    return hashlib.sha256(Path(origin).read_bytes()).hexdigest()[:16]
