"""The `apply` command: a copy of a folder by links, without the files that a manifest removes."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from lightning_poison.checks import expected, printable
from lightning_poison.manifest.manifest import read_manifest
from lightning_poison.shell.image_files import find_images
from lightning_poison.shell.scan import SUMMARY


def copy_kept(manifest: Path, copy_to: Path, *, source: Path | None = None) -> tuple[int, int]:
    """Link the images of a scanned folder that a manifest keeps into a new folder. The originals are not touched.

    Files that the scan could not read are left out too.

    Args:
        manifest: The manifest, which may have been edited: only rows with the decision `removed` are left out.
        copy_to: The new folder, which must not exist or be empty. It appears when it is complete.
        source: The folder that was scanned. Default: as written in `summary.json` beside the manifest.

    Returns:
        Numbers of files that were linked and left out.

    Raises:
        ValueError: If the folder is not empty or inside of the source, the source is unknown, or the manifest names
            a file that the source does not have.
    """
    summary = _summary_beside(manifest)
    root = source or Path(summary.get("source", ""))
    if source is None and not summary:
        hint = "Name the folder that was scanned: `--source FOLDER`."
        raise ValueError(expected(f"{SUMMARY} beside the manifest", "the source of the scan", "none", hint))
    if not root.is_dir():
        hint = "Name the folder that was scanned: `--source FOLDER`."
        raise ValueError(expected("the source", "a folder of images", printable(root), hint))
    target = copy_to.resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(expected("copy_to", "a new or empty folder", printable(copy_to)))
    if target.is_relative_to(root.resolve()):
        raise ValueError(expected("copy_to", "a folder outside of the source", printable(copy_to)))
    removed = {Path(row.path).resolve() for row in read_manifest(manifest).rows if row.decision == "removed"}
    files = [Path(path) for path, _ in find_images(root)[0]]
    missing = removed - {file.resolve() for file in files}
    if missing:
        came = f"{len(missing):,} files that are not there, such as {printable(sorted(missing)[0])}"
        raise ValueError(expected("the manifest", f"to be of {printable(root)}", came))
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    left_out = removed | {Path(each["name"]).resolve() for each in summary.get("unreadable", [])}
    kept = [file for file in files if file.resolve() not in left_out]
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
    return len(kept), len(files) - len(kept)


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


def _summary_beside(manifest: Path) -> dict[str, Any]:
    """Return the summary of the scan that wrote a manifest, empty if there is none."""
    try:
        found = json.loads((manifest.parent / SUMMARY).read_text(encoding="utf-8"))
        return found if isinstance(found["source"], str) and isinstance(found.get("unreadable", []), list) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _link(file: Path, link: Path) -> None:
    try:
        link.symlink_to(file)
    except OSError:  # Windows allows symbolic links to few users
        os.link(file, link)
