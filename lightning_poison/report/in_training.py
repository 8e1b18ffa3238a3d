"""What a sanitizer shows of a verdict during a training: the page, and figures for loggers.

The functions import what they need when they are called, so that a `Sanitizer` is imported without it.
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.manifest.manifest import read_manifest
from lightning_poison.sanitization.verdict import Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_page(
    dataset: Any,
    *,
    path: Path,
    manifest: Path,
    verdict: Verdict,
    sample: SampleSpec | None,
    flag_only: bool,
    title: str,
    class_names: Sequence[str] | None = None,
) -> None:
    """Write the report of a verdict; see `write_report`.

    Args:
        dataset: Map-style data set of the verdict.
        path: File to write.
        manifest: The manifest beside it.
        verdict: The verdict.
        sample: Location of the input in a sample. Default: detected.
        flag_only: Whether removed samples are trained on nevertheless.
        title: Title of the page.
        class_names: See `write_report`.
    """
    from lightning_poison.report.page import write_report

    write_report(
        path,
        verdict,
        dataset,
        sample=sample,
        manifest=read_manifest(manifest),
        manifest_name=manifest.name,
        flag_only=flag_only,
        class_names=class_names,
        title=title,
    )


def draw_figures(
    dataset: Any,
    *,
    verdict: Verdict,
    sample: SampleSpec | None,
    flag_only: bool,
    class_names: Sequence[str] | None = None,
) -> "dict[str, Figure]":
    """Return figures of a verdict by name: `scores`, and `removed` (or `flagged`) if samples are images.

    Args:
        dataset: Map-style data set of the verdict.
        verdict: The verdict.
        sample: Location of the input in a sample. Default: detected.
        flag_only: Whether removed samples are trained on nevertheless.
        class_names: See `plot_caught`.

    Example:
        >>> import torch
        >>> from lightning_poison.sanitization.evidence import Evidence
        >>> from lightning_poison.testing.tiny_images import TinyImages
        >>> verdict = Verdict(
        ...     torch.tensor([0.2, 9.1]).double(), torch.tensor([0.8, 0.01]).double(), torch.tensor([True, False]),
        ...     torch.tensor([0, 1]), torch.tensor([0, 0]), torch.full((2,), 4.0).double(),
        ...     Evidence(True, 0.5, 0.05, 0.8, 0.95, 0.003), "trusted", 0.01, scorer="likelihood", fingerprint="5f0c",
        ... )
        >>> list(draw_figures(TinyImages(2), verdict=verdict, sample=None, flag_only=False))
        ['scores', 'removed']
    """
    from lightning_poison.report.curves import plot_scores
    from lightning_poison.report.samples import plot_caught

    figures = {"scores": plot_scores(verdict)}
    with suppress(TypeError, ValueError):  # samples that are no images
        figures["flagged" if flag_only else "removed"] = plot_caught(
            dataset, verdict, sample=sample, class_names=class_names
        )
    return figures
