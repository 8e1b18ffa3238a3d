"""`PoisonImmunity`: adversarial training against poison, made anew from each batch.

Geiping, Fowl, Somepalli, Goldblum, Moeller, Goldstein, "What Doesn't Kill You Makes You Robust(er): How to
Adversarially Train against Data Poisoning", 2021, arXiv 2102.13624.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_poison.adversarial.batch import AttackedBatch
from lightning_poison.adversarial.patches import draw_patches, place_patches
from lightning_poison.adversarial.poison_losses import (
    PoisonLoss,
    classes_of,
    collision_loss,
    matching_loss,
    twice_differentiable,
    uncompiled,
)
from lightning_poison.adversarial.recipes import Step
from lightning_poison.checks import describe, expected, fraction, one_of
from lightning_poison.data.pixel_range import PixelRange

PoisonAttack = Literal["gradient-matching", "feature-collision", "patch"]

_SIDES = (0.1, 0.4)  # of the image's, in the code of Geiping et al.
_LOSSES: Mapping[str, PoisonLoss] = {"gradient-matching": matching_loss, "feature-collision": collision_loss}


class PoisonImmunity:
    """Lets a part of each batch poison the rest, and trains on both with the labels that they have.

    A network that has been trained on poison of its own making, step by step, is to take little notice of an
    attacker's. In each batch the first samples play the poison, the others play the targets that are to be misread:

    - `"gradient-matching"`: the poison is changed, within the radius, so that the gradient of its loss under its own
      labels is aligned with that of the targets' loss under a wrong label, the most frequent one of the poison. It is
      meant against poison for networks trained from scratch. The gradient of a gradient is needed, for each step of the
      adversary.
    - `"feature-collision"`: the poison is changed, within the radius, so that the mean of its features comes near that
      of the targets. It is meant against poison frogs and the bullseye polytope.
    - `"patch"`: a random patch stands for each class, drawn anew for each batch. Poison carries the patch of its own
      class, and targets that of another, so that patches tell nothing. It is meant against backdoors, and is almost
      free; the adversary's radius is not used.

    The order of the batch stays. A batch that has no two parts, or under gradient matching no target with another label
    than the wanted one, is trained on as it is. Ranks sum their gradients and features, so that each changes its
    samples as one rank would that has them all.

    Differences from the authors' code (github.com/JonasGeiping/data-poisoning): the steps and the random start are the
    adversary's, in the place of Adam on signs from the corners of the ball; targets that carry the wanted label do not
    count; patches of another class follow one random cycle through the classes.

    Args:
        attack: what the poison does.
        share: of each batch that plays the poison, in (0, 1); the authors use a half.
        layers: under gradient matching the names of the layers whose gradients count, as `module.named_modules()` gives
            them: the last ones alone are much faster; all where it is `None`. Under feature collision the names of the
            layers whose outputs count, one at least.

    Raises:
        ValueError: where an argument is out of its range; in the first step, where there is no such layer.
        RuntimeError: in the first step of gradient matching, where the module cannot be differentiated twice.

    Example:
        >>> PoisonImmunity(share=0.25)
        PoisonImmunity('gradient-matching', share=0.25, layers=None)
    """

    def __init__(
        self, attack: PoisonAttack = "gradient-matching", *, share: float = 0.5, layers: Sequence[str] | None = None
    ) -> None:
        self.attack = one_of("attack", attack, (*_LOSSES, "patch"))
        self.share = fraction("share", share)
        self.layers = _checked(layers, attack)

    def __repr__(self) -> str:
        return f"PoisonImmunity({self.attack!r}, share={self.share:g}, layers={self.layers})"

    def step(self, attacked: AttackedBatch, call_next: Step) -> Any:
        """Train on the batch with poison in it."""
        poison = _first_share(len(attacked.inputs), self.share, attacked.part).to(attacked.inputs.device)
        make = _with_patches if self.attack == "patch" else self._poisoned
        inputs = make(attacked, poison)
        return call_next(attacked.batch if inputs is None else attacked.with_inputs(inputs))

    def _poisoned(self, attacked: AttackedBatch, poison: Tensor) -> Tensor | None:
        """Return the inputs, those of the poison changed, or `None` where nothing is to be gained."""
        matching = self.attack == "gradient-matching"
        with twice_differentiable() if matching else uncompiled():
            loss = _LOSSES[self.attack](attacked, poison, self.layers)
            if loss is None:
                return None
            changed = attacked.perturbed(attacked.inputs, loss, parameters_frozen=not matching)
        return torch.where(_per_sample(poison, changed), changed, attacked.inputs)


def _checked(layers: Sequence[str] | None, attack: str) -> tuple[str, ...] | None:
    if attack == "patch" and layers is not None:
        raise ValueError(expected("layers", "left out for 'patch', which looks at none", repr(layers)))
    if isinstance(layers, str) or (not layers and (layers is not None or attack == "feature-collision")):
        hint = "Names are those of `module.named_modules()`; features are often taken before the last layer."
        raise ValueError(expected("layers", "a list of layer names", repr(layers), hint))
    return None if layers is None else tuple(layers)


def _first_share(count: int, share: float, part: tuple[int, int]) -> Tensor:
    """Tell which samples of this rank are among the first share of a batch that ranks take in turns, bool `(B,)`."""
    rank, ranks = part
    return torch.arange(rank, count * ranks, ranks) < share * count * ranks


def _per_sample(values: Tensor, inputs: Tensor) -> Tensor:
    return values.view(-1, *[1] * (inputs.ndim - 1))


def _with_patches(attacked: AttackedBatch, poison: Tensor) -> Tensor | None:
    """Return the inputs, each with a patch, or `None` where there is one class only."""
    inputs, classes = attacked.inputs, classes_of(attacked.labels)
    if inputs.ndim != 4:
        hint = "For other inputs use another attack of `PoisonImmunity`."
        raise ValueError(expected("inputs", "images (B, C, H, W) for 'patch'", describe(inputs), hint))
    kinds = attacked.read(inputs[:1]).shape[1]
    if kinds < 2:
        return None
    draws, (rank, ranks) = attacked.generator, attacked.part
    channels, height, width = inputs.shape[1:]
    patterns, sizes = draw_patches(kinds, (channels, height, width), sides=_SIDES, generator=draws)
    cycle = torch.randperm(kinds, generator=draws, device=draws.device)
    other = torch.empty_like(cycle).scatter_(0, cycle, cycle.roll(-1))
    places = torch.rand(len(inputs) * ranks, 2, generator=draws, device=draws.device)[rank::ranks]
    worn = torch.where(poison, classes, other.to(classes.device)[classes]).to(draws.device)
    canvases, inside = (part.to(inputs.device) for part in place_patches(patterns, sizes, worn, places))
    return torch.where(inside, (attacked.pixels or PixelRange()).from_raw(canvases).to(inputs.dtype), inputs)
