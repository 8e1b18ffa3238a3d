"""`AdversarialLoss`: the cross-entropy of changed inputs, for the training loop that scorers share."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_poison.adversarial.adversaries import Adversary
from lightning_poison.adversarial.batch import sample_cross_entropy
from lightning_poison.checks import positive_int
from lightning_poison.contexts import evaluating, frozen
from lightning_poison.data.pixel_range import PixelRange


class AdversarialLoss:
    """Changes a batch so that a module misreads it, and returns the mean cross-entropy of what comes out.

    Madry, Makelov, Schmidt, Tsipras, Vladu, ICLR 2018, arXiv 1706.06083, eq. 2.1. It counts its calls, since the radius
    grows over the first of them: build one for each training.

    Args:
        adversary: how inputs are changed.
        pixels: how inputs are normalized; raw images in [0, 1] where it is `None`.
        warm_up: over how many calls the radius grows from 0.
        generator: draws the starts; a fixed seed where it is `None`.

    Raises:
        ValueError: where `warm_up` is negative.

    Example:
        >>> from lightning_poison.adversarial.adversaries import FGSM
        >>> model, images, labels = nn.Linear(3, 2), torch.full((4, 3), 0.5), torch.tensor([0, 1, 0, 1])
        >>> robust = AdversarialLoss(FGSM(0.2))(model, images, labels)
        >>> bool(robust > F.cross_entropy(model(images), labels))
        True
    """

    def __init__(
        self,
        adversary: Adversary,
        *,
        pixels: PixelRange | None = None,
        warm_up: int = 0,
        generator: torch.Generator | None = None,
    ) -> None:
        self.adversary = adversary
        self.pixels = pixels
        self.warm_up = positive_int("warm_up", warm_up, minimum=0)
        self._generator = generator or torch.Generator().manual_seed(0)
        self._done = 0

    def __call__(self, module: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of a batch, a scalar."""
        self._done += 1
        with evaluating(module), frozen(module):
            changed = self.adversary.perturb(
                inputs,
                lambda tried: sample_cross_entropy(module(tried), labels),
                pixels=self.pixels,
                strength=min(1.0, self._done / max(1, self.warm_up)),
                parameters_frozen=True,
                generator=self._generator,
            )
        return F.cross_entropy(module(changed).float(), labels)
