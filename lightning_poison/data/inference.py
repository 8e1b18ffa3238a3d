"""Running a function of blocks over a data set, with the blocks distributed over the ranks."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from lightning_poison.checks import describe, expected
from lightning_poison.contexts import reproducible_kernels
from lightning_poison.data.blocks import BLOCK_SIZE, Block, index_blocks, read_blocks
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.runtime import Runtime, SaveTimer, all_ranks

SHARE = ".share-"
"""What follows the name of a unit in the names of shares of it."""


def share_of(name: str, rank: int, world_size: int) -> str:
    """Return the name under which a rank stores its share of a unit; a single rank stores the unit.

    Example:
        >>> share_of("blocks", 0, 1), share_of("blocks", 2, 3)
        ('blocks', 'blocks.share-2-of-3')
    """
    return name if world_size == 1 else f"{name}{SHARE}{rank}-of-{world_size}"


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
        runtime: Where to compute. Each rank scores every `world_size`-th block and receives the sum.
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
    mine = list(range(runtime.rank, len(blocks), runtime.world_size))

    stored = _StoredBlocks(runtime, unit, dtype, mine)
    found = dict(stored.scores)
    mine = [number for number in mine if number not in found]
    with (
        all_ranks(runtime),
        reproducible_kernels(runtime.device, runtime.threads),
        _autocast_cache(runtime.device),
        runtime.progress(len(found) + len(mine), description) as bar,
    ):
        bar.advance(len(found))
        chosen = [blocks[number] for number in mine]
        read = read_blocks(dataset, chosen, sample=sample, seed=seed, num_workers=runtime.num_workers)
        for number, block in zip(mine, read, strict=True):
            _check_listed_labels(block, labels)
            found[number] = _scored(score, block, runtime, dtype, description)
            bar.advance()
            stored.save(found)
        stored.save(found, now=True)
    return _gather(found, blocks, runtime, dtype)


class _StoredBlocks:
    """The blocks of scores of a rank in a unit, by their number, whichever rank has stored them."""

    def __init__(self, runtime: Runtime, unit: str | None, dtype: torch.dtype, mine: Sequence[int]) -> None:
        self._units = runtime.units
        self._unit = None if unit is None else share_of(unit, runtime.rank, runtime.world_size)
        self._timer = SaveTimer()
        stored: dict[str, Tensor] = {}
        for share in [] if unit is None else self._units.load_shares(unit):
            stored |= share
        self.scores = {number: stored[str(number)].to(dtype) for number in mine if str(number) in stored}
        self._saved = len(self.scores)

    def save(self, found: dict[int, Tensor], *, now: bool = False) -> None:
        """Store the blocks found so far if it is time to, or `now`."""
        if self._unit is None or len(found) == self._saved or not (now or self._timer.is_due()):
            return
        with self._timer.saving():
            self._units.save(self._unit, {str(number): scores for number, scores in found.items()}, {})
        self._saved = len(found)


def _autocast_cache(device: torch.device) -> AbstractContextManager[object]:
    """Keep autocast's cast weights across blocks: its cache is cleared on exit of the outermost context, this one."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def _check_listed_labels(block: Block, labels: Tensor | None) -> None:
    if labels is None or torch.equal(block.labels, labels[block.indices]):
        return
    place = int((block.labels != labels[block.indices]).nonzero()[0])
    index = int(block.indices[place])
    raise ValueError(
        f"Expected sample {index} to carry the label {int(labels[index])} that its data set lists, but it carries "
        f"{int(block.labels[place])}.\nCorrect the `targets` or `labels` of the data set, or remove them."
    )


def _scored(
    score: Callable[[Block], Tensor], block: Block, runtime: Runtime, dtype: torch.dtype, description: str
) -> Tensor:
    inputs = block.inputs.to(runtime.device)
    if inputs.ndim == 4:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), runtime.autocast():
        scores = score(Block(block.indices, inputs, block.labels.to(runtime.device)))
    if len(scores) != len(block.indices):
        raise ValueError(expected("scores", f"one for each of {len(block.indices)} samples", describe(scores)))
    scores = scores.detach().to(dtype).cpu()
    if not torch.isfinite(scores).all():
        bad = int(block.indices[(~torch.isfinite(scores.reshape(len(scores), -1))).any(1)][0])
        came = f"NaN or infinite values at sample {bad} ({description.lower()})"
        hint = "The scorer does not fit this data. Check its features."
        raise ValueError(expected("scores", "finite", came, hint))
    return scores


def _gather(found: dict[int, Tensor], blocks: list[Tensor], runtime: Runtime, dtype: torch.dtype) -> Tensor:
    """Collect the blocks of all ranks. Each is added to zeros, so the sum is exact."""
    trailing = next(iter(found.values())).shape[1:] if found else None
    shapes = runtime.broadcast(trailing)
    total = sum(len(block) for block in blocks)
    scores = torch.zeros(total, *(shapes or ()), dtype=dtype)
    starts = torch.tensor([0, *[len(block) for block in blocks]]).cumsum(0)
    for number, values in found.items():
        scores[int(starts[number]) : int(starts[number + 1])] = values
    return runtime.reduce_sum(scores) if runtime.world_size > 1 else scores
