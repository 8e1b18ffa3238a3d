"""Which samples can be judged, and how their classes are numbered meanwhile."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lightning_poison.checks import expected, printable
from lightning_poison.data.copies import Copies, first_places
from lightning_poison.data.labeled_data import LabeledData
from lightning_poison.data.labels import UNLABELED
from lightning_poison.data.sample_parts import is_usual_label
from lightning_poison.data.transforms import random_transforms_of
from lightning_poison.sanitization.evidence import Evidence
from lightning_poison.sanitization.scorer_calls import call_check_set
from lightning_poison.scorers.inspection import AnyScorer, all_members_of, members_of
from lightning_poison.scorers.protocol import Scorer, SetScorer
from lightning_poison.scorers.recommended import RecommendedScorer
from lightning_poison.scorers.union import Member, UnionScorer

MAX_CLASS_NUMBER = 1_000_000
"""Class numbers from here on are refused."""

_FEWEST_INDEXED = 16
"""Smallest number of samples whose labels look like indices if no two are the same."""

_LISTED = 8


@dataclass(frozen=True)
class JudgedPart:
    """The samples that are judged, with classes numbered from 0 without gaps.

    Args:
        data: The samples.
        trusted: The known-clean samples, if any, with their classes numbered alike.
        classes: The class index in the data set of each class, int64 `(C,)`.
        notes: Sentences about what is not judged, and why.
    """

    data: LabeledData
    trusted: LabeledData | None
    classes: Tensor
    notes: tuple[str, ...]

    def renumbered(self, evidence: Evidence) -> Evidence:
        """Return evidence about these samples with the classes numbered as in the data set."""
        pairs = tuple(
            replace(each, labeled=int(self.classes[each.labeled]), predicted=int(self.classes[each.predicted]))
            for each in evidence.pairs
        )
        groups = tuple(replace(each, label=int(self.classes[each.label])) for each in evidence.groups)
        return replace(evidence, pairs=pairs, groups=groups)


def judged_part(
    data: LabeledData, scorer: AnyScorer, *, folds: int, trusted: LabeledData | None, length: int
) -> JudgedPart:
    """Select the samples that can be judged: those with a label, in classes that are large enough.

    Args:
        data: The samples that may be judged.
        scorer: The scorer. If it is fitted or a union, classes keep their numbers. Each member of a union selects for
            itself what it can judge among the samples that this function returns.
        folds: Number of folds for cross-fitting, below which a class is too small without trusted data.
        trusted: Known-clean samples. Optional.
        length: Number of samples of the whole data set.

    Raises:
        ValueError: If fewer than two classes remain, or the part of the samples that was detected as their label looks
            like an index.
    """
    _check_no_index(data, trusted)
    notes = []
    if (unread := length - len(data)) > 0:
        notes.append(f"{unread:,} samples that the sampler never draws are not judged.")
    labeled = data.labels != UNLABELED
    absent = data.absent
    if (missing := int((absent & ~labeled).sum())) > 0:
        notes.append(f"{missing:,} samples that are `None` are kept and not judged.")
    if (without := int((~labeled & ~absent).sum())) > 0:
        notes.append(f"{without:,} samples without a label are kept and not judged.")
    keep = labeled.clone()
    if trusted is None and not isinstance(scorer, UnionScorer | RecommendedScorer):
        for number in _too_small(data, keep, scorer, folds):
            keep &= data.labels != number
    small = torch.unique(data.labels[labeled & ~keep])
    if len(small):
        numbers, samples = torch.unique(data.labels[labeled], return_counts=True)
        _, units = _units_of(data, labeled)
        lacking = [folds if int(each[torch.isin(numbers, small)].max()) < folds else 0 for each in (samples, units)]
        notes.append(_small_note(small, int((labeled & ~keep).sum()), *lacking))
    data = data.select(keep.nonzero().flatten()) if not bool(keep.all()) else data
    if len(data) == 0 or len(torch.unique(data.labels)) < 2:
        came = f"class {int(data.labels[0])} alone" if len(data) else "none"
        hint = " ".join(notes) or "A label can only be wrong if there is another class."
        raise ValueError(expected("dataset", "data of at least two classes", came, hint))
    _check_numbers(data, trusted)
    if isinstance(scorer, UnionScorer) or any(
        _is_fitted(member) and (isinstance(member, Scorer) or _by_groups(member)) for member in all_members_of(scorer)
    ):
        largest = max(int(each.labels.max()) for each in (data, trusted) if each is not None)
        return JudgedPart(data, trusted, torch.arange(largest + 1), tuple(notes))
    present = data.labels if trusted is None else torch.cat([data.labels, trusted.labels])
    classes = torch.unique(present)
    if len(classes) < int(classes[-1]) + 1:
        data = data.relabeled(torch.searchsorted(classes, data.labels))
        trusted = None if trusted is None else trusted.relabeled(torch.searchsorted(classes, trusted.labels))
    return JudgedPart(data, trusted, classes, tuple(notes))


def _check_no_index(data: LabeledData, trusted: LabeledData | None) -> None:
    """Raise if a label that was detected, not named, is another one in every sample. Trusted data may confirm it."""
    labels, spec = data.labels[data.labels != UNLABELED], data.source.sample
    if not data.source.detected or len(labels) < _FEWEST_INDEXED or len(torch.unique(labels)) < len(labels):
        return
    if trusted is None or not bool(torch.isin(labels, trusted.labels).all()):
        inputs, part = printable(repr(spec.inputs)), printable(str(spec.labels))
        raise ValueError(
            f"Expected samples with labels of a few classes, but the part `{part}`, which was detected as the label, "
            f"is another number in each of the {len(labels):,} samples: it looks like an index rather than a label.\n"
            f"Name the label by its path, or give a function of the sample: `sample=SampleSpec({inputs}, labels=...)`."
        )


def _check_numbers(data: LabeledData, trusted: LabeledData | None) -> None:
    """Raise if a class number is so large that a list with an entry for each number would not fit into memory."""
    largest = max(int(each.labels.max()) for each in (data, trusted) if each is not None)
    if largest >= MAX_CLASS_NUMBER:
        raise ValueError(
            f"Expected class indices below {MAX_CLASS_NUMBER:,}, but got a class {largest:,} with several samples.\n"
            "Number the classes from 0: `torch.unique(labels, return_inverse=True)[1]`."
        )


def _is_fitted(member: Any) -> bool:
    if isinstance(member, SetScorer):
        return member.feature_model is not None and member.feature_model.is_fitted
    return bool(member.is_fitted)


def detection_notes(data: LabeledData) -> tuple[str, ...]:
    """Return a sentence about which part of a sample was detected as the label, if nothing confirms it.

    A usual name, a usual place, and labels that the data set lists do.

    Example:
        >>> from lightning_poison.data.labeled_data import read_labeled
        >>> from lightning_poison.data.source import open_source
        >>> from lightning_poison.runtime import LocalRuntime
        >>> samples = [{"pixels": torch.zeros(4), "kind": number % 2} for number in range(8)]
        >>> source = open_source(samples, sample=None)
        >>> detection_notes(read_labeled(source, runtime=LocalRuntime(), name="data"))[0]
        "The label was detected as the part `kind` of a sample. If it is another one, name it: \
`sample=SampleSpec('pixels', ...)`."
    """
    spec = data.source.sample
    if not data.source.detected or data.source.listed is not None or is_usual_label(str(spec.labels)):
        return ()
    inputs, part = printable(repr(spec.inputs)), printable(str(spec.labels))
    return (
        f"The label was detected as the part `{part}` of a sample. If it is another one, name it: "
        f"`sample=SampleSpec({inputs}, ...)`.",
    )


def augmentation_notes(dataset: Any) -> tuple[str, ...]:
    """Return a sentence about the random transforms of a data set, under which its samples are scored; or none.

    A data set may have transforms that it does not apply: call this only if reading it draws random numbers.

    Example:
        >>> from torchvision.transforms import RandomHorizontalFlip
        >>> from lightning_poison.testing.tiny_images import TinyImages
        >>> dataset = TinyImages(3)
        >>> augmentation_notes(dataset)
        ()
        >>> dataset.transform = RandomHorizontalFlip()
        >>> augmentation_notes(dataset)[0]
        'Samples were scored as RandomHorizontalFlip drew them. More is found...'
    """
    names = random_transforms_of(dataset)
    if not names:
        return ()
    return (
        f"Samples were scored as {', '.join(names)} drew them. More is found in the same samples under an evaluation "
        "transform: `score_dataset=` of a sanitizer, or the data set of `sanitize`.",
    )


def _too_small(data: LabeledData, keep: Tensor, scorer: Member, folds: int) -> list[int]:
    """Return the classes with too few samples, copies and groups counted once, for the folds or for a set scorer."""
    copies, labels = data.copies or Copies.none(len(data)), data.labels
    numbers, counts = _units_of(data, keep)
    crossed = [each for each in members_of(scorer).values() if not _is_fitted(each)]
    needed = folds if any(not _by_groups(each) for each in crossed) else 1
    small = set(numbers[counts < needed].tolist())
    by_size: Sequence[int] = numbers[counts.argsort(stable=True)].tolist()
    for member in members_of(scorer).values():
        if isinstance(member, SetScorer):
            small |= _refused(member, labels[keep & (copies.first == data.indices)], by_size, small)
    return sorted(small)


def _units_of(data: LabeledData, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Return the classes and their numbers of samples, copies and groups counted once."""
    copies = data.copies or Copies.none(len(data))
    pairs = torch.stack([data.labels, copies.group], 1)[keep]
    labels = pairs[first_places(pairs) == torch.arange(len(pairs)), 0]
    numbers, counts = torch.unique(labels, return_counts=True)
    return numbers, counts


def _by_groups(member: Any) -> bool:
    return isinstance(member, SetScorer) and member.finds_groups


def _refused(member: SetScorer, labels: Tensor, by_size: Sequence[int], small: set[int]) -> set[int]:
    """Return the smallest classes without which a set scorer accepts the set; none if it never does."""
    left_out = set(small)
    while True:
        rest = labels[~torch.isin(labels, torch.tensor(sorted(left_out), dtype=torch.int64))]
        if len(torch.unique(rest)) < 2:
            return set()
        try:
            call_check_set(member, rest)
        except ValueError:
            left_out.add(next(number for number in by_size if number not in left_out))
        else:
            return left_out


def _small_note(small: Tensor, count: int, samples: int, groups: int) -> str:
    """Say which classes are not judged, and why: the number of samples, or else of groups, that they lack, or 0."""
    listed = ", ".join(str(number) for number in small[:_LISTED].tolist())
    more = f" and {len(small) - _LISTED} more" if len(small) > _LISTED else ""
    noun = "class" if len(small) == 1 else "classes"
    which = f"The {count:,} samples of" if count > 1 else "The only sample of"
    what = f"{which} {noun} {listed}{more} {'are' if count > 1 else 'is'} kept and not judged: too few"
    folds = samples or groups
    if not folds:
        return f"{what} of a class."
    fewer = "use fewer `folds`, or " if folds > 2 else ""
    if samples:
        return f"{what} of a class. A class needs a sample in each of the {folds} folds: {fewer}pass `trusted=` data."
    return (
        f"{what} groups of a class. Samples of a group, and copies, are in one fold, and a class needs a group in each "
        f"of the {folds} folds: name smaller groups in `groups=`, {fewer}pass `trusted=` data."
    )
