"""What an attacker may do, and the models that it crafts on."""

from collections.abc import Sequence, Sized
from dataclasses import dataclass, field

from torch import nn

from lightning_poison import checks
from lightning_poison.data.pixel_range import PixelRange


@dataclass(frozen=True)
class Threat:
    """The limits that an attack is held to; the door refuses poison that oversteps them.

    Args:
        budget: how many samples of the training set the attacker may control, changed and appended ones together.
        epsilon: the largest change of any pixel, L∞, in units of the raw [0, 1] image; `None` for no limit.
        clean_label: every poison sample must carry the label of the sample that it was made from.
        may_append: the attacker may add samples, and not only change those that are there.
        pixels: the pixel domain of the data set.

    Raises:
        ValueError: where `budget` is no positive integer or `epsilon` lies outside (0, 1].

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
        """Build a threat whose budget is a share of the data set, in (0, 1), rounded to the nearest sample."""
        share = checks.fraction("poison_fraction", poison_fraction)
        budget = max(1, round(share * len(dataset)))
        return cls(budget, epsilon, clean_label, may_append, pixels or PixelRange())


@dataclass(frozen=True)
class Surrogate:
    """A model that the attacker crafts on, and the name of its feature layer.

    Args:
        model: maps a batch of samples to logits `(B, C)`.
        feature_layer: the name, as `model.named_modules()` gives it, of the layer whose output is the feature vector;
            `lightning_poison.models.feature_extractor` reads it and lists the names there are.

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
    """Check that there is a model to craft on, for attacks that need one.

    Raises:
        ValueError: where there is none.

    Example:
        >>> check_surrogates([Surrogate(nn.Linear(2, 2), "")])
    """
    if not surrogates:
        hint = 'Pass `surrogates=[Surrogate(model, "name of its feature layer")]`.'
        raise ValueError(checks.expected("surrogates", "at least one model to craft on", "none", hint))
