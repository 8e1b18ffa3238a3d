"""`LoaderDecision`: which samples of a training loader are kept, and the data that this was decided about."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader

from lightning_poison._lightning.judged_data import JudgedData
from lightning_poison._lightning.records import Edits
from lightning_poison.data.map_style_data import drawn_positions
from lightning_poison.data.reading import ReadSettings
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.data.views import SanitizedDataset
from lightning_poison.sanitization.pipeline import check_removal
from lightning_poison.sanitization.stored_decision import StoredDecision
from lightning_poison.sanitization.verdict import Verdict


@dataclass(kw_only=True, eq=False)
class LoaderDecision:
    """The decision about the data set of one training loader.

    Args:
        made: The verdict with the user's edits, or the decision of a checkpoint whose verdict is not available.
        unedited: The verdict without the edits. Default: not available.
        edits: What the user decided in a manifest.
        dataset: Data set of the loader.
        reading: How the data set is read.
        judged: Detects changes of the data set, and of `score_dataset` if there is one.
        file: Path of the verdict's file. Default: not written.
        is_recorded: Whether files were written and values logged, or there is nothing to record.
        view: View of the kept samples. Default: not requested yet.
    """

    made: Verdict | StoredDecision
    unedited: Verdict | None = None
    edits: Edits
    dataset: Any
    reading: ReadSettings
    judged: Sequence[JudgedData]
    file: str | None = None
    is_recorded: bool = False
    view: SanitizedDataset | None = None

    @property
    def verdict(self) -> Verdict | None:
        """The verdict, or `None` if it is not available."""
        return self.made if isinstance(self.made, Verdict) else None

    def is_about(self, loader: DataLoader[Any], *, sample: SampleSpec | None, seed: int) -> bool:
        """Return whether a loader reads the data set of this decision, and nothing shows that its content has changed.

        Args:
            loader: The training loader.
            sample: Paths of input and label in a sample. `None`: detected.
            seed: Seed of the decision.
        """
        if self.dataset is not loader.dataset:
            return False
        drawn = drawn_positions(loader)
        return all(each.is_unchanged(drawn, sample=sample, seed=seed) for each in self.judged)

    def differs_from(self, stored: StoredDecision) -> bool:
        """Return whether the decision of a checkpoint keeps other samples, or is about other data or settings."""
        if not torch.equal(self.made.keep, stored.keep):
            return True
        return self.verdict is not None and self.verdict.fingerprint != stored.fingerprint

    def kept_samples(self, max_removed: float) -> SanitizedDataset:
        """Return the view of the kept samples, the same at each call.

        Args:
            max_removed: Largest share of the data set that may be removed.

        Raises:
            NothingKeptError: If too few samples are kept.
        """
        if self.view is None:
            if self.verdict is not None:
                check_removal(self.verdict, max_removed)
            self.view = SanitizedDataset(self.dataset, self.made.keep)
        return self.view
