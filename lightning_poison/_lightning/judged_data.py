"""`JudgedData`: what is remembered of data that were judged, to see on a reload whether they have changed."""

from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from lightning_poison.data.blocks import SelectedDataset, read_blocks
from lightning_poison.data.handles import handles_dropped
from lightning_poison.data.labels import UNLABELED
from lightning_poison.data.memory_digests import memory_digest
from lightning_poison.data.reading import ReadSettings, run_in_worker
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.data.source import Readable, Source, read_opened
from lightning_poison.errors import is_signal
from lightning_poison.randomness import derived_generator
from lightning_poison.sanitization.stored_decision import StoredDecision, marks_of
from lightning_poison.sanitization.verdict import Verdict

COMPARED = 128
"""Number of samples that are read at each check."""


@dataclass
class JudgedData:
    """A data set object that was judged, and what shows that its content has changed since.

    Compared are its length, the positions that the sampler draws, everything that it holds in memory
    (`memory_digest`), the labels that it lists, and input and label of 128 samples, of others at each check.

    Args:
        data: The data set, the positions that were judged, and how it is read.
        labels: Labels of the samples, int64 `(N,)`. `None` if they are not known.
        digests: Digests of the samples, int64 `(N,)`, or their marks, int16 `(N,)`. `None` if inputs are not compared.
        length: Number of samples N.
        memory: Digest of what the data set holds in memory.
        checks: Number of checks so far.
    """

    data: Readable
    labels: Tensor | None
    digests: Tensor | None
    length: int
    memory: int
    checks: int = field(default=0, compare=False)

    @classmethod
    def of(cls, data: Readable, made: Verdict | StoredDecision, *, inputs: bool = True) -> Self:
        """Return what is remembered of data after a decision about them.

        Args:
            data: The data set, the positions that were judged, and how it is read.
            made: The decision.
            inputs: Whether it is about the inputs of this data set. Default: `True`.
        """
        if isinstance(made, Verdict):
            labels, digests = made.labels, made.sample_digests
        else:
            labels, digests = None, made.marks
        return cls(data, labels, digests if inputs else None, len(data.dataset), memory_digest(data.dataset))

    def is_unchanged(self, positions: Tensor | None, *, sample: SampleSpec | None, seed: int) -> bool:
        """Return whether nothing shows that the data have changed, or that others are drawn now.

        Args:
            positions: Positions of the samples that the loader can draw now, int64 `(M,)` ascending. `None` for all.
            sample: Paths of input and label in a sample. `None`: detected.
            seed: Seed of the decision.
        """
        self.checks += 1
        dataset, settings = self.data.dataset, self.data.settings
        judged = self.data.positions
        if judged is not None and (positions is None or not bool(torch.isin(positions, judged).all())):
            return False
        try:
            if len(dataset) != self.length or memory_digest(dataset) != self.memory:
                return False
            with ExitStack() as stack:
                if not settings.num_workers:
                    stack.enter_context(handles_dropped(dataset))
                places = self._places(positions, seed)
                read = partial(_read, places=places, positions=positions, sample=sample, settings=settings, seed=seed)
                return self._agrees(run_in_worker(read, dataset, settings), places, positions)
        except (Exception, SystemExit) as error:  # judging the data anew names the fault
            if is_signal(error):
                raise
            return False

    def _places(self, positions: Tensor | None, seed: int) -> Tensor:
        """Return positions of samples to read, ascending."""
        count = self.length if positions is None else len(positions)
        generator = derived_generator(seed, "reload", self.checks)
        chosen = torch.arange(count) if count <= COMPARED else torch.randint(count, (COMPARED,), generator=generator)
        places: Tensor = torch.unique(chosen if positions is None else positions[chosen])
        return places

    def _agrees(self, found: "_Found", places: Tensor, positions: Tensor | None) -> bool:
        if self.labels is not None:
            drawn = slice(None) if positions is None else positions
            if not torch.equal(found.labels, self.labels[places]):
                return False
            if found.listed is not None and bool(self._differs(found.listed)[drawn].any()):
                return False
        if self.digests is None:
            return True
        digests = marks_of(found.digests) if self.digests.dtype == torch.int16 else found.digests
        return torch.equal(digests, self.digests[places])

    def _differs(self, listed: Tensor) -> Tensor:
        """Which listed labels are others than samples carried; samples that are `None` carry none."""
        assert self.labels is not None  # noqa: S101 (labels are known here)
        differs = listed.ne(self.labels)
        return differs if self.data.settings.collate_fn is None else differs.logical_and(self.labels.ne(UNLABELED))


class _Found(NamedTuple):
    labels: Tensor
    digests: Tensor
    listed: Tensor | None


def _read(
    dataset: Any,
    *,
    places: Tensor,
    positions: Tensor | None,
    sample: SampleSpec | None,
    settings: ReadSettings,
    seed: int,
) -> _Found:
    """Read samples in this process, as they are read for a decision."""
    here = replace(settings, num_workers=0)
    read = partial(_read_places, places=places, seed=seed)
    return read_opened(read, dataset, sample=sample, positions=positions, settings=here, seed=seed)


def _read_places(source: Source, *, places: Tensor, seed: int) -> _Found:
    chosen = SelectedDataset(source, places, torch.zeros(len(places), dtype=torch.int64))
    (block,) = read_blocks(chosen, [torch.arange(len(places))], sample=SampleSpec(), seed=seed)
    return _Found(block.labels, source.digests.values[places], source.listed)
