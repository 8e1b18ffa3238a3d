"""Command line: `lightning-poison attacks` (with `--scorers`: scorers) and `lightning-poison demo`.

Commands import what they need when they run, so that help, version and usage errors do not wait for torch.
"""

import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from jsonargparse import auto_cli

from lightning_poison.checks import printable
from lightning_poison.errors import PluginError


def attacks(*, scorers: bool = False) -> None:
    """List the installed attacks and the distribution of each.

    Args:
        scorers: List the scorers instead.
    """
    from lightning_poison.registry import registry

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # broken plug-ins are listed below
        broken = registry.load_plugins().broken
    entries = registry.available_scorers() if scorers else registry.available_attacks()
    rows = [(entry.name, str(entry.source), entry.summary) for entry in entries]
    widths = [max([len(row[column]) for row in rows], default=0) for column in range(2)]
    for name, source, summary in rows:
        print(f"{name:<{widths[0]}}  {source:<{widths[1]}}  {summary}")
    if not rows:
        print("No attacks installed. Install the bundled ones: pip install 'lightning-poison[demo]'")
    for each in broken:
        print(f"broken: {each}")


def demo(
    *,
    data: Literal["digits", "mnist"] = "digits",
    data_root: Path | None = None,
    output: Path = Path("lightning_poison_demo"),
    seed: int = 0,
) -> None:
    """Poison images of digits with two attacks, and compare the sanitizer with control filters.

    Args:
        data: Data set: scikit-learn's bundled digits, or MNIST.
        data_root: Folder that contains MNIST/raw; nothing is downloaded.
        output: Folder for manifests, verdicts and figures.
        seed: Seed of all randomness.
    """
    from lightning_poison.demo.run import run_demo

    with _quiet_lightning(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning|torch")
        run_demo(data=data, data_root=data_root, output=output, seed=seed, write=_write_line)


_COMMANDS: dict[str, Any] = {"attacks": attacks, "demo": demo}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. User errors are reported as one message with exit status 2, without a traceback.

    Without a command, the help is written to standard error, and the exit status is 2.

    Args:
        arguments: Command-line arguments without the program name. Default: those of the process.

    Returns:
        Exit status.
    """
    command_line = list(arguments) if arguments is not None else sys.argv[1:]
    try:
        if not command_line:
            return _show_help()
        _run(_normalize(command_line))
        sys.stdout.flush()
    except BrokenPipeError:  # closed pipe, as with `| head`; discard the rest, so that exit does not fail too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, LookupError, OSError, PluginError) as error:
        lines = [printable(line, limit=1000) for line in str(error).splitlines()]
        print("lightning-poison: " + "\n".join(lines), file=sys.stderr)
        return 2
    return 0


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Suppress Lightning's logs about devices and tips, and restore the log levels on exit."""
    names = ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_utilities")
    levels = [(logging.getLogger(name), logging.getLogger(name).level) for name in names]
    try:
        for logger, _ in levels:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in levels:
            logger.setLevel(level)


def _run(arguments: list[str]) -> None:
    name = "lightning-poison"
    auto_cli(_COMMANDS, args=arguments, prog=name, as_positional=False, version=metadata.version(name))


def _show_help() -> int:
    try:
        with redirect_stdout(sys.stderr):
            _run(["--help"])
    except SystemExit:
        pass
    return 2


def _normalize(arguments: Sequence[str]) -> list[str]:
    """Accept options with dashes, `--data-root` for `--data_root`, and `--scorers` without `true`."""
    normalized = []
    for argument, following in zip(arguments, [*arguments[1:], "--"], strict=True):
        name, equals, value = argument.partition("=")
        if name.startswith("--"):
            argument = name.replace("-", "_").replace("__", "--", 1) + equals + value
        normalized.append("--scorers=true" if argument == "--scorers" and following.startswith("-") else argument)
    return normalized


def _write_line(line: str) -> None:
    print(line, flush=True)
