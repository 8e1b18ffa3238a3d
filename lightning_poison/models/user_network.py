"""Runs networks of the user on samples as they take them: floats, integers, or several inputs."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_poison.checks import describe, describe_error, expected, printable
from lightning_poison.data.packed_inputs import MOST_EXACT, unpacked

_MISFITS = (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError)
"""What networks raise if inputs have another shape, type or structure than they take."""


def run_network(network: nn.Module, inputs: Tensor) -> Any:
    """Run a network on samples, which are stored as float32.

    A network that takes no floats, such as one with an `Embedding`, gets whole numbers as int64. Samples with several
    inputs reach it as a dict or a tuple, in which integers are int64.

    Args:
        network: Any module with one argument.
        inputs: `(B, ...)`, maybe `PackedInputs`.

    Raises:
        ValueError: If the network takes no such inputs.

    Example:
        >>> run_network(nn.Embedding(5, 2), torch.tensor([[4.0, 0.0, 1.0]])).shape
        torch.Size([1, 3, 2])
        >>> run_network(nn.Linear(4, 2), torch.zeros(8, 3))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: Expected inputs that Linear takes, but it raised RuntimeError: ... for a float32 tensor of shape
        (8, 3).
        Use a network for samples like these, or convert them in the transform of the data set.
    """
    given = unpacked(inputs)
    try:
        return network(given)
    except torch.OutOfMemoryError:
        raise
    except _MISFITS as error:
        if isinstance(given, Tensor) and (integers := _as_integers(given)) is not None:
            try:
                return network(integers)
            except _MISFITS as other:
                if "embedding" in str(other) or isinstance(other, IndexError):
                    raise ValueError(_misfit(network, integers, other)) from other
        raise ValueError(_misfit(network, given, error)) from error


def check_weights(module: Any, *, name: str, owner: str) -> Any:
    """Return a network of the user if a scorer can train a copy of it, or `None`.

    Args:
        module: Network, or `None`.
        name: Name of the argument, for messages.
        owner: Class of the scorer, for messages.

    Raises:
        TypeError: If it is not a module.
        ValueError: If it has weights without values, or of another type than float32.

    Example:
        >>> check_weights("resnet18", name="backbone", owner="LikelihoodScorer")
        Traceback (most recent call last):
        TypeError: Expected `backbone` of LikelihoodScorer to be a `torch.nn.Module`, but got 'resnet18'.
        Pass a network that maps a batch to features (B, D), or leave it out.
    """
    if module is None:
        return None
    if not isinstance(module, nn.Module):
        way = "Pass a network that maps a batch to features (B, D), or leave it out."
        came = describe(module)
        if isinstance(module, type):
            came, way = f"the class {module.__name__}", f"Create the network: `{module.__name__}(...)`."
        raise TypeError(f"Expected `{name}` of {owner} to be a `torch.nn.Module`, but got {came}.\n{way}")
    for path, weight in (*module.named_parameters(), *module.named_buffers()):
        if (fault := _fault(weight)) is not None:
            came, way = fault
            where = f"Expected `{name}` of {owner} to have weights of type float32"
            raise ValueError(f"{where}, but `{printable(path)}` is {came}.\n{way}")
    return module


def _fault(weight: Tensor) -> tuple[str, str] | None:
    """Return what is wrong with a weight, and what to do."""
    if is_lazy(weight):
        return "that of a lazy module, without a shape", "Run it once on a batch, which gives it its shapes."
    if weight.is_meta:
        return "on the device meta, without values", "Create it on the CPU."
    if weight.is_floating_point() and weight.dtype != torch.float32:
        return f"of type {str(weight.dtype).removeprefix('torch.')}", "Convert it: `backbone.float()`."
    return None


def _as_integers(inputs: Tensor) -> Tensor | None:
    """Return whole numbers as int64, or `None` if there are others.

    Raises:
        ValueError: If they are too large to be exact.
    """
    values = inputs.detach()
    if not bool((values == values.round()).all()):
        return None
    if bool((values.abs() >= MOST_EXACT).any()):
        hint = "Number tokens from 0."
        raise ValueError(expected("inputs", f"integers below {MOST_EXACT:,}", f"{values.abs().max():.0f}", hint))
    return values.long()


def _misfit(network: nn.Module, given: Any, error: Exception) -> str:
    if isinstance(given, dict):
        came = "a dict of " + ", ".join(f"{name} ({describe(value)})" for name, value in given.items())
    elif isinstance(given, tuple):
        came = "a tuple of " + ", ".join(map(describe, given))
    else:
        came = describe(given)
    return (
        f"Expected inputs that {type(network).__name__} takes, but it raised {describe_error(error)} for {came}.\n"
        "Use a network for samples like these, or convert them in the transform of the data set."
    )
