"""The settings of an attack: as they are shown, and as JSON can hold them."""

from typing import Any

from torch import Tensor


def as_call(attack: object) -> str:
    """Return a call that names all settings of an attack, patterns by their shape.

    Example:
        >>> from lightning_poison_backdoors.badnets import BadNets
        >>> as_call(BadNets("next"))
        "BadNets(target_class='next', source_class=None, pattern=(1, 3, 3), row=-1, column=-1, amplitude=1.0)"
    """
    parts = {name: tuple(value.shape) if isinstance(value, Tensor) else value for name, value in vars(attack).items()}
    return f"{type(attack).__name__}({', '.join(f'{name}={value!r}' for name, value in parts.items())})"


def as_json(attack: object) -> dict[str, Any]:
    """Return the settings of an attack by name, patterns as nested lists; the attack can be built from them again.

    Example:
        >>> from lightning_poison_backdoors.sig import Sig
        >>> as_json(Sig(2, amplitude=0.5))
        {'target_class': 2, 'amplitude': 0.5, 'test_amplitude': None, 'frequency': 6.0}
    """
    return {name: value.tolist() if isinstance(value, Tensor) else value for name, value in vars(attack).items()}
