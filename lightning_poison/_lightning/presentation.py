"""How a verdict is shown during a training: the page beside the manifest, and figures in the Trainer's loggers.

The functions that write and draw are handed down by `Sanitizer` and `SanitizedDataModule`. Nothing in here ends a
training: what fails is a warning.
"""

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from lightning_poison._lightning.records import MANIFEST_FILE
from lightning_poison.checks import describe_error, printable
from lightning_poison.data.reading import ReadSettings, run_in_worker
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.sanitization.verdict import Verdict

PAGE_FILE = "report.html"


class Presentation(NamedTuple):
    """Functions that show a verdict, called with the data set and keyword arguments, in a worker if it has workers.

    Args:
        write_page: Writes the page; see `report.in_training.write_page`.
        draw_figures: Returns figures by name; see `report.in_training.draw_figures`.
    """

    write_page: Callable[..., None]
    draw_figures: Callable[..., Mapping[str, Any]]


class Shown(NamedTuple):
    """What is shown.

    Args:
        verdict: The verdict.
        dataset: The scored data set.
        reading: How it is read.
        sample: Location of the input in a sample. `None`: detected.
        flag_only: Whether removed samples are trained on nevertheless.
        name: Name of the sanitizer, and of the loader if there are several.
        class_names: Names of the classes; none if they are not known.
    """

    verdict: Verdict
    dataset: Any
    reading: ReadSettings
    sample: SampleSpec | None
    flag_only: bool
    name: str
    class_names: Sequence[str] = ()


def write_page(presentation: Presentation, directory: Path, shown: Shown) -> None:
    """Write `report.html` beside the manifest. If that fails, warn."""
    write = partial(
        presentation.write_page,
        path=directory / PAGE_FILE,
        manifest=directory / MANIFEST_FILE,
        verdict=shown.verdict,
        sample=shown.sample,
        flag_only=shown.flag_only,
        class_names=shown.class_names,
        title=f"Report of {shown.name}",
    )
    try:
        run_in_worker(write, shown.dataset, shown.reading)
    except Exception as error:  # noqa: BLE001 (data sets raise anything, and the page is not worth a training)
        _warn(f"{PAGE_FILE} of `{shown.name}` was not written to {printable(directory)}", error)


def log_figures(presentation: Presentation, trainer: Any, prefix: str, shown: Shown) -> None:
    """Log the figures of a verdict with every logger of a Trainer that takes images. If that fails, warn.

    Call it on rank 0 only.

    Args:
        presentation: Draws the figures.
        trainer: Any Trainer, or `None`.
        prefix: Name of the sanitizer and its loader, as of the logged values.
        shown: The verdict and its data set.
    """
    takers = [taker for logger in getattr(trainer, "loggers", []) if (taker := _taker_of(logger)) is not None]
    if not takers:
        return
    options = {"sample": shown.sample, "flag_only": shown.flag_only, "class_names": shown.class_names}
    draw = partial(presentation.draw_figures, verdict=shown.verdict, **options)
    try:
        figures = run_in_worker(draw, shown.dataset, shown.reading)
        for take in takers:
            for name, figure in figures.items():
                take(f"{prefix}/{name}", figure, trainer.global_step)
    except Exception as error:  # noqa: BLE001 (as above; loggers raise errors of their servers)
        _warn(f"Figures of `{shown.name}` were not logged", error)


def _taker_of(logger: Any) -> Callable[[str, Any, int], None] | None:
    """Return a function that logs a figure with a logger of Lightning, or `None` if it takes no images."""
    if type(logger).__name__ == "DummyLogger":  # takes any call
        return None
    if callable(getattr(logger, "log_image", None)):  # WandbLogger
        return lambda name, figure, step: logger.log_image(key=name, images=[_rendered(figure)], step=step)
    experiment: Any = getattr(logger, "experiment", None)
    if callable(getattr(experiment, "add_figure", None)):  # TensorBoardLogger
        return lambda name, figure, step: experiment.add_figure(name, figure, step, close=False)
    if callable(getattr(experiment, "log_figure", None)) and hasattr(logger, "run_id"):  # MLFlowLogger
        return lambda name, figure, step: experiment.log_figure(logger.run_id, figure, f"{name}-{step}.png")
    return None


def _rendered(figure: Any) -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return Image.open(buffer)


def _warn(what: str, error: Exception) -> None:
    warnings.warn(
        f"{what}: {describe_error(error)}. Training continues; verdict and manifest are not affected.\nTo write no "
        "report and no figures, pass `report=False`.",
        stacklevel=3,
    )
