"""Objects of classes that the user names by their path, with arguments, as in LightningCLI."""

import importlib
import sys
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from lightning_poison.checks import describe_error, expected, printable


def class_of(path: str) -> type:
    """Return the class of a path. Modules of the working directory are found.

    Raises:
        ValueError: If there is none.

    Example:
        >>> class_of("lightning.pytorch.LightningModule").__name__
        'LightningModule'
    """
    name, _, last = path.rpartition(".")
    add_working_directory()
    try:
        found = getattr(importlib.import_module(name), last)
    except Exception as error:  # (the user's code)
        raise ValueError(f"{printable(path)} cannot be imported: {describe_error(error)}") from error
    if not isinstance(found, type):
        raise ValueError(expected(printable(path), "the path of a class", f"a {type(found).__name__}"))
    return found


def instance_of(path: str, init_args: dict[str, Any], kind: str) -> Any:
    """Return an object of a class, whose arguments may contain class paths with arguments themselves.

    Args:
        path: Path of the class.
        init_args: Its arguments.
        kind: Name of the class of Lightning that it must derive from.

    Raises:
        ValueError: If it does not, or the arguments do not fit.
    """
    import lightning.pytorch as pl  # takes seconds, which a run that computes nothing does not spend

    base = getattr(pl, kind)
    if not issubclass(class_of(path), base):
        raise ValueError(expected(printable(path), f"a {kind}", "another class"))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(base, "made")
    try:
        parsed = parser.parse_object({"made": {"class_path": path, "init_args": init_args}})
        return parser.instantiate(parsed).made
    except (ArgumentError, ValueError, TypeError) as error:
        message = printable(error, limit=600)
        raise ValueError(f"{printable(path)} cannot be made from its `init_args`: {message}") from error


def add_working_directory() -> None:
    """Let modules of the working directory be imported."""
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
