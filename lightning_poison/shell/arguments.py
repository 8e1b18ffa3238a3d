"""The command line before and after jsonargparse: what it does not accept, and what it does not say."""

import difflib
import inspect
import json
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from lightning_poison.checks import printable

_FLAGS = ("--scorers", "--json", "--remove_without_evidence", "--undo", "--retry_failed", "--adaptive")

_REPEATED = ("--scorer", "--attack", "--defense")


def normalized(arguments: Sequence[str]) -> list[str]:
    """Return a command line as jsonargparse takes it.

    Options may have dashes, flags have no value, some options may be repeated, a report has several runs, the action of
    `cache` may be missing, and the name of an attack needs no option.

    Args:
        arguments: The command and its arguments.

    Example:
        >>> normalized(["scan", "a", "--image-size", "32", "--json", "--scorer", "likelihood", "--scorer=confidence"])
        ['scan', 'a', '--image_size', '32', '--json=true', '--scorer=likelihood,confidence']
        >>> normalized(["cache"]), normalized(["cache", "clear", "runs", "--older-than", "7"])
        (['cache', 'list'], ['cache', 'clear', '--folder=runs', '--older_than', '7'])
    """
    if arguments[0] == "report":
        arguments = _with_joined_runs(arguments)
    if arguments[0] == "cache":
        arguments = _with_action(arguments)
    if arguments[0] == "attacks":
        arguments = _with_name(arguments)
    found: list[str] = []
    repeated: dict[str, list[str]] = {}
    pending = iter(zip(arguments, [*arguments[1:], "--"], strict=True))
    for argument, following in pending:
        name, equals, value = argument.partition("=")
        if name in _REPEATED and (equals or not following.startswith("-")):
            repeated.setdefault(name, []).append(value if equals else following)
            if not equals:
                next(pending)
            continue
        if name.startswith("--"):
            argument = name.replace("-", "_").replace("__", "--", 1) + equals + value
        is_flag = argument in _FLAGS and following not in ("true", "false")
        found.append(f"{argument}=true" if is_flag else argument)
    for name, values in repeated.items():
        found.append(f"{name}={','.join(values) if name == '--scorer' else json.dumps(values)}")
    return found


def hint_for(message: str, command: str, commands: Mapping[str, Any]) -> str:
    """Return which option or command an error about an unknown one may mean, and where they are listed.

    Args:
        message: What jsonargparse says.
        command: The command that was given.
        commands: The function of each command.

    Example:
        >>> def scan(source, *, image_size=None): ...
        >>> hint_for("unrecognized arguments: --imagesize 3", "scan", {"scan": scan})
        'Did you mean image-size? `lightning-poison scan --help` lists all of them.'
    """
    found = re.search(r"option '([\w.-]+)'|unrecognized arguments: --([\w-]+)|invalid choice: '([\w-]+)'", message)
    known: list[str] = list(commands)
    if command in commands:
        known = list(inspect.signature(commands[command]).parameters)
    else:
        command = ""
    close = difflib.get_close_matches(next(filter(None, found.groups())), known, n=1) if found else []
    hint = f"Did you mean {close[0].replace('_', '-')}? " if close else ""
    listed = "lightning-poison " + (f"{command} " if command else "") + "--help"
    return f"{hint}`{listed}` lists all of them."


def explained(message: str) -> str | None:
    r"""Return what is missing, or wrong with a value that jsonargparse refuses; `None` for any other error.

    Args:
        message: What jsonargparse says.

    Example:
        >>> print(explained("Parser key \"seed\":\n  Expected a <class 'int'>. Got value: x"))
        Expected `--seed` to be an integer, as in `--seed 2`, but got 'x'.
    """
    missing = re.search(r"arguments are required: (\w+)\.(\w+)", message)
    if missing is not None:
        command, name = missing.groups()
        return (
            f"Expected `{name}`, as in `lightning-poison {command} {_MISSING.get(name, name.upper())}`, but got none.\n"
            f"`lightning-poison {command} --help` describes it."
        )
    found = re.match(
        r"""Parser key "(\w+)":.*?(?:Subtypes: \[|Expected a )(<class 'int'>|<class 'float'>|typing\.Literal\[.*?\])"""
        r".*?(?:Given|Got) value: (.*)",
        message,
        re.DOTALL,
    )
    if found is None:
        return None
    key, kind, value = found.groups()
    name = "--" + key.replace("_", "-")
    what, example = _VALUES.get(key, _NUMBERS.get(kind, ("", "")))
    if not what:
        choices = [f"`{each}`" for each in re.findall(r"'([^']*)'", kind)]
        return f"Expected {_named(key, name)} to be {' or '.join(choices)}, but got '{printable(value, limit=80)}'."
    return f"Expected `{name}` to be {what}, as in `{name} {example}`, but got '{printable(value, limit=80)}'."


_NUMBERS = {"<class 'int'>": ("an integer", "2"), "<class 'float'>": ("a number", "0.5")}
"""What a value of a type is, and an example."""

_VALUES = {
    "older_than": ("a number of days", "7"),
    "false_positive_rate": ("a number between 0 and 1", "0.01"),
    "image_size": ("a number of pixels", "32"),
}
"""The same for options of which an example should have a usual size."""


_MISSING = {"source": "photos/", "runs": "lightning_poison_scan/", "manifest": "lightning_poison_scan/manifest.csv"}
"""Examples of arguments that are required."""


def _named(key: str, name: str) -> str:
    return f"`{key}`" if key == "action" else f"`{name}`"


def _with_action(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of `cache` with the action, if it is missing, and the folder as an option."""
    options: list[str] = []
    given: list[str] = []
    for before, argument in pairwise(arguments):
        is_value = before.startswith("-") and "=" not in before
        (options if argument.startswith("-") or is_value else given).append(argument)
    misspelled = bool(given) and not Path(given[0]).exists()
    if not misspelled and given[:1] not in (["list"], ["clear"]):
        given.insert(0, "list")
    folder = [f"--folder={each}" for each in given[1:2]]
    asks_for_help = {"-h", "--help"} & set(options)
    return [arguments[0], *(() if asks_for_help else given[:1]), *folder, *given[2:], *options]


def _with_name(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of `attacks` with the first that is no option, or value of one, as the name."""
    found = list(arguments)
    for place, (before, argument) in enumerate(pairwise(arguments), 1):
        is_value = argument in ("true", "false") or before in ("--name", "--config")
        if not argument.startswith("-") and not is_value:
            found[place] = f"--name={argument}"
            break
    return found


def _with_joined_runs(arguments: Sequence[str]) -> list[str]:
    """Join the runs of a report, which are all arguments but options and the value of `--source`, into a JSON list."""
    options: list[str] = []
    runs: list[str] = []
    for before, argument in pairwise(arguments):
        (options if argument.startswith("-") or before == "--source" else runs).append(argument)
    return [arguments[0], *([json.dumps(runs)] if runs else []), *options]
