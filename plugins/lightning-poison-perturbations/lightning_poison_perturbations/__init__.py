"""Small changes of a class's training images, labels kept: FGSM, PGD, random signs, a smooth pattern.

Example:
    >>> sorted(lightning_poison_attacks())
    ['fgsm', 'pgd', 'random-sign', 'smooth-pattern']
"""

from collections.abc import Mapping

from lightning_poison import hookimpl
from lightning_poison.registry.hookspecs import AttackFactory
from lightning_poison_perturbations.attacks import fgsm, pgd, random_sign, smooth_pattern
from lightning_poison_perturbations.class_perturbation import ClassPerturbation

__all__ = ["LIGHTNING_POISON_API", "ClassPerturbation", "fgsm", "lightning_poison_attacks", "pgd", "random_sign"]
__all__ += ["smooth_pattern"]

LIGHTNING_POISON_API = (1, 0)


@hookimpl
def lightning_poison_attacks() -> Mapping[str, AttackFactory]:
    """Return the attacks of this plug-in, by name."""
    return {"fgsm": fgsm, "pgd": pgd, "random-sign": random_sign, "smooth-pattern": smooth_pattern}
