"""Flipped labels: the simplest attack, and a template for others."""

from collections.abc import Mapping

from lightning_poison import hookimpl
from lightning_poison.registry.hookspecs import AttackFactory
from lightning_poison_labels.label_flip import LabelFlip

__all__ = ["LabelFlip"]

LIGHTNING_POISON_API = (1, 0)


@hookimpl
def lightning_poison_attacks() -> Mapping[str, AttackFactory]:
    """Offer the attacks of this distribution, by name."""
    return {LabelFlip.name: LabelFlip}
