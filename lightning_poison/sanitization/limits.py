"""Limits of a whole verdict, which every new decision passes last: classes too rare to lose most of their samples."""

from dataclasses import replace

import torch

from lightning_poison.sanitization.verdict import Verdict

SMALL_CLASS = 20
"""Number of judged samples below which a class is not emptied. In larger ones, so many suspicious samples are an error.
"""

RARE_CLASS, RARE_SHARE = 100, 0.01
"""Number of judged samples, and share of them, up to which this holds for a class of many too.

Of a hundred classes and more, one that the model has hardly learned does not stop the decision about the others.
"""

_LISTED = 8


def with_limits(verdict: Verdict, max_removed: float) -> Verdict:
    """Return a verdict that keeps small and rare classes most of which are suspicious, as not judged, with a note.

    Scores, p-values and posteriors of their samples stay in the verdict, for whoever checks them by hand.

    Of a class of four, a model learns little, and a few wrong labels are most of it. Without its samples it cannot be
    learned at all, and an error would stop the run for the sake of a few samples. If more than `max_removed` of all
    samples are suspicious, the fault is elsewhere, and the verdict is returned as it is.

    Args:
        verdict: The verdict.
        max_removed: Largest share of the data set that may be removed. The limit for a class is this or one half,
            whichever is larger, and never the whole class.
    """
    judged = torch.ones_like(verdict.keep) if verdict.judged is None else verdict.judged
    out = ~verdict.keep
    if not bool(out.any()) or float(out[judged].double().mean()) > max_removed:
        return verdict
    classes, place, sizes = torch.unique(verdict.labels[judged], return_inverse=True, return_counts=True)
    lost = torch.bincount(place[out[judged]], minlength=len(classes))
    limit = max(max_removed, 0.5)
    rare = (sizes <= RARE_CLASS) & (sizes <= RARE_SHARE * sizes.sum())
    emptied = ((sizes < SMALL_CLASS) | rare) & ((lost > limit * sizes) | (lost == sizes))
    if not bool(emptied.any()):
        return verdict
    members = judged & torch.isin(verdict.labels, classes[emptied])
    note = _note(classes[emptied].tolist(), int((out & members).sum()), int(sizes[emptied].max()))
    return replace(verdict, keep=verdict.keep | members, judged=judged & ~members, notes=(*verdict.notes, note))


def _note(classes: list[int], count: int, largest: int) -> str:
    listed = ", ".join(map(str, classes[:_LISTED]))
    more = f" and {len(classes) - _LISTED} more" if len(classes) > _LISTED else ""
    one = len(classes) == 1
    few = f"fewer than {SMALL_CLASS}" if largest < SMALL_CLASS else f"at most {RARE_SHARE * 100:g} % of the"
    samples = f"{count:,} suspicious samples are" if count > 1 else "1 suspicious sample is"
    return (
        f"{samples} kept, since most of {'class' if one else 'classes'} {listed}{more} would be removed, which "
        f"{'has' if one else 'have'} {few} samples{'' if one else ' each'}: {'it is' if one else 'they are'} not "
        f"judged. Check {'it' if count == 1 else 'them'} by hand."
    )
