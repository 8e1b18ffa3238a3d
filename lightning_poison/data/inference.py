"""Running a function of blocks over a data set, with the blocks distributed over the ranks."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightning_poison.checks import describe, expected
from lightning_poison.contexts import reproducible_kernels
from lightning_poison.data.blocks import BLOCK_SIZE, Block, index_blocks
from lightning_poison.data.large_matrices import zeros_in_file
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.data.transfer import Wait, fetch, overlapped, read_on_device
from lightning_poison.runtime import Progress, Runtime, SaveTimer, all_ranks

_SHARES = 8
"""A rank reads at most this part of its share of the blocks ahead, so that a slow rank takes few."""

_REDUCED_AT_ONCE = 2**24
"""Number of elements of which a sum over all ranks is computed at once."""


def score_set(
    dataset: Any,
    indices: Tensor,
    score: Callable[[Block], Tensor],
    *,
    sample: SampleSpec,
    runtime: Runtime,
    seed: int,
    labels: Tensor | None = None,
    description: str = "Scoring",
    dtype: torch.dtype = torch.float64,
    unit: str | None = None,
) -> Tensor:
    """Score samples without gradients.

    Args:
        dataset: Map-style data set.
        indices: Positions of the samples, int64 `(M,)`.
        score: Maps a block with tensors on the runtime's device to scores `(B,)` or `(B, C)`.
        sample: Paths of input and label in a sample.
        runtime: Where to compute. Each block is scored by one rank, the next one that is free; all receive the sum.
        seed: Seed of the data set's random transforms.
        labels: Labels of all samples of `dataset`, int64 `(N,)`, to compare with those that samples carry. Optional.
        description: Text of the progress bar.
        dtype: Data type of the result.
        unit: Name under which finished blocks are stored in the runtime's units, so that an interrupted run does not
            score them again. Default: they are not stored.

    Returns:
        `(M,)` or `(M, C)` on the CPU, in the order of `indices`.

    Raises:
        ValueError: If a score is not finite, or a sample carries another label than `labels` lists.

    Example:
        >>> from lightning_poison.runtime import LocalRuntime
        >>> pairs = [(torch.full((2,), float(index)), index % 3) for index in range(10)]
        >>> means = lambda block: block.inputs.mean(1)
        >>> score_set(pairs, torch.tensor([7, 2]), means, sample=SampleSpec(), runtime=LocalRuntime(), seed=0)
        tensor([7., 2.], dtype=torch.float64)
    """
    blocks = index_blocks(indices, BLOCK_SIZE)
    stored = _StoredBlocks(runtime, unit, dtype)
    found = _FoundBlocks(blocks, dtype)
    computed: list[int] = []

    def missing() -> Iterator[int]:
        for number in runtime.share(len(blocks)):
            if number in stored.scores:
                found.put(number, stored.scores.pop(number))
            else:
                computed.append(number)
                yield number

    with (
        all_ranks(runtime),
        reproducible_kernels(runtime.device, runtime.threads),
        _autocast_cache(runtime.device),
        runtime.progress(len(blocks), description) as bar,
    ):
        done = 0
        ahead = None if runtime.world_size == 1 else max(1, len(blocks) // (_SHARES * runtime.world_size))
        sent = read_on_device(
            dataset,
            blocks,
            runtime.device,
            sample=sample,
            seed=seed,
            num_workers=runtime.num_workers,
            order=missing(),
            most_ahead=ahead,
            checked=partial(_with_listed_labels, labels=labels),
        )
        start = partial(_scored, score, runtime=runtime, dtype=dtype, description=description)
        for place, scores in enumerate(overlapped(sent, start, runtime.device)):
            number = computed[place]
            found.put(number, scores)
            _advance(bar, number - done)  # blocks of other ranks, and stored ones
            bar.advance()
            done = number + 1
            stored.save(computed, found.scores)
        _advance(bar, len(blocks) - done)
        stored.save(computed, found.scores, now=True)
    return found.gathered(runtime)


class _FoundBlocks:
    """Scores of blocks, in one matrix that has room for those of all ranks.

    Args:
        blocks: Positions of the samples of each block.
        dtype: Data type of the scores.
    """

    def __init__(self, blocks: list[Tensor], dtype: torch.dtype) -> None:
        self._starts = torch.tensor([0, *[len(block) for block in blocks]]).cumsum(0).tolist()
        self._dtype = dtype
        self._matrix: Tensor | None = None
        self.scores: dict[int, Tensor] = {}
        """The rows of each block that is known, by its number."""

    def put(self, number: int, scores: Tensor) -> None:
        """Add the scores of a block."""
        if self._matrix is None:
            self._matrix = zeros_in_file((self._starts[-1], *scores.shape[1:]), self._dtype)
        self.scores[number] = self._matrix[self._starts[number] : self._starts[number + 1]]
        self.scores[number].copy_(scores)

    def gathered(self, runtime: Runtime) -> Tensor:
        """Return the blocks of all ranks. Each is added to zeros, so the sum is exact."""
        widths = sum(1 + each.shape[1] if each.ndim == 2 else 0 for each in self.scores.values())
        width = int(runtime.reduce_sum(torch.tensor(widths))) // max(1, len(self._starts) - 1)
        if self._matrix is None:
            self._matrix = zeros_in_file((self._starts[-1], *([width - 1] if width else [])), self._dtype)
        return sum_over_ranks(self._matrix, runtime)


def sum_over_ranks(matrix: Tensor, runtime: Runtime) -> Tensor:
    """Return the sum of a matrix over all ranks, computed in place and in parts if it is large.

    Args:
        matrix: `(N, ...)`, of the same shape on every rank.
        runtime: The ranks.

    Example:
        >>> from lightning_poison.runtime import LocalRuntime
        >>> sum_over_ranks(torch.ones(2), LocalRuntime())
        tensor([1., 1.])
    """
    if runtime.world_size == 1:
        return matrix
    parts = max(1, matrix.numel() // _REDUCED_AT_ONCE)
    if parts == 1:
        return runtime.reduce_sum(matrix)
    for rows in matrix.tensor_split(parts):
        rows.copy_(runtime.reduce_sum(rows))
    return matrix


def _advance(bar: Progress, steps: int) -> None:
    if steps > 0:
        bar.advance(steps)


class _StoredBlocks:
    """The blocks of scores in the parts of a unit, by their number. Each rank adds a part with what it has computed."""

    def __init__(self, runtime: Runtime, unit: str | None, dtype: torch.dtype) -> None:
        self._units = runtime.units
        self._unit = unit
        self._timer = SaveTimer()
        parts = [] if unit is None else self._units.load_parts(unit)
        self.scores = {int(number): scores.to(dtype) for part, _ in parts for number, scores in part.items()}
        self._saved = 0

    def save(self, computed: Sequence[int], found: Mapping[int, Tensor], *, now: bool = False) -> None:
        """Store the blocks computed so far if it is time to, or `now`.

        Args:
            computed: Numbers of the blocks that were not stored before, as far as this rank has taken them.
            found: Scores of those that are finished, and of others, by number.
            now: Whether to store them in any case.
        """
        if self._unit is None or not (now or self._timer.is_due()):
            return
        finished = {str(number): found[number] for number in computed if number in found}
        if len(finished) == self._saved:
            return
        with self._timer.saving():
            self._units.save_part(self._unit, finished, {})
        self._saved = len(finished)


def _autocast_cache(device: torch.device) -> AbstractContextManager[object]:
    """Keep autocast's cast weights across blocks: its cache is cleared on exit of the outermost context, this one."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def _with_listed_labels(blocks: Iterable[Block], labels: Tensor | None) -> Iterator[Block]:
    """Yield the blocks, and check that they carry the labels that are listed."""
    for block in blocks:
        if labels is not None and not torch.equal(block.labels, labels[block.indices]):
            place = int((block.labels != labels[block.indices]).nonzero()[0])
            index = int(block.indices[place])
            raise ValueError(
                f"Expected sample {index} to carry the label {int(labels[index])} that its data set lists, but it "
                f"carries {int(block.labels[place])}.\nCorrect the `targets` or `labels` of the data set, or remove "
                "them."
            )
        yield block


def _scored(
    score: Callable[[Block], Tensor], block: Block, *, runtime: Runtime, dtype: torch.dtype, description: str
) -> Wait[Tensor]:
    """Start to score a block that is on the device."""
    inputs = block.inputs
    if inputs.ndim == 4:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), runtime.autocast():
        scores = score(replace(block, inputs=inputs))
    if len(scores) != len(block.indices):
        raise ValueError(expected("scores", f"one for each of {len(block.indices)} samples", describe(scores)))
    return partial(_finite, fetch(scores), block.indices, dtype, description)


def _finite(fetched: Wait[Tensor], indices: Tensor, dtype: torch.dtype, description: str) -> Tensor:
    """Wait for the scores of a block, and check that they are finite."""
    scores = fetched().to(dtype)
    if not torch.isfinite(scores).all():
        bad = int(indices[(~torch.isfinite(scores.reshape(len(scores), -1))).any(1)][0])
        came = f"NaN or infinite values at sample {bad} ({description.lower()})"
        hint = "The scorer does not fit this data. Check its features."
        raise ValueError(expected("scores", "finite", came, hint))
    return scores
