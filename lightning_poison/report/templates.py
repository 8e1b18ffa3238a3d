"""Templates of the HTML pages: one file with its own style and script, and everything else escaped. Needs no torch."""

import base64
import hashlib
import os
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2

from lightning_poison.checks import printable
from lightning_poison.serialization import check_writable, checked_path

_PACKAGES = ("lightning-poison", "lightning", "torch", "torchvision", "scikit-learn", "numpy")
"""Packages whose versions are on the pages."""

_SMALLEST_P = 1e-99
"""Smallest p-value that is written as a number."""


def render(name: str, styles: Sequence[str], parts: dict[str, Any]) -> str:
    """Render a page. Everything but its own style and script is escaped.

    Args:
        name: Name of the template, `NAME.html.jinja`, and of the script, `NAME.js`.
        styles: Names of the style sheets, `NAME.css`, in order.
        parts: Variables of the template.
    """
    style = "".join(_text_of(f"{each}.css") for each in styles)
    script = _text_of(f"{name}.js")
    return (
        _environment()
        .get_template(f"{name}.html.jinja")
        .render(**parts, style=style, script=script, style_hash=_hash_of(style), script_hash=_hash_of(script))
    )


def package_versions() -> list[tuple[str, str]]:
    """Return the packages that results depend on and their installed versions, `"unknown"` if one is not installed."""
    return [(name, _version_of(name)) for name in _PACKAGES]


def _version_of(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def writable(path: str | os.PathLike[str]) -> Path:
    """Return the path of a file that can be written; checked before anything is read.

    Raises:
        TypeError: If it is no path.
        OSError: If the file cannot be written.
    """
    target = Path(checked_path(path))
    try:
        check_writable(target.parent, (target.name,))
    except OSError as error:
        raise OSError(
            error.errno,
            f"Expected `path` to be a file that can be written, but got an error: {error.strerror}.\n"
            "Choose another file or folder, or change its permissions. The path is",
            str(target),
        ) from error
    return target


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": lambda number: f"{number:,}",
        "p_value": lambda p_value: f"{p_value:.3g}" if p_value >= _SMALLEST_P else f"< {_SMALLEST_P:g}",
        "number": lambda number: f"{number:.4g}",
        "percent": lambda share: f"{100 * share:.2f} %",
        "shown": lambda name: printable(name, limit=80),
    }
    return environment


@cache
def _text_of(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _hash_of(text: str) -> str:
    """Return the hash of an inline style or script, for the page's content security policy."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
