"""The text of `--help`: options as they are written, without types, and defaults where the text does not say them."""

from argparse import SUPPRESS, Action, _HelpAction
from collections.abc import Iterable
from typing import Any

from jsonargparse import DefaultHelpFormatter

_POSITIONALS = {"report": "RUN [RUN ...]", "cache": "[list|clear] [FOLDER]"}
"""What commands take that `normalized` rewrites before the parser sees it."""


class HelpFormatter(DefaultHelpFormatter):
    """Shows options with dashes, flags without a value, and one line of usage for each command.

    Example:
        >>> from jsonargparse import ArgumentParser
        >>> parser = ArgumentParser(prog="scan", formatter_class=HelpFormatter)
        >>> parser.add_argument("--image_size", type=int, default=96, help="Height and width.").dest
        'image_size'
        >>> print(parser.format_help())
        usage: scan [options]
        <BLANKLINE>
        options:
          -h, --help            Show this help and exit.
          --image-size IMAGE_SIZE
                                Height and width. Default: 96.
        <BLANKLINE>
    """

    def add_usage(self, usage: str | None, actions: Iterable[Action], *args: Any, **kwargs: Any) -> None:
        """Add the command, `[options]`, and what it takes beside options; the main help has argparse's usage."""
        listed = [action for action in actions if not action.option_strings]
        command = self._prog.replace(" [options]", "")
        if not any(action.dest == "subcommand" for action in listed):
            names = " ".join(str(action.metavar or action.dest).upper() for action in listed)
            taken = _POSITIONALS.get(command.rpartition(" ")[2], names)
            usage = f"{command} [options] {taken}".rstrip()
        super().add_usage(usage, actions, *args, **kwargs)

    def _get_help_string(self, action: Action) -> str:
        text = action.help or ""
        if isinstance(action, _HelpAction):
            return "Show this help and exit."
        if "--print_config" in action.option_strings:
            return "Print the settings that the other options make, as YAML, and exit."
        has_default = not any(action.default is each for each in (None, False, SUPPRESS))
        is_said = "Default:" in text or "(default)" in text
        return f"{text} Default: %(default)s." if has_default and action.option_strings and not is_said else text

    def _format_action_invocation(self, action: Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        names = [name.replace("_", "-") for name in action.option_strings if not name.endswith("+")]
        is_flag = getattr(action, "_typehint", None) is bool or "--print_config" in action.option_strings
        takes_value = action.nargs != 0 and not is_flag
        value = self._format_args(action, self._get_default_metavar_for_optional(action)) if takes_value else ""
        return ", ".join(f"{name} {value}".rstrip() for name in names)
