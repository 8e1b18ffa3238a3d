"""`logits_of`: the logits of a module, by whatever name its owner has given to what returns them."""

from collections.abc import Callable, Mapping
from functools import partial
from operator import attrgetter
from typing import Any

from torch import Tensor, nn

from lightning_poison.checks import describe, expected


def logits_of(module: nn.Module, name: str | Callable[[nn.Module, Tensor], Any], inputs: Tensor) -> Tensor:
    """Ask a module for logits: itself, a submodule or a method by its name, or a function of the module.

    Raises:
        ValueError: where there is nothing of that name.
        TypeError: where there is no `forward`, or no logits come back.
    """
    hint = "Name what returns them: `logits=` takes the name of a submodule or a method, or a function."
    kind = type(module).__name__
    try:
        ask = (partial(name, module) if callable(name) else attrgetter(name)(module)) if name else module
    except AttributeError as error:
        raise ValueError(expected("logits", f"a submodule or a method of {kind}", repr(name), hint)) from error
    try:
        output = ask(inputs)
    except NotImplementedError as error:
        raise TypeError(f"Expected {kind} to return logits from `forward`, but it has none.\n{hint}") from error
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
    if not isinstance(found, Tensor):
        raise TypeError(expected("logits", "a tensor, or something that holds one as `logits`", describe(output), hint))
    return found
