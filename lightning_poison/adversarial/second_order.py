"""What compiled code and fused attention cannot do, and step aside for: hooks, and the gradient of a gradient."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

_SAID = ("checkpoint", "double backward", "is not implemented")


@contextmanager
def uncompiled() -> Iterator[None]:
    """Run compiled parts of a model eagerly, so that layers can be hooked.

    Example:
        >>> seen, layer = [], torch.nn.Linear(2, 1)
        >>> with uncompiled(), layer.register_forward_hook(lambda *_: seen.append(1)):
        ...     _ = torch.compile(layer)(torch.ones(1, 2))
        >>> seen
        [1]
    """
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Run compiled parts of a model eagerly and attention by its plain formula, and say what still cannot be done.

    Raises:
        RuntimeError: where a part of the model cannot be differentiated twice, with the way out.

    Example:
        >>> x = torch.tensor(2.0, requires_grad=True)
        >>> with twice_differentiable():
        ...     (slope,) = torch.autograd.grad(x**3, x, create_graph=True)
        ...     torch.autograd.grad(slope, x)
        (tensor(12.),)
    """
    try:
        with uncompiled(), sdpa_kernel(SDPBackend.MATH):
            yield
    except RuntimeError as error:
        if not any(part in str(error).lower() for part in _SAID):
            raise
        first = str(error).splitlines()[0]
        raise RuntimeError(
            f"Expected a module that can be differentiated twice, but got: {first}\nCheckpoint by "
            '`use_reentrant=False`, or play another poison: `PoisonImmunity("feature-collision", layers=[...])`.'
        ) from error
