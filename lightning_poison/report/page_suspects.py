"""Samples on the HTML report that were not removed, and that its reader may remove: which, and their manifest rows."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.errors import UnreadableSampleError
from lightning_poison.manifest.manifest import Manifest
from lightning_poison.manifest.rows import ManifestRow
from lightning_poison.report.page_figures import judged_of
from lightning_poison.sanitization.verdict import Verdict

_FEWEST, _MOST = 24, 250
"""Smallest and largest number of suspects. Between them, it is what is estimated beyond the removed samples."""

_MAX_MARKED = 2_500
"""Largest number of suspects that were removed by hand before."""


def suspects_of(verdict: Verdict, manifest: Manifest) -> list[int]:
    """Return the most suspicious samples that the verdict keeps and nobody kept by hand, and those removed by hand.

    Args:
        verdict: The verdict.
        manifest: Its manifest, which may have been edited.

    Returns:
        Positions, most suspicious first: as many as are estimated to be poison beyond those that were removed, but from
        24 to 250, and what is marked already.

    Example:
        >>> from lightning_poison.sanitization.evidence import Evidence
        >>> scores = torch.arange(100).double()
        >>> verdict = Verdict(
        ...     scores, 1 / (1 + scores), scores < 90, torch.zeros(100).long(), torch.zeros(100).long(),
        ...     torch.zeros(1).double(), Evidence(True, 0.4, 0.3, 0.5, 0.95, 0.003), "trusted", 0.01,
        ...     scorer="likelihood", fingerprint="5f0c",
        ... )
        >>> found = suspects_of(verdict, Manifest(()))
        >>> len(found), found[:3]
        (30, [89, 88, 87])
    """
    judged = judged_of(verdict)
    marked = {row.sample_id for row in manifest.rows if row.decision == "removed-by-hand"}
    kept_by_hand = [row.sample_id for row in manifest.rows if row.decision == "kept-by-hand"]
    candidates = verdict.keep & (judged | (verdict.p_values < 1))  # with small classes, to be checked by hand
    candidates[kept_by_hand] = False
    removed = int((~verdict.keep).sum())
    estimated = math.ceil(verdict.evidence.contamination * int(judged.sum())) - removed
    ranking = verdict.ranking
    chosen = ranking[candidates[ranking]][: min(_MOST, max(_FEWEST, estimated))]
    listed = torch.zeros_like(candidates)
    listed[chosen] = True
    listed[[index for index in ranking.tolist() if index in marked][:_MAX_MARKED]] = True
    found: list[int] = ranking[listed[ranking]].tolist()
    return found


def suspect_rows(
    verdict: Verdict,
    manifest: Manifest,
    dataset: Any,
    suspects: Sequence[int],
    *,
    sample: SampleSpec | None,
    class_names: Sequence[str],
) -> list[ManifestRow]:
    """Return the rows that a manifest would have if its reader removed suspects, in their order.

    Samples are read once more for their digests. Those that cannot be read have no row.

    Args:
        verdict: The verdict.
        manifest: Its manifest, which may have been edited.
        dataset: The data set or `Readable` of the verdict; `None` if it is not available.
        suspects: Positions of the suspects.
        sample: See `Manifest.from_verdict`.
        class_names: See `Manifest.from_verdict`.
    """
    found = {row.sample_id: row for row in manifest.rows if row.decision == "removed-by-hand"}
    missing = [index for index in suspects if index not in found]
    if dataset is not None and missing:
        nothing = replace(verdict, keep=torch.ones_like(verdict.keep), removed_by_hand=None, kept_by_hand=None)
        make = partial(_rows, nothing, dataset, sample=sample, class_names=class_names)
        made = make(missing) or [row for index in missing for row in make([index])]
        found |= {row.sample_id: row for row in made}
    return [found[index] for index in suspects if index in found]


def _rows(verdict: Verdict, dataset: Any, indices: Sequence[int], **options: Any) -> tuple[ManifestRow, ...]:
    """Return rows of samples that are removed by hand; none if one of them cannot be read."""
    try:
        return Manifest.from_verdict(verdict, dataset, removed_by_hand=torch.tensor(indices), **options).rows
    except (UnreadableSampleError, TypeError, ValueError):
        return ()
