"""Clean-label attacks in feature and gradient space for lightning-poison.

Example:
    >>> for name in sorted(lightning_poison_attacks()):
    ...     print(name)
    adaptive-frog
    adversarial-poisoning
    bullseye-polytope
    gradient-matching
    hidden-trigger
    poison-frog
    sleeper-agent
"""

from collections.abc import Callable, Mapping

from lightning_poison import hookimpl
from lightning_poison.attacks import Attack
from lightning_poison_collisions.adaptive_frogs import AdaptiveFrogs
from lightning_poison_collisions.adversarial_poisoning import AdversarialPoisoning
from lightning_poison_collisions.bullseye import BullseyePolytope
from lightning_poison_collisions.descent import collide, collide_within, penalized_objective
from lightning_poison_collisions.distances import Distance, FeatureDistance, squared_norm
from lightning_poison_collisions.frogs import FrogAttack
from lightning_poison_collisions.gradient_matching import GradientMatching
from lightning_poison_collisions.hidden_trigger import HiddenTrigger
from lightning_poison_collisions.known_scorers import KnownScorer
from lightning_poison_collisions.sleeper_agent import SleeperAgent

__all__ = [
    "AdaptiveFrogs",
    "AdversarialPoisoning",
    "BullseyePolytope",
    "Distance",
    "FeatureDistance",
    "FrogAttack",
    "GradientMatching",
    "HiddenTrigger",
    "KnownScorer",
    "SleeperAgent",
    "collide",
    "collide_within",
    "penalized_objective",
    "squared_norm",
]


@hookimpl
def lightning_poison_attacks() -> Mapping[str, Callable[..., Attack]]:
    """Return the attacks of this distribution by name."""
    targeted = (FrogAttack, AdaptiveFrogs, BullseyePolytope, AdversarialPoisoning, GradientMatching)
    return {attack.name: attack for attack in (*targeted, HiddenTrigger, SleeperAgent)}
