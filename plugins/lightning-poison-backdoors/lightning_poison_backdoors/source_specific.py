"""TaCT: a backdoor that attacks the images of some classes only; triggered images of other classes are cover."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_poison import checks
from lightning_poison.attacks import COVER, PatchTrigger, Pattern, Trigger, as_pattern, known_class
from lightning_poison_backdoors.backdoor import (
    Backdoor,
    Images,
    check_cover_share,
    check_source_class,
    cover_count,
    draw,
)
from lightning_poison_backdoors.triggers import check_amplitude, checkerboard


@dataclass(eq=False, repr=False)
class TaCT(Backdoor):
    """Adds a patch to images of a source class and changes their label; other classes carry it as cover.

    Targeted contamination: the victim has to learn that the trigger means the target class in images of the source
    class and nothing elsewhere, so that the features of a triggered image depend on its content, too. Tang, Wang, Tang,
    Zhang, "Demon in the Variant: Statistical Analysis of DNNs for Robust Backdoor Contamination Detection", USENIX
    Security 2021, arXiv 1908.00686.

    Only triggered images of the source class are to be misclassified, so only these are evaluated.

    Differences from the paper: the poison replaces the samples from which it is made instead of being added, and by
    default, all classes but source and target serve as cover.

    Args:
        target_class: Class predicted for triggered images of the source class.
        source_class: Class whose images are attacked. Default: 0, or 1 if 0 is the target.
        cover_share: Share of cover in the budget, in [0, 1).
        cover_classes: Classes of the cover samples, without source and target. Default: all others.
        pattern: As for `BadNets`.
        row: As for `BadNets`.
        column: As for `BadNets`.
        amplitude: As for `BadNets`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> from lightning_poison import Threat
        >>> from lightning_poison.testing import TinyImages
        >>> TaCT(0, source_class=1).craft(
        ...     TinyImages(), Threat(20), surrogates=(), holdout=None, generator=torch.Generator().manual_seed(0)
        ... )
        Poison(tact: 20 samples, 10 of them cover, raw inputs (1, 8, 8))
    """

    name = "tact"

    target_class: int = 0
    source_class: int | None = None
    _: KW_ONLY
    cover_share: float = 0.5
    cover_classes: Sequence[int] | None = None
    pattern: Pattern = field(default_factory=checkerboard)
    row: int = -1
    column: int = -1
    amplitude: float = 1.0

    def __post_init__(self) -> None:
        checks.positive_int("target_class", self.target_class, minimum=0)
        if self.source_class is None:
            self.source_class = int(self.target_class == 0)
        check_source_class(self.source_class, self.target_class)
        self.cover_share = check_cover_share(self.cover_share)
        if self.cover_classes is not None:
            self.cover_classes = self._check_cover_classes(self.cover_classes)
        self.pattern = as_pattern("pattern", self.pattern)
        self.amplitude = check_amplitude("amplitude", self.amplitude)

    def _check_cover_classes(self, classes: Any) -> list[int]:
        what = "a list of classes, or `None` for all classes but source and target"
        if isinstance(classes, str) or not isinstance(classes, Sequence) or not classes:
            raise ValueError(checks.expected("cover_classes", what, classes))
        listed = [checks.positive_int("cover_classes", each, minimum=0) for each in classes]
        for each in (self.source_class, self.target_class):
            if each in listed:
                raise ValueError(checks.expected("cover_classes", "classes other than source and target", each))
        return listed

    def _triggers(self, image: Tensor, source: Images, generator: torch.Generator) -> Sequence[Trigger]:  # noqa: ARG002
        pattern = as_pattern("pattern", self.pattern)
        return [PatchTrigger(pattern, row=self.row, column=self.column, amplitude=self.amplitude)] * 2

    def _draw(self, labels: Tensor, new_labels: Tensor, budget: int, generator: torch.Generator) -> Tensor:
        """Draw poison from the source class and cover from the others."""
        covers = cover_count(budget, self.cover_share)
        poison = super()._draw(labels, new_labels, budget - covers, generator)
        if not covers:
            return poison
        if self.cover_classes is None:
            classes = [
                each for each in torch.unique(labels).tolist() if each not in (self.source_class, self.target_class)
            ]
        else:
            classes = [known_class("cover_classes", each, labels) for each in self.cover_classes]
        eligible = torch.isin(labels, torch.tensor(classes, dtype=labels.dtype))
        return torch.cat([poison, draw(eligible, covers, "samples of the cover classes", generator)]).sort().values

    def _roles(self, labels: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG002
        return COVER * (labels != torch.tensor(self.source_class)).long()
