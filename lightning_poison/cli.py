"""Command line: `lightning-poison scan`, `report`, `apply`, `evaluate`, `attacks` (or scorers), `cache`, `demo`.

Commands import what they need when they run, so that help, version and usage errors do not wait for torch.
"""

import inspect
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentError, auto_parser

from lightning_poison.checks import printable
from lightning_poison.errors import (
    DataChangedError,
    InconclusiveError,
    MissingEncoderError,
    NothingKeptError,
    PluginError,
    UnreadableSampleError,
    UnsupportedDataError,
)
from lightning_poison.shell.arguments import explained, hint_for, normalized
from lightning_poison.shell.help_text import HelpFormatter

_USER_ERRORS = (
    ValueError,
    LookupError,
    OSError,
    PluginError,
    InconclusiveError,
    NothingKeptError,
    UnreadableSampleError,
    UnsupportedDataError,
    DataChangedError,
    MissingEncoderError,
)


def scan(
    source: str,
    *,
    output: Path = Path("lightning_poison_scan"),
    cache: Path | None = None,
    trusted: str | None = None,
    scorer: str | dict[str, Any] | list[str | dict[str, Any]] = "balanced",
    backbone: str | None = None,
    label: str | None = None,
    path: str | None = None,
    ids: str | None = None,
    image_size: int | None = None,
    false_positive_rate: float = 0.01,
    remove_without_evidence: bool = False,
    device: str = "cpu",
    num_workers: int = 0,
    seed: int = 0,
    json: bool = False,
) -> int:
    """Find likely poisoned and mislabeled samples in a data set, and write a manifest and a report.

    The exit status is 0 without evidence of poison, 3 with evidence, and 2 if the data cannot be judged. Nothing but
    the folders of output and cache is written; started again, an interrupted scan continues.

    Args:
        source: A folder of images with a folder for each class; a .csv or .parquet table of paths and labels, or of
            numbers and labels; an .npz or .npy file; a data set of Hugging Face, as a folder or hf:NAME; or
            package.module:function, which returns a data set.
        output: Folder for manifest.csv, verdict.safetensors, report.html and summary.json.
        cache: Folder for finished work, which scans with another output can share. Default: cache in the output folder.
        trusted: Known-clean samples, in any form that source takes.
        scorer: fast, balanced or thorough, or the name of a scorer that `lightning-poison attacks --scorers` lists. May
            be repeated. In a configuration file, also a mapping of name and settings, or a list of these.
        backbone: Network with pretrained weights on this machine, timm:NAME or torchvision:NAME, for features of
            images that never saw the labels.
        label: Column or array of the labels; for .npy, the file of the labels.
        path: Column of the paths of the images in a table, or of the images.
        ids: Column of the names of samples that are not files; for .npy, the file of the names.
        image_size: Height and width to which images are scaled. Default: as they are, up to 96.
        false_positive_rate: Share of clean samples that may be removed.
        remove_without_evidence: List samples that are more likely wrong than not, and groups without an effect, even if
            there is no evidence of poison. Use it with --scorer fast to list wrong labels only.
        device: Where to compute, such as cpu or cuda.
        num_workers: Processes that read the samples of a data set of your own.
        seed: Seed of all randomness.
        json: Print the summary as JSON.
    """
    from lightning_poison.shell.scan import ScanOptions, run_scan

    options = ScanOptions(
        output=output,
        cache=cache,
        trusted=trusted,
        scorer=scorer,
        backbone=backbone,
        label=label,
        path=path,
        ids=ids,
        image_size=image_size,
        false_positive_rate=false_positive_rate,
        remove_without_evidence=remove_without_evidence,
        device=device,
        num_workers=num_workers,
        seed=seed,
    )
    with _quiet_lightning():
        return run_scan(source, options, write=_write_line, as_json=json)


def report(runs: str, *, source: str | None = None) -> None:
    """Write the report of a scan, a training run, or an evaluation again, with the decisions of an edited manifest.

    Args:
        runs: Output folder of a scan, a folder with the files of a sanitizer, or the results of an evaluation. May be
            repeated.
        source: The data set, in any form that scan takes, if there is only one run. Default: as in summary.json.
    """
    from lightning_poison.shell.report import write_reports

    write_reports([Path(run) for run in json.loads(runs)], source=source, write=_write_line)


def apply(
    manifest: Path,
    *,
    copy_to: Path | None = None,
    list_to: Path | None = None,
    source: Path | None = None,
    undo: bool = False,
) -> None:
    """Copy a scanned folder, as links, or list its files, without those that its manifest removes.

    Args:
        manifest: The manifest of a scan; rows whose decision is not "removed" or "removed-by-hand" are kept.
        copy_to: The new folder.
        list_to: A text file for the paths that are kept, one per line.
        source: What was scanned: a folder, or a table of paths. Default: as in summary.json beside the manifest.
        undo: Delete the links of an earlier --copy-to.
    """
    from lightning_poison.shell.apply import copy_kept, list_kept, undo_copy

    if (copy_to is None) == (list_to is None):
        came = "neither" if copy_to is None else "both"
        raise ValueError(f"Expected one of `--copy-to FOLDER` and `--list-to FILE`, but got {came}.")
    if list_to is not None:
        kept, removed = list_kept(manifest, list_to, source=source)
        _write_line(f"{kept:,} files listed in {printable(list_to)}; {removed:,} left out")
    elif copy_to is not None and undo:
        _write_line(f"{undo_copy(copy_to):,} links deleted")
    elif copy_to is not None:
        kept, removed = copy_kept(manifest, copy_to, source=source)
        _write_line(f"{kept:,} files linked into {printable(copy_to)}; {removed:,} left out")


def evaluate(
    config: Path | None = None,
    *,
    data: str | None = None,
    data_root: str | None = None,
    label: str | None = None,
    path: str | None = None,
    image_size: int | None = None,
    max_samples: int | None = None,
    model: str | None = None,
    epochs: int | None = None,
    attack: list[str] | None = None,
    defense: list[str] | None = None,
    seeds: int | None = None,
    adaptive: bool | None = None,
    results: str | None = None,
    executor: Literal["process", "ray"] | None = None,
    workers: int | None = None,
    ray_address: str | None = None,
    gpus_per_cell: float | None = None,
    retry_failed: bool = False,
    json: bool = False,
) -> int:
    """Measure how well defenses withstand attacks on your data and model, compared with control filters.

    For each attack and seed, the model is trained without a defense, with each defense, with random filters of the same
    size, and with a perfect filter. Finished cells are stored, and a later run extends them. The exit status is 0 if
    all cells have figures, and 2 if some failed.

    Args:
        config: YAML file with any of these settings, and more of attacks and defenses. Arguments take precedence.
        data: digits, mnist, a source as scan takes it, or the class path of a LightningDataModule.
        data_root: Folder that contains MNIST/raw; nothing is downloaded.
        label: As for scan.
        path: As for scan.
        image_size: As for scan.
        max_samples: Number of samples that are drawn for each seed. Default: all.
        model: Class path of a LightningModule that returns logits. Default: a small network.
        epochs: Number of epochs of each training. Default: 10.
        attack: Name of an attack that `lightning-poison attacks` lists, or NAME=FRACTION, with the share of the
            training samples that are poisoned (0.05 without it). May be repeated.
        defense: fast, balanced, thorough, or the name of a scorer. May be repeated.
        seeds: Number of seeds. Default: 3.
        adaptive: Whether to add attackers that know the defense, if there are any. Default: true.
        results: File of the results. Default: evaluation.jsonl.
        executor: process (default) or ray.
        workers: Number of processes. Default: the number of CPU cores.
        ray_address: Address of a Ray cluster. Default: one on this machine.
        gpus_per_cell: GPUs for each training and filter, with Ray. Default: 0.
        retry_failed: Compute the cells that failed in an earlier run again.
        json: Print the cells as JSON.
    """
    from lightning_poison.shell.evaluate import run_evaluation
    from lightning_poison.shell.evaluate_settings import read_settings

    arguments: dict[str, Any] = {"data": data, "data_root": data_root, "label": label, "path": path}
    arguments |= {"image_size": image_size, "max_samples": max_samples, "model": model, "epochs": epochs}
    arguments |= {"attacks": attack, "defenses": defense, "seeds": seeds, "adaptive": adaptive, "results": results}
    arguments |= {"executor": executor, "workers": workers, "ray_address": ray_address, "gpus_per_cell": gpus_per_cell}
    settings = read_settings(config, arguments)
    with _quiet_lightning():
        return run_evaluation(
            settings, write=_write_line, report=_report_line, as_json_object=json, retry_failed=retry_failed
        )


def attacks(*, name: str | None = None, scorers: bool = False) -> None:
    """List the installed attacks, and the package that each belongs to, or describe one: `attacks [NAME]`.

    Args:
        name: Describe this attack or scorer and its settings.
        scorers: List the scorers instead.
    """
    from lightning_poison.registry import registry

    if name is not None:
        from lightning_poison.shell.plugin_details import plugin_details

        print(*plugin_details(name, scorers=scorers), sep="\n")
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # broken plug-ins are listed below
        broken = registry.load_plugins().broken
    entries = registry.available_scorers() if scorers else registry.available_attacks()
    rows = [(entry.name, str(entry.source), entry.summary) for entry in entries]
    widths = [max([len(row[column]) for row in rows], default=0) for column in range(2)]
    for name, source, summary in rows:
        print(f"{name:<{widths[0]}}  {source:<{widths[1]}}  {summary}")
    if rows:
        print("\nSettings of one of them: lightning-poison attacks NAME")
    else:
        print("No attacks are installed. Install the bundled ones from a clone: pip install ./plugins/*/")
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
    from lightning_poison.shell.demo import run_demo

    with _quiet_lightning():
        run_demo(data=data, data_root=data_root, output=output, seed=seed, write=_write_line)


def cache(
    action: Literal["list", "clear"],
    *,
    folder: Path = Path(),
    older_than: float | None = None,
    keep_latest: int | None = None,
) -> None:
    """List or clear the work that scans and training runs have stored: `cache [list|clear] [FOLDER]`.

    Only stored work that no running process uses is removed.

    Args:
        action: list (default) or clear. Runs keep a cache below LIGHTNING_POISON_CACHE_GIB, 10 GiB by default.
        folder: A cache folder, the folder of a run, or one with folders of runs. Default: the current one.
        older_than: Clear only what has not been used for this number of days.
        keep_latest: Number of entries of each cache to keep, the most recently used first.
    """
    from lightning_poison.shell.cache import clear_caches, list_caches

    if action == "list":
        list_caches(folder, write=_write_line)
    else:
        clear_caches(folder, older_than=older_than, keep_latest=keep_latest, write=_write_line)


_COMMANDS: dict[str, Any] = {
    "scan": scan,
    "report": report,
    "apply": apply,
    "evaluate": evaluate,
    "attacks": attacks,
    "cache": cache,
    "demo": demo,
}


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
        status = _run(normalized(command_line))
        sys.stdout.flush()
    except ArgumentError as error:
        hint = hint_for(str(error), command_line[0], _COMMANDS)
        return _report(explained(str(error)) or f"{error}\n{hint}")
    except BrokenPipeError:  # closed pipe, as with `| head`; discard the rest, so that exit does not fail too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except _USER_ERRORS as error:
        return _report(str(error))
    except KeyboardInterrupt:
        continues = "; the same command continues" if command_line[0] in ("scan", "evaluate") else ""
        print(f"lightning-poison: interrupted{continues}", file=sys.stderr)
        return 130
    return status if isinstance(status, int) else 0


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Suppress Lightning's logs about devices and tips, and warnings of Lightning and torch; restore both on exit."""
    names = ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_utilities")
    levels = [(logging.getLogger(name), logging.getLogger(name).level) for name in names]
    try:
        for logger, _ in levels:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning|torch")
            yield
    finally:
        for logger, level in levels:
            logger.setLevel(level)


def _run(arguments: list[str]) -> Any:
    """Parse arguments and run a command. `--config` is jsonargparse's, except for a command that has an own one."""
    name = "lightning-poison"
    version = metadata.version(name)
    style: dict[str, Any] = {"formatter_class": HelpFormatter, "exit_on_error": False}
    parser = auto_parser(_COMMANDS, prog=name, as_positional=True, version=version, **style)
    parsed = parser.instantiate(parser.parse_args(arguments))
    command = _COMMANDS[parsed.subcommand]
    own = inspect.signature(command).parameters
    return command(**{key: value for key, value in vars(parsed[parsed.subcommand]).items() if key in own})


def _show_help() -> int:
    try:
        with redirect_stdout(sys.stderr):
            _run(["--help"])
    except SystemExit:
        pass
    return 2


def _report(message: str) -> int:
    lines = [printable(line, limit=1000) for line in message.splitlines()]
    print("lightning-poison: " + "\n".join(lines), file=sys.stderr)
    return 2


def _write_line(line: str) -> None:
    print(line, flush=True)


def _report_line(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
