"""Batch norm layers as a probe of a trained network: how unlikely their inputs are, and what scaling them changes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_poison.contexts import full_precision

Forward = Callable[[Tensor], Any]
"""Runs a network on a batch."""

_EPSILON = 1e-5
"""Added to running variances."""


def layer_abnormality(layers: Sequence[nn.Module], inputs: Tensor, *, forward: Forward) -> tuple[Tensor, Any]:
    """Compute how unlikely the inputs of each batch norm layer are under its running statistics.

    It is the log-density of the most unlikely element: the minimum over channels c and positions of
    log N(x; μ_c, σ²_c + 1e-5).

    Args:
        layers: Batch norm layers with running statistics, in evaluation mode.
        inputs: Batch `(B, ...)`.
        forward: Runs the network that contains them.

    Returns:
        Log-densities, float32 `(B, L)`, in the order in which the layers are called first, and what `forward` returns.
        A layer that is called more than once has the minimum over its calls.

    Raises:
        ValueError: If a layer has no running statistics, is not called, or gets another number of samples.

    Example:
        >>> layer = nn.BatchNorm2d(2).eval()
        >>> found, _ = layer_abnormality([layer], torch.tensor([[[[0.0, 0.0]], [[3.0, 0.0]]]]), forward=layer)
        >>> round(float(found), 3)  # (log(2 pi) + 9) / 2
        -5.419
    """
    _check_statistics(layers)
    found: dict[int, Tensor] = {}

    def observe(layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        values = arguments[0].detach()
        if len(values) != len(inputs):
            raise ValueError(_not_reached(layer, len(inputs)))
        with full_precision(values.device):
            lowest = _lowest_density(layer, values.float())
        own = found.get(id(layer))
        found[id(layer)] = lowest if own is None else torch.minimum(own, lowest)

    handles = [layer.register_forward_pre_hook(observe) for layer in layers]
    try:
        output = forward(inputs)
    finally:
        for handle in handles:
            handle.remove()
    missing = [layer for layer in layers if id(layer) not in found]
    if missing:
        raise ValueError(_not_reached(missing[0], len(inputs)))
    return torch.stack(list(found.values()), 1), output


def called_order(layers: Sequence[nn.Module], inputs: Tensor, *, forward: Forward) -> list[nn.Module]:
    """Return layers in the order in which a forward pass calls them first; those that it does not call are left out.

    Args:
        layers: Layers of a network.
        inputs: Batch `(B, ...)`.
        forward: Runs the network.

    Example:
        >>> first, second = nn.Identity(), nn.ReLU()
        >>> called_order([second, first], torch.zeros(1), forward=nn.Sequential(first, second))
        [Identity(), ReLU()]
    """
    called: dict[int, nn.Module] = {}
    handles = [
        layer.register_forward_pre_hook(lambda own, _: called.setdefault(id(own), own) and None) for layer in layers
    ]
    try:
        forward(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return list(called.values())


@contextmanager
def amplified(layers: Sequence[nn.Module], factor: float) -> Iterator[None]:
    """Multiply the output of layers by a factor, which for batch norm multiplies its weight and its bias.

    The weights do not change, so that a network of the user stays as it is.

    Args:
        layers: Layers that return tensors.
        factor: The factor.

    Example:
        >>> layer = nn.BatchNorm1d(1).eval()
        >>> with amplified([layer], 1.5):
        ...     layer(torch.tensor([[2.0]])).round(decimals=3)
        tensor([[3.]], grad_fn=<RoundBackward1>)
    """
    handles = [layer.register_forward_hook(lambda _layer, _inputs, output: factor * output) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def log_odds_of(logits: Tensor, classes: Tensor) -> Tensor:
    """Compute the log-odds of one class per row, which do not saturate where its probability is rounded to 0 or 1.

    Args:
        logits: `(B, C)`.
        classes: int64 `(B,)`.

    Returns:
        float32 `(B,)`.

    Example:
        >>> log_odds_of(torch.tensor([[200.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1]))
        tensor([200.,   0.])
    """
    wide = logits.double()
    own = wide.gather(1, classes[:, None])[:, 0]
    others = wide.scatter(1, classes[:, None], -torch.inf).logsumexp(1)
    return (own - others).float()


def _lowest_density(layer: Any, values: Tensor) -> Tensor:
    shape = (1, -1, *[1] * (values.ndim - 2))
    mean = layer.running_mean.float().view(shape)
    variance = layer.running_var.float().view(shape) + _EPSILON
    density: Tensor = -(torch.log(2 * torch.pi * variance) + (values - mean).square() / variance) / 2
    return density.flatten(1).amin(1)


def _check_statistics(layers: Sequence[Any]) -> None:
    for layer in layers:
        if layer.running_mean is None or layer.running_var is None:
            raise ValueError(
                f"Expected batch norm with running statistics, but got {layer}.\n"
                "Leave `track_running_stats` at `True`: otherwise, predictions depend on the other samples of a batch."
            )


def _not_reached(layer: nn.Module, count: int) -> str:
    return (
        f"Expected a forward pass to pass all {count} samples through {layer}, but it did not.\n"
        "Pass a network that does."
    )
