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
        kept_by_hand: Boolean mask `(N,)` of the samples that the user decided to keep; `None` for none.
        knows_kept: Whether `kept_by_hand` was stored. Earlier releases did not store it; `keep` contains the samples.

    Raises:
        ValueError: If a mask is not boolean, or another tensor differs from `keep` in shape.
    """

    fingerprint: str
    settings: Mapping[str, Any]
    keep: Tensor
    marks: Tensor | None = None
    file: str | None = None
    removed_by_hand: Tensor | None = None
    kept_by_hand: Tensor | None = None
    knows_kept: bool = True

    def __post_init__(self) -> None:
        if self.keep.dtype != torch.bool or self.keep.ndim != 1:
            raise ValueError(expected("keep", "a boolean mask (N,)", describe(self.keep)))
        if self.marks is not None and (self.marks.dtype != torch.int16 or self.marks.shape != self.keep.shape):
            raise ValueError(expected("marks", f"an int16 tensor ({len(self.keep)},)", describe(self.marks)))
        for name in _BY_HAND:
            mask = getattr(self, name)
            if mask is not None and (mask.dtype != torch.bool or mask.shape != self.keep.shape):
                raise ValueError(expected(name, f"a boolean mask ({len(self.keep)},)", describe(mask)))

    def __len__(self) -> int:
        return len(self.keep)

    @classmethod
    def of(cls, verdict: Verdict, file: str | None = None) -> Self:
        """Return what is stored of a verdict that is written to `file`."""
        marks = None if verdict.sample_digests is None else marks_of(verdict.sample_digests)
        by_hand = {name: getattr(verdict, name) for name in _BY_HAND}
        return cls(verdict.fingerprint, verdict.settings, verdict.keep, marks, file, **by_hand)

    def decided_by_hand(self, verdict: Verdict) -> Verdict | None:
        """Return a verdict with what the user decided; `None` if it does not keep the same samples then."""
        nothing = torch.zeros_like(self.keep)
        kept, gone = (nothing if mask is None else mask for mask in (self.kept_by_hand, self.removed_by_hand))
        if not self.knows_kept:
            kept = self.keep & ~verdict.keep
        edited = verdict.with_kept(kept.nonzero().flatten()).with_removed(gone.nonzero().flatten())
        return edited if torch.equal(edited.keep, self.keep) else None

    def state(self) -> dict[str, Any]:
        """Return tensors, strings and numbers for a checkpoint: one to three bits and two bytes a sample."""
        masks = ("keep", *_BY_HAND) if self.knows_kept else ("keep", "removed_by_hand")
        return {
            "fingerprint": self.fingerprint,
            "settings": dict(self.settings),
            "length": len(self),
            **{name: _packed(getattr(self, name)) for name in masks},
            "marks": self.marks,
            "file": self.file,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """Build the decision from what `state` returned.

        Raises:
            KeyError, TypeError, ValueError: If the state is damaged.
        """
        keep, length = _unpacked(state["keep"], state["length"]), state["length"]
        by_hand = {name: _unpacked(state[name], length) for name in _BY_HAND if state.get(name) is not None}
        known = "kept_by_hand" in state
        marks, file = state["marks"], state["file"]
        return cls(state["fingerprint"], state["settings"], keep, marks, file, **by_hand, knows_kept=known)


_BY_HAND = ("removed_by_hand", "kept_by_hand")
"""Fields with what the user decided."""


def _packed(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else torch.from_numpy(np.packbits(mask.numpy()))


def _unpacked(bits: Tensor, length: int) -> Tensor:
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=length).astype(bool))


def marks_of(digests: Tensor) -> Tensor:
    """Return the lowest 16 bits of digests, int16 `(N,)`.

    Example:
        >>> marks_of(torch.tensor([1, 65_536 + 1, -1]))
        tensor([ 1,  1, -1], dtype=torch.int16)
    """
    return torch.from_numpy(digests.numpy().astype(np.int16))
