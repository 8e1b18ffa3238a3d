"""Checks of how strong a trigger is, and of what a threat allows."""

from torch import Tensor

from lightning_poison import Threat, checks

_LEVEL = 1 / 255


def amplitude_of(name: str, value: float) -> float:
    """Return a strength in (0, 1], and catch one that is given in gray levels.

    Raises:
        ValueError: where it is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        levels = f"{value:g}" if isinstance(value, int | float) and value > 1 else "40"
        hint = f"For {levels} gray levels write `{name}={levels} / 255`."
        raise ValueError(checks.expected(name, "in (0, 1], the range of the images", value, hint))
    return float(value)


def check_dirty_labels_allowed(threat: Threat) -> None:
    """Refuse a threat under which labels must stay.

    Raises:
        ValueError: where the threat asks for clean labels.
    """
    if threat.clean_label:
        raise ValueError(
            "Expected a threat that lets labels change, but got `clean_label=True`.\n"
            "Attacks that leave labels alone: `sig` and `clean-label-backdoor`."
        )


def check_change(threat: Threat, before: Tensor, after: Tensor) -> None:
    """Refuse poison that changes a pixel by more than the threat's epsilon, where it has one.

    Args:
        threat: its `epsilon` bounds the whole change, the trigger among it.
        before: the images, uint8 `(P, C, H, W)`.
        after: the poison made from them.

    Raises:
        ValueError: where the change is larger.
    """
    if threat.epsilon is None:
        return
    largest = int((after.int() - before.int()).abs().max())
    if largest * _LEVEL > threat.epsilon + _LEVEL / 100:
        raise ValueError(
            f"Expected poison that changes no pixel by more than the threat's epsilon of {threat.epsilon:.4g}, but the "
            f"trigger changes one by {largest} / 255.\n"
            "Make the trigger weaker (`amplitude`), or leave `epsilon` out of the threat: triggers need not be faint."
        )
