"""Labels of the samples of a `Source`, read in this process."""

import torch
from torch import Tensor

from lightning_poison.data.labels import as_label, claimed_labels, labels_of, read_sample
from lightning_poison.data.source import Source
from lightning_poison.randomness import seeded_rng

_PROBES = 8
"""Number of samples that are read to check a list of labels."""


def read_label(source: Source, index: int) -> int:
    """Read the label of a sample in this process; -1 for none.

    Raises:
        UnreadableSampleError: If the sample cannot be read.
        ValueError: If its label is not an integer of at least -1.
    """
    return as_label(source.parts([read_sample(source.dataset, index)], [index])[1][0], index)


def source_labels(source: Source, positions: Tensor | None = None) -> Tensor:
    """Return labels of samples, read in this process, or listed by the data set if a few samples agree with the list.

    Args:
        source: The data set, and how it is read.
        positions: Positions of the samples, int64 `(M,)`. Default: all.

    Returns:
        int64 `(M,)`; -1 for samples without a label.

    Raises:
        UnreadableSampleError: If a sample cannot be read.
        ValueError: If a label is not an integer of at least -1.

    Example:
        >>> from lightning_poison.data.sample_spec import SampleSpec
        >>> pairs = [None, (torch.zeros(2), 1), (torch.zeros(2), 0)]
        >>> source_labels(Source(pairs, SampleSpec()), torch.tensor([1, 2]))
        tensor([1, 0])
    """
    if positions is None and source.settings.collate_fn is None:
        return labels_of(source.dataset, source.sample, unlabeled=True)
    positions = torch.arange(len(source.dataset)) if positions is None else positions
    listed = claimed_labels(source.dataset)
    with seeded_rng(0):
        if listed is not None:
            probed = positions[torch.linspace(0, len(positions) - 1, min(_PROBES, len(positions))).long()].tolist()
            if all(read_label(source, index) == int(listed[index]) for index in probed):
                return listed[positions]
        return torch.tensor([read_label(source, index) for index in positions.tolist()])
