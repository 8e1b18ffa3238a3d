"""Command line: `lightning-poison attacks` (with `--scorers`: scorers) and `lightning-poison demo`."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from jsonargparse import auto_cli

from lightning_poison.checks import printable
from lightning_poison.registry.registry import available_attacks, available_scorers, load_plugins


def attacks(*, scorers: bool = False) -> None:
    """List the installed attacks and the distribution of each.

    Args:
        scorers: List the scorers instead.
    """
    entries = available_scorers() if scorers else available_attacks()
    rows = [(entry.name, str(entry.source), entry.summary) for entry in entries]
    widths = [max([len(row[column]) for row in rows], default=0) for column in range(2)]
    for name, source, summary in rows:
        print(f"{name:<{widths[0]}}  {source:<{widths[1]}}  {summary}")
    if not rows:
        print("No attacks installed. Install the bundled ones: pip install 'lightning-poison[demo]'")
    for broken in load_plugins().broken:
        print(f"broken: {broken}")


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

    Args:
        arguments: Command-line arguments without the program name. Default: those of the process.

    Returns:
        Exit status.
    """
    command_line = list(arguments) if arguments is not None else sys.argv[1:]
    try:
        auto_cli(_COMMANDS, args=_normalize(command_line) or ["--help"], prog="lightning-poison", as_positional=False)
        sys.stdout.flush()
    except BrokenPipeError:  # closed pipe, as with `| head`; discard the rest, so that exit does not fail too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, LookupError, OSError) as error:
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
