"""Objects saved as JSON and tensors, and atomic file writes. Nothing is ever unpickled.

Tensors and JSON are stored in one safetensors file with a checksum of each, so that a damaged file is not taken for a
valid one. Objects are built from them by the same constructors, with the same checks, as by hand.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lightning_poison.checks import describe, describe_error, expected, printable

if TYPE_CHECKING:  # files are also written by commands that do not import torch, which takes seconds
    from torch import Tensor

ObjectT = TypeVar("ObjectT")

_META, _CHECKSUMS = "lightning_poison", "checksums"
"""Names of the JSON object and of the checksums in the metadata of a safetensors file."""

_STALE_AFTER = 3600.0
"""Age in seconds from which a temporary file is considered to be left over from a run that was killed."""

_MAX_PREFIX = 50
"""Characters of a file's name in the name of its temporary file, which must not become too long for the file system."""


@contextmanager
def atomic_path(path: str | os.PathLike[str], *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; rename it to `path` on success, delete it on error.

    With `durable`, the content is on the disk before the file is renamed, so that it also survives the end of the
    system, not only that of the process. Temporary files of the same target that a killed run left
    behind more than an hour ago are deleted.

    Raises:
        OSError: If the folder or the file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     target = Path(folder) / "notes.txt"
        ...     with atomic_path(target) as partial:
        ...         _ = partial.write_text("done")
        ...         target.exists()
        ...     target.read_text(), len(list(Path(folder).iterdir()))
        False
        ('done', 1)
    """
    target = Path(checked_path(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(target)
    partial = _create_partial(target)
    try:
        yield partial
        if durable:
            _sync(partial, os.O_RDWR)
        partial.replace(target)
        if durable:
            with contextlib.suppress(OSError):  # not every system can open a folder
                _sync(target.parent, os.O_RDONLY)
    finally:
        partial.unlink(missing_ok=True)


def check_writable(directory: str | os.PathLike[str], names: tuple[str, ...]) -> None:
    """Create a folder and check that files of these names can be written in it. It leaves no files behind.

    Raises:
        OSError: If they cannot.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     check_writable(file.name, ("verdict.safetensors",))
        Traceback (most recent call last):
        FileExistsError: [Errno 17] File exists: '...'
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        target = folder / name
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
        partial = _create_partial(target)
        try:
            partial.write_bytes(bytes(4096))
            _sync(partial, os.O_RDWR)
        finally:
            partial.unlink(missing_ok=True)


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], meta: Mapping[str, Any], *, durable: bool = True
) -> None:
    """Write tensors and a JSON object to one safetensors file, atomically, with a checksum of each.

    Args:
        path: File to write.
        tensors: Tensors by name.
        meta: JSON object.
        durable: See `atomic_path`.

    Raises:
        OSError: If the file cannot be written.

    Example:
        >>> import tempfile
        >>> import torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_tensors(f"{folder}/some", {"means": torch.arange(2)}, {"kind": "means", "version": 1})
        ...     read_tensors(f"{folder}/some", "means")
        ({'means': tensor([0, 1])}, {'kind': 'means', 'version': 1})
    """
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(meta, sort_keys=True)
    names, header = _header(ready, {_META: text, _CHECKSUMS: json.dumps(_checksums(text, ready), sort_keys=True)})
    with atomic_path(path, durable=durable) as partial, partial.open("wb") as file:
        file.write(header)
        for name in names:
            file.write(_bytes_of(ready[name]))


def _header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[list[str], bytes]:
    """Return the names of tensors in the order of their bytes in a safetensors file, and what is before these bytes.

    `save` of safetensors returns the whole content, a copy of the tensors, so it is asked for a file of empty ones.
    """
    import torch
    from safetensors.torch import save

    content = save({name: torch.empty(0, dtype=tensor.dtype) for name, tensor in tensors.items()}, dict(metadata))
    entries = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    names = [name for name in entries if name != "__metadata__"]
    end = 0
    for name in names:
        start, end = end, end + tensors[name].nbytes
        entries[name] |= {"shape": list(tensors[name].shape), "data_offsets": [start, end]}
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return names, len(text).to_bytes(8, "little") + text


def _bytes_of(tensor: Tensor) -> memoryview:
    """Return the bytes of a contiguous tensor, which are not copied."""
    import torch

    return memoryview(tensor.flatten().view(torch.uint8).numpy())  # type: ignore[arg-type]  # a buffer


def read_tensors(
    path: str | os.PathLike[str],
    kind: str,
    *,
    version: int | None = None,
    copy: Callable[[Tensor], Tensor] | None = None,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file written by `write_tensors`.

    Args:
        path: File to read.
        kind: Expected value of `"kind"` in the JSON object.
        version: Expected value of `"version"` in the JSON object. Default: any.
        copy: Copies a tensor that is mapped from the file, which may be changed meanwhile. Default: into memory.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is not of this kind and version, or differs from what was written.

    Example:
        >>> import tempfile
        >>> import torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_tensors(f"{folder}/some", {"means": torch.arange(2)}, {"kind": "means"})
        ...     try:
        ...         read_tensors(f"{folder}/some", "verdict")
        ...     except ValueError as error:
        ...         print(error)
        Expected a file of kind 'verdict', but ...some is of kind 'means'.
    """
    tensors, meta, damage = _read(path, kind, version, copy)
    if damage:
        raise ValueError(damage)
    return tensors, meta


def read_object(
    path: str | os.PathLike[str],
    kind: str,
    build: Callable[[dict[str, Any], dict[str, Tensor]], ObjectT],
    *,
    version: int,
) -> ObjectT:
    """Read a file written by `write_tensors`, and build an object from its JSON values and tensors.

    Args:
        path: File to read.
        kind: Expected value of `"kind"` in the JSON object.
        build: Builds the object from the JSON values, without `"kind"` and `"version"`, and the tensors. Its checks
            come first, since their errors say more than a wrong checksum.
        version: Expected value of `"version"` in the JSON object.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is not of this kind and version, its parts are invalid, or it differs from what was
            written.

    Example:
        >>> import tempfile
        >>> import torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_tensors(f"{folder}/some", {"means": torch.arange(2)}, {"kind": "means", "version": 1})
        ...     read_object(f"{folder}/some", "means", lambda meta, tensors: tensors["means"].tolist(), version=1)
        [0, 1]
    """
    tensors, meta, damage = _read(path, kind, version)
    values = {name: value for name, value in meta.items() if name not in ("kind", "version")}
    with valid_parts(path, kind):
        found = build(values, tensors)
    if damage:
        raise ValueError(damage)
    return found


@contextmanager
def valid_parts(path: str | os.PathLike[str], kind: str) -> Iterator[None]:
    """Turn any error of building an object from the parts of a file into a `ValueError` that names the file.

    Example:
        >>> with valid_parts("v.safetensors", "verdict"):
        ...     raise ValueError("Expected `p_values` to be in (0, 1], but got 2.0 at position 3.")
        Traceback (most recent call last):
        ValueError: Expected a valid verdict file, but v.safetensors has an invalid part. Expected `p_values` to be in
        (0, 1], but got 2.0 at position 3.
    """
    try:
        yield
    except Exception as error:
        is_ours = isinstance(error, ValueError | TypeError) and str(error).startswith("Expected ")
        message = str(error) if is_ours else f"Building the {kind} failed: {describe_error(error)}."
        message = "\n".join(printable(line, limit=2_000) for line in message.splitlines())  # names are from the file
        raise ValueError(f"Expected a valid {kind} file, but {_shown(path)} has an invalid part. {message}") from error


def _read(
    path: str | os.PathLike[str], kind: str, version: int | None, copy: Callable[[Tensor], Tensor] | None = None
) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """Return tensors and JSON object of a file, and what differs from what was written, or an empty string."""
    from safetensors import safe_open

    if not Path(checked_path(path)).is_file():
        raise FileNotFoundError(f"Expected a {kind} file, but there is none at {_shown(path)}.")
    try:
        with safe_open(path, framework="pt") as file:
            header = dict(file.metadata() or {})
            text = header.get(_META, "null")
            meta = json.loads(text)
            copied = (lambda tensor: tensor.clone()) if copy is None else copy
            tensors = {name: copied(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118 (no mapping)
            stored = json.loads(header.get(_CHECKSUMS, "null"))
    except OSError:
        raise
    except Exception as error:  # SafetensorError, JSON that is malformed or too deep, a data type that torch lacks
        raise ValueError(
            f"Expected a {kind} file in safetensors format, but {_shown(path)} cannot be read: {_in_one_line(error)}."
        ) from error
    found = meta.get("kind") if isinstance(meta, dict) else None
    if found != kind:
        raise ValueError(f"Expected a file of kind {kind!r}, but {_shown(path)} is of kind {str(found)[:80]!r}.")
    if version is not None and (type(meta.get("version")), meta.get("version")) != (int, version):
        raise ValueError(
            f"Expected `version` {version} of the {kind} format, but {_shown(path)} has "
            f"{printable(repr(meta.get('version')), limit=80)}.\nRead it with the release that wrote it."
        )
    return tensors, meta, _damage(path, stored, _checksums(text, tensors))


def checked_path(path: Any) -> str | os.PathLike[str]:
    """Return a path, or raise a `TypeError` that says what came instead.

    Example:
        >>> checked_path(5)
        Traceback (most recent call last):
        TypeError: Expected `path` to be a path, as `str` or `Path`, but got 5.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(expected("path", "a path, as `str` or `Path`", describe(path)))
    return path


def _checksums(text: str, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return a digest of the JSON object, under an empty name, and of each tensor, by name."""
    digests = {"": hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).hexdigest()}
    for name, tensor in tensors.items():
        digest = hashlib.blake2b(f"{tensor.dtype}{tuple(tensor.shape)}".encode(), digest_size=16)
        digest.update(_bytes_of(tensor))
        digests[name] = digest.hexdigest()
    return digests


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the JSON object of a file written by `write_tensors`, and not its tensors, which are not checked either.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If there is no such object.
    """
    with Path(path).open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > os.fstat(file.fileno()).st_size:
            raise ValueError(expected(_shown(path), "a safetensors file", "a shorter one than its header says"))
        try:
            meta = json.loads(json.loads(file.read(length))["__metadata__"][_META])
        except (KeyError, TypeError, RecursionError, UnicodeDecodeError) as error:
            raise ValueError(expected(_shown(path), "a file with a JSON object", "none")) from error
    return meta if isinstance(meta, dict) else {}


def _damage(path: str | os.PathLike[str], stored: Any, found: Mapping[str, str]) -> str:
    if stored == found:
        return ""
    if not isinstance(stored, dict):
        return f"Expected `{_CHECKSUMS}` in the metadata of {_shown(path)}, but got {describe(stored)}."
    name = next(each for each in sorted(stored.keys() | found.keys()) if stored.get(each) != found.get(each))
    what = f"the tensor `{printable(name, limit=80)}`" if name else "the JSON object"
    received = f"{found[name]}" if name in found else "no such tensor"
    return (
        f"Expected {what} in {_shown(path)} to have the checksum {printable(str(stored.get(name)), limit=80)} that it "
        f"was written with, but got {received}.\nThe file is damaged or was changed. Restore it, or write it again."
    )


def _create_partial(target: Path) -> Path:
    """Create an empty temporary file beside a target, with the permissions of any new file."""
    while True:
        partial = target.with_name(f".{target.name[:_MAX_PREFIX]}.{secrets.token_hex(4)}.partial")
        with contextlib.suppress(FileExistsError):
            os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            return partial


def _remove_stale(target: Path) -> None:
    ours = re.compile(rf"\.{re.escape(target.name[:_MAX_PREFIX])}\.[0-9a-f]{{8}}\.partial")
    with contextlib.suppress(OSError), os.scandir(target.parent) as entries:
        for entry in entries:
            if ours.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                with contextlib.suppress(OSError):  # another run may be faster
                    if time.time() - entry.stat().st_mtime > _STALE_AFTER:
                        Path(entry.path).unlink()


def _sync(path: Path, flags: int) -> None:
    """Wait until a file or folder is on the disk, where the file system supports that."""
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise
    finally:
        os.close(handle)


def _in_one_line(error: BaseException) -> str:
    return describe_error(error) if not isinstance(error, ValueError) else printable(str(error).rstrip("."), limit=500)


def _shown(path: str | os.PathLike[str]) -> str:
    return printable(os.fspath(path), limit=500)
