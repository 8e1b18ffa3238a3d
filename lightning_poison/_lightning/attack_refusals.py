"""Where adversarial training cannot work, and says so with the reason."""

from typing import Any

_REASONS = {
    "FSDPStrategy": "The attack asks for gradients inside of the step, where parameters are shards.",
    "ModelParallelStrategy": "The attack asks for gradients inside of the step, where parameters may be shards.",
    "DeepSpeedStrategy": "Its engine owns the module's forward and gradients, and the attack goes past it.",
    "XLAStrategy": "No test covers gradients that are asked for inside of a step on XLA devices.",
    "SingleDeviceXLAStrategy": "No test covers gradients that are asked for inside of a step on XLA devices.",
}


def refuse_strategy(kind: type[Any]) -> None:
    """Refuse strategies under which the module cannot be asked for gradients inside of its own step.

    Args:
        kind: the class of the strategy, of either namespace.

    Raises:
        ValueError: naming the strategy.

    Example:
        >>> from lightning.pytorch.strategies import FSDPStrategy
        >>> refuse_strategy(FSDPStrategy)
        Traceback (most recent call last):
        ValueError: Expected a strategy that keeps the parameters whole on each rank, but got FSDPStrategy.
        The attack asks for gradients inside of the step, where parameters are shards. Use `ddp`.
    """
    for name in (base.__name__ for base in kind.__mro__):
        if name in _REASONS:
            what = "on a CPU or a GPU" if "XLA" in name else "that keeps the parameters whole on each rank"
            way_out = "Train on a CPU or a GPU." if "XLA" in name else "Use `ddp`."
            raise ValueError(f"Expected a strategy {what}, but got {kind.__name__}.\n{_REASONS[name]} {way_out}")
