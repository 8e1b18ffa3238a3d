"""Backdoor attacks for lightning-poison.

Example:
    >>> for name in lightning_poison_attacks():
    ...     print(name)
    badnets
    blended
    sig
    clean-label-backdoor
    adaptive-patch
    adaptive-blend
    wanet
    refool
    sample-specific
    tact
"""

from collections.abc import Callable, Mapping

from lightning_poison import hookimpl
from lightning_poison.attacks import Attack
from lightning_poison_backdoors.adaptive import AdaptiveBlend, AdaptivePatch
from lightning_poison_backdoors.clean_label import CleanLabelBackdoor, Sig
from lightning_poison_backdoors.dirty_label import BadNets, Blended
from lightning_poison_backdoors.reflection import ReflectionTrigger, Refool
from lightning_poison_backdoors.residual import KeyedResidualTrigger, SampleSpecific
from lightning_poison_backdoors.source_specific import TaCT
from lightning_poison_backdoors.triggers import ChainTrigger, SinusoidTrigger, checkerboard
from lightning_poison_backdoors.warping import WaNet, WarpTrigger

__all__ = [
    "AdaptiveBlend",
    "AdaptivePatch",
    "BadNets",
    "Blended",
    "ChainTrigger",
    "CleanLabelBackdoor",
    "KeyedResidualTrigger",
    "ReflectionTrigger",
    "Refool",
    "SampleSpecific",
    "Sig",
    "SinusoidTrigger",
    "TaCT",
    "WaNet",
    "WarpTrigger",
    "checkerboard",
]


@hookimpl
def lightning_poison_attacks() -> Mapping[str, Callable[..., Attack]]:
    """Return the attacks of this distribution by name."""
    attacks = (
        *(BadNets, Blended, Sig, CleanLabelBackdoor, AdaptivePatch, AdaptiveBlend),
        *(WaNet, Refool, SampleSpecific, TaCT),
    )
    return {attack.name: attack for attack in attacks}
