"""The command line: `lightning-poison attacks`, `lightning-poison demo`."""

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
    """List the attacks that are installed, and the distribution that each comes from.

    Args:
        scorers: list the scorers instead.
    """
    offers = available_scorers() if scorers else available_attacks()
    rows = [(offer.name, str(offer.source), offer.summary) for offer in offers]
    widths = [max([len(row[column]) for row in rows], default=0) for column in range(2)]
    for name, source, summary in rows:
        print(f"{name:<{widths[0]}}  {source:<{widths[1]}}  {summary}")
    if not rows:
        print("None is installed. First-party ones: pip install 'lightning-poison[demo]'")
    for broken in load_plugins().broken:
        print(f"broken: {broken}")


def demo(
    *,
    data: Literal["digits", "mnist"] = "digits",
    data_root: Path | None = None,
    output: Path = Path("lightning_poison_demo"),
    seed: int = 0,
) -> None:
    """Poison real digits in two ways, and see what the sanitizer keeps out and what that is worth.

    Args:
        data: scikit-learn's bundled digits, or MNIST.
        data_root: the folder that holds MNIST/raw; nothing is downloaded.
        output: where manifests, verdicts and pictures are written.
        seed: seeds everything.
    """
    from lightning_poison.demo.run import run_demo

    with _quiet_hosts(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning|torch")
        run_demo(data=data, data_root=data_root, output=output, seed=seed, say=_say)


_COMMANDS: dict[str, Any] = {"attacks": attacks, "demo": demo}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; an error that a user can mend is one message and exit status 2, not a traceback.

    Args:
        arguments: what stands behind the program's name; that of the process where it is `None`.

    Returns:
        The exit status.
    """
    given = list(arguments) if arguments is not None else sys.argv[1:]
    try:
        auto_cli(_COMMANDS, args=_spelled(given) or ["--help"], prog="lightning-poison", as_positional=False)
        sys.stdout.flush()
    except BrokenPipeError:  # nobody reads on, as behind `| head`; what is left unwritten must not fail at exit again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, LookupError, OSError) as error:
        lines = [printable(line, limit=1000) for line in str(error).splitlines()]
        print("lightning-poison: " + "\n".join(lines), file=sys.stderr)
        return 2
    return 0


@contextmanager
def _quiet_hosts() -> Iterator[None]:
    """Silence what Lightning logs about its devices and tips; its loggers get their levels back."""
    names = ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_utilities")
    levels = [(logging.getLogger(name), logging.getLogger(name).level) for name in names]
    try:
        for logger, _ in levels:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in levels:
            logger.setLevel(level)


def _spelled(arguments: Sequence[str]) -> list[str]:
    """Let options be written with dashes, `--data-root` as `--data_root`, and `--scorers` without `true`."""
    spelled = []
    for argument, following in zip(arguments, [*arguments[1:], "--"], strict=True):
        name, equals, value = argument.partition("=")
        if name.startswith("--"):
            argument = name.replace("-", "_").replace("__", "--", 1) + equals + value
        spelled.append("--scorers=true" if argument == "--scorers" and following.startswith("-") else argument)
    return spelled


def _say(line: str) -> None:
    print(line, flush=True)
