"""Poison made in feature and gradient space, as a plug-in of lightning-poison.

Example:
    >>> sorted(lightning_poison_attacks())
    ['adaptive-frog', 'adversarial-poisoning', 'bullseye-polytope', 'gradient-matching', 'poison-frog']
"""

from collections.abc import Callable, Mapping

from lightning_poison import hookimpl
from lightning_poison.attacks import Attack
from lightning_poison_collisions.adaptive_frogs import AdaptiveFrogs
from lightning_poison_collisions.adversarial_poisoning import AdversarialPoisoning
from lightning_poison_collisions.bullseye import BullseyePolytope
from lightning_poison_collisions.frogs import FrogAttack
from lightning_poison_collisions.gradient_matching import GradientMatching
from lightning_poison_collisions.known_scorers import KnownScorer

__all__ = [
    "LIGHTNING_POISON_API",
    "AdaptiveFrogs",
    "AdversarialPoisoning",
    "BullseyePolytope",
    "FrogAttack",
    "GradientMatching",
    "KnownScorer",
    "lightning_poison_attacks",
]

LIGHTNING_POISON_API = (1, 0)


@hookimpl
def lightning_poison_attacks() -> Mapping[str, Callable[..., Attack]]:
    """Return the attacks of this plug-in, by name."""
    attacks = (FrogAttack, AdaptiveFrogs, BullseyePolytope, AdversarialPoisoning, GradientMatching)
    return {attack.name: attack for attack in attacks}
