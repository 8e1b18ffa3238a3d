"""What `lightning-poison attacks NAME` says about one attack or scorer: its settings and its documentation."""

import inspect
import re
import textwrap

from lightning_poison.checks import printable
from lightning_poison.entry_points import call_plugin
from lightning_poison.registry import registry
from lightning_poison.registry.loading import Entry

_LEFT_OUT = re.compile(r"^(Raises|Example|Examples):\s*$", re.MULTILINE)
"""The sections from which on a docstring is of no interest to someone who chooses an attack."""


def plugin_details(name: str, *, scorers: bool = False) -> list[str]:
    """Return lines about an attack or a scorer: where it comes from, how it is built, and its docstring.

    Args:
        name: Its name. That of a scorer is found without `scorers` too, if no attack has it.
        scorers: Whether it is a scorer.

    Raises:
        UnknownNameError: If there is none of this name. The message lists the available names.

    Example:
        >>> print(*plugin_details("pixel-counting")[:3], sep=chr(10))
        pixel-counting, a scorer of lightning-poison (lightning-poison ...)
        <BLANKLINE>
            get_scorer("pixel-counting", pixels=PixelRange(mean=None, std=None, levels=256))
    """
    is_scorer = scorers or (
        name.rpartition(":")[2] not in [entry.name for entry in registry.available_attacks()]
        and name.rpartition(":")[2] in [entry.name for entry in registry.available_scorers()]
    )
    noun, entries = ("scorer", registry.available_scorers()) if is_scorer else ("attack", registry.available_attacks())
    entry = registry.find_entry(noun, name, entries)
    article = "an" if noun == "attack" else "a"
    text = call_plugin(lambda: inspect.getdoc(entry.factory) or "", f"the documentation of `{entry.name}`")
    documented = _LEFT_OUT.split(text)[0].strip() or "It has no documentation."
    call = f'get_{noun}("{name}"{_settings(entry)})'
    return [
        f"{entry.name}, {article} {noun} of {entry.source}",
        "",
        *textwrap.wrap(call, width=100, initial_indent="    ", subsequent_indent=" " * 8, break_long_words=False),
        "",
        *[printable(line, limit=400) for line in documented.splitlines()],
    ]


def _settings(entry: Entry) -> str:
    """Return the settings of a factory with their defaults, as they are written in a call."""
    try:
        parameters = call_plugin(
            lambda: [
                (each.name, "..." if each.default is each.empty or _is_long(each.default) else repr(each.default))
                for each in inspect.signature(entry.factory).parameters.values()
                if each.name != "_"
            ],
            f"the signature of `{entry.name}`",
        )
    except Exception:  # noqa: BLE001 (a factory without a signature, such as some classes written in C)
        return ""
    return "".join(f", {name}={printable(value)}" for name, value in parameters)


def _is_long(default: object) -> bool:
    return len(repr(default)) > 60 or repr(default).startswith("<")
