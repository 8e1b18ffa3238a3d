"""`StoredDecision`: what a checkpoint holds of a verdict: which data it is about, and which samples stay."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from lightning_poison.checks import describe, expected
from lightning_poison.sanitization.verdict import Verdict


@dataclass(frozen=True, eq=False)
class StoredDecision:
    """The mask of a verdict on N samples, and what is needed to check the data against it.

    Args:
        fingerprint: Fingerprint of the verdict.
        settings: Settings of the decision, as JSON values.
        keep: Boolean mask `(N,)`; `True` stays.
        marks: The lowest 16 bits of the digest of each sample, int16 `(N,)`, which name a sample that has changed.
            `None` if the inputs differ whenever they are read.
        file: Where the verdict was written. Default: nowhere.
        removed_by_hand: Boolean mask `(N,)` of the samples that only the user removed; `None` for none.

    Raises:
        ValueError: If a mask is not boolean, or `marks` or `removed_by_hand` differs from `keep` in shape.
    """

    fingerprint: str
    settings: Mapping[str, Any]
    keep: Tensor
    marks: Tensor | None = None
    file: str | None = None
    removed_by_hand: Tensor | None = None

    def __post_init__(self) -> None:
        if self.keep.dtype != torch.bool or self.keep.ndim != 1:
            raise ValueError(expected("keep", "a boolean mask (N,)", describe(self.keep)))
        if self.marks is not None and (self.marks.dtype != torch.int16 or self.marks.shape != self.keep.shape):
            raise ValueError(expected("marks", f"an int16 tensor ({len(self.keep)},)", describe(self.marks)))
        out = self.removed_by_hand
        if out is not None and (out.dtype != torch.bool or out.shape != self.keep.shape):
            raise ValueError(expected("removed_by_hand", f"a boolean mask ({len(self.keep)},)", describe(out)))

    def __len__(self) -> int:
        return len(self.keep)

    @classmethod
    def of(cls, verdict: Verdict, file: str | None = None) -> Self:
        """Return what is stored of a verdict that is written to `file`."""
        marks = None if verdict.sample_digests is None else marks_of(verdict.sample_digests)
        return cls(verdict.fingerprint, verdict.settings, verdict.keep, marks, file, verdict.removed_by_hand)

    def state(self) -> dict[str, Any]:
        """Return tensors, strings and numbers for a checkpoint: one or two bits and two bytes a sample."""
        by_hand = self.removed_by_hand
        return {
            "fingerprint": self.fingerprint,
            "settings": dict(self.settings),
            "length": len(self),
            "keep": torch.from_numpy(np.packbits(self.keep.numpy())),
            "removed_by_hand": None if by_hand is None else torch.from_numpy(np.packbits(by_hand.numpy())),
            "marks": self.marks,
            "file": self.file,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """Build the decision from what `state` returned.

        Raises:
            KeyError, TypeError, ValueError: If the state is damaged.
        """
        keep, packed = _unpacked(state["keep"], state["length"]), state.get("removed_by_hand")
        by_hand = None if packed is None else _unpacked(packed, state["length"])
        return cls(state["fingerprint"], state["settings"], keep, state["marks"], state["file"], by_hand)


def _unpacked(bits: Tensor, length: int) -> Tensor:
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=length).astype(bool))


def marks_of(digests: Tensor) -> Tensor:
    """Return the lowest 16 bits of digests, int16 `(N,)`.

    Example:
        >>> marks_of(torch.tensor([1, 65_536 + 1, -1]))
        tensor([ 1,  1, -1], dtype=torch.int16)
    """
    return torch.from_numpy(digests.numpy().astype(np.int16))
