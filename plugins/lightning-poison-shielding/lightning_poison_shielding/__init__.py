"""Class shielding as a plug-in of lightning-poison: `class-shielding` and `class-shielding-generator`.

Example:
    >>> sorted(lightning_poison_attacks())
    ['class-shielding', 'class-shielding-generator']
"""

from collections.abc import Mapping

from lightning_poison import hookimpl
from lightning_poison.registry.hookspecs import AttackFactory
from lightning_poison_shielding.class_shielding import ClassShielding
from lightning_poison_shielding.generator_attack import ClassShieldingGenerator

__all__ = ["LIGHTNING_POISON_API", "ClassShielding", "ClassShieldingGenerator", "lightning_poison_attacks"]

LIGHTNING_POISON_API = (1, 0)


@hookimpl
def lightning_poison_attacks() -> Mapping[str, AttackFactory]:
    """Return the attacks of this plug-in, by name."""
    return {attack.name: attack for attack in (ClassShielding, ClassShieldingGenerator)}
