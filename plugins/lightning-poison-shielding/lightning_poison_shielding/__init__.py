"""Class shielding for lightning-poison: `class-shielding` and `class-shielding-generator`.

Example:
    >>> sorted(lightning_poison_attacks())
    ['class-shielding', 'class-shielding-generator']
"""

from collections.abc import Callable, Mapping

from lightning_poison import hookimpl
from lightning_poison.attacks import Attack
from lightning_poison_shielding.class_shielding import ClassShielding, ClassShieldingGenerator

__all__ = ["ClassShielding", "ClassShieldingGenerator"]


@hookimpl
def lightning_poison_attacks() -> Mapping[str, Callable[..., Attack]]:
    """Return the attacks of this distribution by name."""
    return {attack.name: attack for attack in (ClassShielding, ClassShieldingGenerator)}
