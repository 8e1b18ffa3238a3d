"""`PoisonImmunity`: adversarial training against poison crafted from each batch.

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
    class_indices,
    collision_loss,
    matching_loss,
    twice_differentiable,
    uncompiled,
)
from lightning_poison.adversarial.recipes import Step
from lightning_poison.checks import describe, expected, fraction, one_of
from lightning_poison.data.pixel_range import PixelRange

PoisonAttack = Literal["gradient-matching", "feature-collision", "patch"]

_SIDES = (0.1, 0.4)
"""Minimum and maximum side of a patch as a share of the image, from the code of Geiping et al."""

_LOSSES: Mapping[str, PoisonLoss] = {"gradient-matching": matching_loss, "feature-collision": collision_loss}


class PoisonImmunity:
    """Perturbs one part of each batch to poison the rest, and trains on both with their own labels.

    Training on self-made poison in every step makes a network less sensitive to the poison of an attacker. The first
    samples of each batch act as the poison, the others as the targets to be misclassified:

    - `"gradient-matching"`: the poison is perturbed, within the radius, to align the gradient of its loss under its own
      labels with that of the targets' loss under a wrong label, the most frequent one of the poison. It defends against
      poison for networks trained from scratch. Each step of the adversary needs second derivatives.
    - `"feature-collision"`: the poison is perturbed, within the radius, to move its mean features toward those of the
      targets. It defends against poison frogs and the bullseye polytope.
    - `"patch"`: each class has a random patch, drawn for each batch. Poison has the patch of its own class, and targets
      that of another class, so that patches are not informative. It defends against backdoors at almost no cost. The
      adversary's radius is not used.

    The order of the batch does not change. A batch is not modified if one of the parts is empty, or if, under gradient
    matching, all targets have the intended class. Gradients and features are summed over ranks, so that each rank
    perturbs its samples as a single rank with all samples would.

    Differences from the authors' code (github.com/JonasGeiping/data-poisoning): steps and random start are those of the
    adversary, not Adam on signs from the corners of the ball; targets with the intended class are ignored; patches of
    another class follow a random cycle through the classes.

    Args:
        attack: Attack that the poison performs. Default: `"gradient-matching"`.
        share: Share of each batch that acts as the poison, in (0, 1). Default: 0.5, as the authors use.
        layers: Layer names in `module.named_modules()`. For gradient matching, the layers whose gradients are matched:
            only the last ones are much faster; all by default. For feature collision, the layers whose outputs are
            matched, at least one.

    Raises:
        ValueError: If an argument is out of range, or, in the first step, if there is no such layer.
        RuntimeError: If the module cannot be differentiated twice, in the first step of gradient matching.

    Example:
        >>> PoisonImmunity(share=0.25)
        PoisonImmunity('gradient-matching', share=0.25, layers=None)
    """

    def __init__(
        self, attack: PoisonAttack = "gradient-matching", *, share: float = 0.5, layers: Sequence[str] | None = None
    ) -> None:
        self.attack = one_of("attack", attack, (*_LOSSES, "patch"))
        self.share = fraction("share", share)
        self.layers = _check_layers(layers, attack)

    def __repr__(self) -> str:
        return f"PoisonImmunity({self.attack!r}, share={self.share:g}, layers={self.layers})"

    def step(self, attacked: AttackedBatch, call_next: Step) -> Any:
        """Train on the batch with perturbed poison."""
        poison = _first_share(len(attacked.inputs), self.share, attacked.part).to(attacked.inputs.device)
        inputs = (_add_patches if self.attack == "patch" else self._perturb)(attacked, poison)
        return call_next(attacked.batch if inputs is None else attacked.with_inputs(inputs))

    def _perturb(self, attacked: AttackedBatch, poison: Tensor) -> Tensor | None:
        """Return the inputs with perturbed poison, or `None` if there is nothing to optimize."""
        matching = self.attack == "gradient-matching"
        with twice_differentiable() if matching else uncompiled():
            loss = _LOSSES[self.attack](attacked, poison, self.layers)
            if loss is None:
                return None
            perturbed = attacked.perturb(attacked.inputs, loss, parameters_frozen=not matching)
        mask = poison.view(-1, *[1] * (perturbed.ndim - 1))
        return torch.where(mask, perturbed, attacked.inputs)


def _check_layers(layers: Sequence[str] | None, attack: str) -> tuple[str, ...] | None:
    if attack == "patch" and layers is not None:
        raise ValueError(expected("layers", "omitted for 'patch', which does not use any", repr(layers)))
    if isinstance(layers, str) or (not layers and (layers is not None or attack == "feature-collision")):
        hint = "Use names in `module.named_modules()`. Features are often those before the last layer."
        raise ValueError(expected("layers", "a list of layer names", repr(layers), hint))
    return None if layers is None else tuple(layers)


def _first_share(count: int, share: float, part: tuple[int, int]) -> Tensor:
    """Return which samples of this rank are in the first share of a batch interleaved over ranks, bool `(B,)`."""
    rank, ranks = part
    return torch.arange(rank, count * ranks, ranks) < share * count * ranks


def _add_patches(attacked: AttackedBatch, poison: Tensor) -> Tensor | None:
    """Return the inputs, each with a patch, or `None` if there is only one class."""
    inputs, classes = attacked.inputs, class_indices(attacked.labels)
    if inputs.ndim != 4:
        hint = "Use another attack of `PoisonImmunity` for other inputs."
        raise ValueError(expected("inputs", "images (B, C, H, W) for 'patch'", describe(inputs), hint))
    kinds = attacked.evaluate(inputs[:1]).shape[1]
    if kinds < 2:
        return None
    generator, (rank, ranks) = attacked.generator, attacked.part
    channels, height, width = inputs.shape[1:]
    patterns, sizes = draw_patches(kinds, (channels, height, width), sides=_SIDES, generator=generator)
    cycle = torch.randperm(kinds, generator=generator, device=generator.device)
    other = torch.empty_like(cycle).scatter_(0, cycle, cycle.roll(-1))
    places = torch.rand(len(inputs) * ranks, 2, generator=generator, device=generator.device)[rank::ranks]
    assigned = torch.where(poison, classes, other.to(classes.device)[classes]).to(generator.device)
    canvases, inside = (part.to(inputs.device) for part in place_patches(patterns, sizes, assigned, places))
    return torch.where(inside, (attacked.pixels or PixelRange()).from_raw(canvases).to(inputs.dtype), inputs)
