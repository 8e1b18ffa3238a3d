"""The `apply` command: a copy of a folder by links, or a list of files, without those that a manifest removes."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from lightning_poison.checks import expected, printable
from lightning_poison.manifest.manifest import read_manifest
from lightning_poison.serialization import atomic_path
from lightning_poison.shell.image_files import find_images
from lightning_poison.shell.scan import MANIFEST, SUMMARY
from lightning_poison.shell.tables import path_column, read_table


def copy_kept(manifest: Path, copy_to: Path, *, source: Path | None = None) -> tuple[int, int]:
    """Link the images of a scanned folder that a manifest keeps into a new folder. The originals are not touched.

    Files that the scan could not read are left out too.

    Args:
        manifest: The manifest, which may have been edited: only rows with the decision `removed` or
            `removed-by-hand` are left out.
        copy_to: The new folder, which must not exist or be empty. It appears when it is complete.
        source: The folder that was scanned. Default: as written in `summary.json` beside the manifest.

    Returns:
        Numbers of files that were linked and left out.

    Raises:
        ValueError: If the folder is not empty or inside of the source, the source is unknown or no folder, or the
            manifest names a file that the source does not have.
    """
    root, kept, count = _kept_files(manifest, source)
    if not root.is_dir():
        way = "`--list-to FILE` lists what is kept of a table."
        raise ValueError(expected("the source", "a folder of images", printable(root), way))
    target = copy_to.resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        way = "Choose another folder, or delete the links of an earlier copy first: add `--undo`."
        raise ValueError(expected("--copy-to", "a new or empty folder", printable(copy_to), way))
    if target.is_relative_to(root.resolve()):
        raise ValueError(expected("--copy-to", "a folder outside of the source", printable(copy_to)))
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for file in kept:
            link = partial / file.relative_to(root)
            link.parent.mkdir(parents=True, exist_ok=True)
            _link(file.resolve(), link)
        if target.exists():
            target.rmdir()
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return len(kept), count - len(kept)


def list_kept(manifest: Path, list_to: Path, *, source: Path | None = None) -> tuple[int, int]:
    """Write the paths of the images that a manifest keeps to a text file, one for each line.

    Args:
        manifest: See `copy_kept`.
        list_to: The file. One that exists is replaced.
        source: The folder or the table that was scanned. Default: as written in `summary.json` beside the manifest.

    Returns:
        Numbers of files that are listed and left out.

    Raises:
        ValueError: If the source is unknown, neither a folder nor a table of paths, or the manifest names a file that
            it does not have; or a path has a line break.
    """
    _, kept, count = _kept_files(manifest, source)
    broken = next((file for file in kept if len(str(file).splitlines()) > 1), None)
    if broken is not None:
        way = "Use `--copy-to FOLDER`."
        raise ValueError(expected("the paths", "without line breaks", printable(broken), way))
    with atomic_path(list_to) as partial:
        partial.write_text("".join(f"{file}\n" for file in kept), encoding="utf-8", errors="surrogateescape")
    return len(kept), count - len(kept)


def undo_copy(copy_to: Path) -> int:
    """Delete a folder that `copy_kept` made, and nothing else.

    Returns:
        Number of links deleted.

    Raises:
        ValueError: If there is anything but links in it.
    """
    if not copy_to.is_dir():
        raise ValueError(expected("copy_to", "a folder made by `apply`", printable(copy_to)))
    files = [Path(folder) / name for folder, _, names in os.walk(copy_to) for name in names]
    own = [file for file in files if not file.is_symlink() and file.stat().st_nlink < 2]
    if own:
        came = f"{len(own):,} files of its own, such as {printable(own[0])}"
        raise ValueError(expected(f"{printable(copy_to)}", "nothing but links", came, "Nothing was deleted."))
    shutil.rmtree(copy_to)
    return len(files)


def _kept_files(manifest: Path, source: Path | None) -> tuple[Path, list[Path], int]:
    """Return what was scanned, the files of it that a manifest keeps, and the number of all of them."""
    if not manifest.is_file():
        came = "a folder" if manifest.is_dir() else "nothing there"
        hint = f"Did you mean {printable(manifest / MANIFEST)}?" if (manifest / MANIFEST).is_file() else ""
        raise ValueError(expected(printable(manifest), "the manifest of a scan", came, hint))
    summary = _summary_beside(manifest)
    reading = summary.get("reading", {})
    origin = Path(reading.get("folder", ""))  # what relative paths start from
    root = source or origin / summary.get("source", "")
    hint = "Name what was scanned: `--source PATH`."
    if source is None and not summary:
        raise ValueError(expected(f"{SUMMARY} beside the manifest", "the source of the scan", "none", hint))
    is_table = root.suffix.lower() in (".csv", ".parquet") and root.is_file()
    if not root.is_dir() and not is_table:
        raise ValueError(expected("the source", "a folder of images, or a table of their paths", printable(root), hint))
    found = _files_in_table(root, reading.get("path")) if is_table else [path for path, _ in find_images(root)[0]]
    files = [Path(path) for path in found]
    rows = [row for row in read_manifest(manifest).rows if row.decision in ("removed", "removed-by-hand")]
    removed = {(origin / row.path).resolve() for row in rows}
    missing = removed - {file.resolve() for file in files}
    if missing:
        came = f"{len(missing):,} files that are not there, such as {printable(sorted(missing)[0])}"
        raise ValueError(expected("the manifest", f"to be of {printable(root)}", came))
    left_out = removed | {(origin / each["name"]).resolve() for each in summary.get("unreadable", [])}
    return root, [file for file in files if file.resolve() not in left_out], len(files)


def _files_in_table(table: Path, path: str | None) -> list[str]:
    columns = read_table(table)
    name = path_column(columns, path)
    if name is None:
        raise ValueError(expected("the source", "a table of paths", f"{printable(table)}, a table of numbers"))
    return [str(table.parent / str(file)) for file in columns[name]]


def _summary_beside(manifest: Path) -> dict[str, Any]:
    """Return the summary of the scan that wrote a manifest, empty if there is none."""
    try:
        found = json.loads((manifest.parent / SUMMARY).read_text(encoding="utf-8"))
        reading = found.get("reading", {})
        texts = found["source"], reading.get("folder", ""), reading.get("path") or ""
        is_sound = all(isinstance(text, str) for text in texts) and isinstance(found.get("unreadable", []), list)
        return found if is_sound else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _link(file: Path, link: Path) -> None:
    try:
        link.symlink_to(file)
    except OSError:  # Windows allows symbolic links to few users
        os.link(file, link)
