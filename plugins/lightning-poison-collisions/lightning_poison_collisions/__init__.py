"""Feature collisions as a plug-in of lightning-poison: `poison-frog`.

Example:
    >>> sorted(lightning_poison_attacks())
    ['poison-frog']
"""

from collections.abc import Callable, Mapping

from lightning_poison.hookspecs import hookimpl
from lightning_poison.poison import Attack
from lightning_poison_collisions.frogs import FrogAttack

__all__ = ["LIGHTNING_POISON_API", "FrogAttack", "lightning_poison_attacks"]

LIGHTNING_POISON_API = (1, 0)


@hookimpl
def lightning_poison_attacks() -> Mapping[str, Callable[..., Attack]]:
    """Return the attacks of this plug-in, by name."""
    return {"poison-frog": FrogAttack}
