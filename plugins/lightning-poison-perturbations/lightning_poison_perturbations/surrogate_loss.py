"""The cross-entropy of one or several surrogates, for raw images."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_poison import PixelRange, Surrogate, checks
from lightning_poison.attacks import check_surrogates


class SurrogateLoss:
    """Sums the surrogates' cross-entropies, each computed on the device that the surrogate is found on.

    Args:
        surrogates: one at least.
        pixels: how samples are normalized.
        classes: how many classes the data set has.

    Raises:
        ValueError: where there is no surrogate.
    """

    def __init__(self, surrogates: Sequence[Surrogate], pixels: PixelRange, *, classes: int) -> None:
        check_surrogates(surrogates)
        self.models = [surrogate.model for surrogate in surrogates]
        self._pixels = pixels
        self._classes = classes

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the losses `(B,)` of raw images `(B, ...)`.

        Raises:
            ValueError: where a surrogate returns anything but a logit for each class.
        """
        return torch.stack([self._of(position, images, labels) for position in range(len(self.models))]).sum(0)

    def _of(self, position: int, images: Tensor, labels: Tensor) -> Tensor:
        model = self.models[position]
        device = next((parameter.device for parameter in model.parameters()), images.device)
        logits: Tensor = model(self._pixels.from_raw(images.to(device)))
        if logits.shape != (len(images), self._classes):
            what = f"a model with {self._classes} outputs, one for each class of the data set"
            raise ValueError(
                checks.expected(f"surrogates[{position}]", what, f"an output of shape {tuple(logits.shape)}")
                + "\nCraft on a model that was trained on these classes."
            )
        return F.cross_entropy(logits, labels.to(device), reduction="none").to(images.device)
