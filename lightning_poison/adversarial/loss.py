"""`AdversarialLoss`: the cross-entropy of perturbed inputs, for `lightning_poison.models.fitting.fit_module`."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_poison.adversarial.adversaries import Adversary
from lightning_poison.adversarial.batch import sample_cross_entropy
from lightning_poison.checks import positive_int
from lightning_poison.contexts import evaluating, frozen
from lightning_poison.data.pixel_range import PixelRange


class AdversarialLoss:
    """Perturbs a batch to maximize its cross-entropy, and returns the mean cross-entropy of the perturbed batch.

    Madry, Makelov, Schmidt, Tsipras, Vladu, ICLR 2018, arXiv 1706.06083, eq. 2.1. An instance counts its calls for the
    warm-up of the radius: use one per training run.

    Args:
        adversary: Method that perturbs the inputs.
        pixels: Normalization of the inputs. Default: raw images in [0, 1].
        warm_up: Number of calls over which the radius grows linearly from 0. Default: 0.
        generator: Source of the random starts. Default: a fixed seed.

    Raises:
        ValueError: If `warm_up` is negative.

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
        self._calls = 0

    def __call__(self, module: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of a batch, a scalar."""
        self._calls += 1
        with evaluating(module), frozen(module):
            perturbed = self.adversary.perturb(
                inputs,
                lambda candidates: sample_cross_entropy(module(candidates), labels),
                pixels=self.pixels,
                strength=min(1.0, self._calls / max(1, self.warm_up)),
                parameters_frozen=True,
                generator=self._generator,
            )
        return F.cross_entropy(module(perturbed).float(), labels)

    def state_dict(self) -> dict[str, Tensor]:
        """Return what changes from call to call, so that an interrupted fit can continue."""
        return {"calls": torch.tensor(self._calls), "draws": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        self._calls = int(state["calls"])
        self._generator.set_state(state["draws"])
