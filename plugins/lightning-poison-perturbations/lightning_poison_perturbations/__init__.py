"""Small perturbations of training images whose labels are unchanged: FGSM, PGD, random signs, a smooth pattern.

Example:
    >>> sorted(lightning_poison_attacks())
    ['fgsm', 'pgd', 'random-sign', 'smooth-pattern']
"""

from collections.abc import Callable, Mapping

from lightning_poison import hookimpl
from lightning_poison.attacks import Attack
from lightning_poison_perturbations.class_perturbation import ClassPerturbation
from lightning_poison_perturbations.perturbations import FGSM, PGD, RandomSign, SmoothPattern

__all__ = ["FGSM", "PGD", "ClassPerturbation", "RandomSign", "SmoothPattern"]


@hookimpl
def lightning_poison_attacks() -> Mapping[str, Callable[..., Attack]]:
    """Return the attacks of this distribution by name."""
    return {attack.name: attack for attack in (FGSM, PGD, RandomSign, SmoothPattern)}
