"""Label flipping: the simplest attack, and a template for other attack plug-ins."""

from collections.abc import Callable, Mapping

from lightning_poison import hookimpl
from lightning_poison.attacks import Attack
from lightning_poison_labels.label_flip import LabelFlip

__all__ = ["LabelFlip"]


@hookimpl
def lightning_poison_attacks() -> Mapping[str, Callable[..., Attack]]:
    """Return the attacks of this distribution by name."""
    return {LabelFlip.name: LabelFlip}
