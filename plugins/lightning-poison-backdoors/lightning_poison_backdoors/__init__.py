"""Backdoors as a plug-in of lightning-poison.

Example:
    >>> for name in lightning_poison_attacks():
    ...     print(name)
    badnets
    blended
    sig
    clean-label-backdoor
    adaptive-patch
    adaptive-blend
"""

from collections.abc import Mapping

from lightning_poison import hookimpl
from lightning_poison.registry.hookspecs import AttackFactory
from lightning_poison_backdoors.adaptive import AdaptiveBlend, AdaptivePatch
from lightning_poison_backdoors.badnets import BadNets
from lightning_poison_backdoors.blended import Blended
from lightning_poison_backdoors.chain import ChainTrigger
from lightning_poison_backdoors.clean_label import CleanLabelBackdoor
from lightning_poison_backdoors.sig import Sig
from lightning_poison_backdoors.sinusoid import SinusoidTrigger

__all__ = [
    "LIGHTNING_POISON_API",
    "AdaptiveBlend",
    "AdaptivePatch",
    "BadNets",
    "Blended",
    "ChainTrigger",
    "CleanLabelBackdoor",
    "Sig",
    "SinusoidTrigger",
    "lightning_poison_attacks",
]

LIGHTNING_POISON_API = (1, 0)


@hookimpl
def lightning_poison_attacks() -> Mapping[str, AttackFactory]:
    """Return the attacks of this plug-in, by name."""
    attacks = (BadNets, Blended, Sig, CleanLabelBackdoor, AdaptivePatch, AdaptiveBlend)
    return {attack.name: attack for attack in attacks}
