"""Limits of an attacker, and the surrogate models on which it crafts poison."""

from collections.abc import Sequence, Sized
from dataclasses import dataclass, field

from torch import nn

from lightning_poison import checks
from lightning_poison.data.pixel_range import PixelRange


@dataclass(frozen=True)
class Threat:
    """Limits of an attack. `craft` rejects poison that exceeds them.

    Args:
        budget: Number of training samples that the attacker may control, changed and appended ones together.
        epsilon: Maximum change of any pixel, L∞, in units of the raw [0, 1] image. Default: no limit.
        clean_label: Whether each poison sample must keep the label of its base. Default: `False`.
        may_append: Whether the attacker may append samples as well as change existing ones. Default: `True`.
        pixels: Pixel range of the data set. Default: images in [0, 1].

    Raises:
        ValueError: If `budget` is not a positive integer, or `epsilon` is outside (0, 1].

    Example:
        >>> Threat.of_fraction(range(1000), 0.02, epsilon=8 / 255).budget
        20
    """

    budget: int
    epsilon: float | None = None
    clean_label: bool = False
    may_append: bool = True
    pixels: PixelRange = field(default_factory=PixelRange)

    def __post_init__(self) -> None:
        checks.positive_int("budget", self.budget, hint="For a share of the data set use `Threat.of_fraction`.")
        if self.epsilon is not None:
            checks.epsilon(self.epsilon)
        checks.plain_numbers(self)

    @classmethod
    def of_fraction(
        cls,
        dataset: Sized,
        poison_fraction: float,
        *,
        epsilon: float | None = None,
        clean_label: bool = False,
        may_append: bool = True,
        pixels: PixelRange | None = None,
    ) -> "Threat":
        """Build a threat whose budget is a fraction of the data set, in (0, 1), rounded to the nearest sample."""
        budget = max(1, round(checks.fraction("poison_fraction", poison_fraction) * len(dataset)))
        return cls(budget, epsilon, clean_label, may_append, pixels or PixelRange())


@dataclass(frozen=True)
class Surrogate:
    """Model on which the attacker crafts poison, and the name of its feature layer.

    Args:
        model: Maps a batch of samples to logits `(B, C)`.
        feature_layer: Name, as in `model.named_modules()`, of the layer whose output is the feature vector;
            `lightning_poison.models.feature_extractor` reads it and lists the available names.

    Example:
        >>> import torch
        >>> from lightning_poison.models.feature_extractor import FeatureExtractor
        >>> surrogate = Surrogate(nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Linear(3, 2)), feature_layer="1")
        >>> FeatureExtractor(surrogate.model, surrogate.feature_layer)(torch.zeros(5, 1, 2, 2)).shape
        torch.Size([5, 3])
    """

    model: nn.Module
    feature_layer: str


def check_surrogates(surrogates: Sequence[Surrogate]) -> None:
    """Check that there is at least one surrogate, for attacks that need one.

    Raises:
        ValueError: If there is none.

    Example:
        >>> check_surrogates([Surrogate(nn.Linear(2, 2), "")])
    """
    if not surrogates:
        hint = 'Pass `surrogates=[Surrogate(model, "name of its feature layer")]`.'
        raise ValueError(checks.expected("surrogates", "at least one model to craft on", "none", hint))
