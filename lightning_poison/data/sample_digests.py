"""Digests of the samples of a data set, and which of them are `None`, collected while it is read."""

import numpy as np
import torch
import xxhash
from torch import Tensor


class SampleDigests:
    """Digests of N samples, and which of them are `None`, collected as they are read.

    Args:
        length: Number of samples N.

    Example:
        >>> digests = SampleDigests(3)
        >>> digests.add(torch.tensor([2]), torch.tensor([17]))
        >>> digests.values, digests.missing
        (tensor([ 0,  0, 17]), tensor([0, 1]))
    """

    def __init__(self, length: int) -> None:
        self.values = torch.zeros(length, dtype=torch.int64)
        self._seen = torch.zeros(length, dtype=torch.bool)
        self._absent: set[int] = set()

    def __len__(self) -> int:
        return len(self.values)

    @property
    def missing(self) -> Tensor:
        """Positions of the samples that have not been read, int64."""
        return (~self._seen).nonzero().flatten()

    def absent(self, indices: Tensor) -> Tensor:
        """Return which of the samples at `indices`, int64 `(B,)`, were `None` when they were read, bool `(B,)`."""
        return torch.isin(indices, torch.tensor(sorted(self._absent), dtype=torch.int64))

    def add_absent(self, indices: Tensor) -> None:
        """Record that the samples at `indices`, int64 `(B,)`, are `None`."""
        self._absent.update(indices.tolist())

    def add(self, indices: Tensor, digests: Tensor) -> None:
        """Record the digests of samples at `indices`, both int64 `(B,)`. The first digest of a sample stays."""
        new = ~self._seen[indices]
        self.values[indices[new]] = digests[new]
        self._seen[indices] = True


def digest_samples(inputs: Tensor) -> Tensor:
    """Return a digest of the input of each sample, of its shape and its values: 64 bits of XXH3.

    XXH3 hashes several gigabytes per second, so that a pass over the data takes hardly longer; see
    `benchmarks/sample_hashing.py`. Two given samples have the same digest with a probability of 2⁻⁶⁴. It is no
    cryptographic hash: whoever can write to the data set could construct another sample with the digest of a given one.

    Args:
        inputs: float32 `(B, ...)`.

    Returns:
        int64 `(B,)`.

    Example:
        >>> digest_samples(torch.eye(2)) == digest_samples(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        tensor([ True, False])
    """
    seed = xxhash.xxh3_64_intdigest(str(tuple(inputs.shape[1:])).encode())
    rows = inputs.reshape(len(inputs), -1).contiguous().numpy().view(np.uint8)
    digests = np.array([xxhash.xxh3_64_intdigest(row, seed) for row in rows], dtype=np.uint64)
    return torch.from_numpy(digests.view(np.int64))
