"""Features of any model: the output of a named layer."""

import difflib
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from lightning_poison.checks import describe, expected, printable
from lightning_poison.models.user_network import run_network

_SHOWN_NAMES = 20
"""Layer names shown from either end of a long list, since features are often those of a layer near the end."""


def find_layer(model: nn.Module, layer: str) -> nn.Module:
    """Return a layer by its name in `model.named_modules()`.

    Raises:
        ValueError: If there is no such layer. The message lists the available names and the closest match.

    Example:
        >>> find_layer(nn.Sequential(nn.Flatten(), nn.ReLU()), "1")
        ReLU()
    """
    layers: dict[str, nn.Module] = dict(model.named_modules())
    if layer in layers:
        return layers[layer]
    names = [name for name in layers if name]
    if not names:
        raise ValueError(
            f"Expected a layer name of {type(model).__name__}, but got {_quoted(layer)}, and it has no layers.\n"
            'Use "" for the model itself.'
        )
    hidden = len(names) - 2 * _SHOWN_NAMES
    listed = names if hidden <= 0 else [*names[:_SHOWN_NAMES], f"… {hidden} more …", *names[-_SHOWN_NAMES:]]
    shown = ", ".join(printable(name) for name in listed)
    closest = difflib.get_close_matches(str(layer), names, n=1, cutoff=0.3)
    raise ValueError(
        expected("layer", f"one of the layers of {type(model).__name__} ({shown})", _quoted(layer))
        + (f"\nThe closest name is `{closest[0]}`." if closest else "")
    )


class FeatureExtractor:
    """Maps a batch to the output of a named layer, and stops the forward pass there.

    The result is the layer's own output, even if the next layer works in place. If the model calls the layer more than
    once in a forward pass, the first call counts. Mode and device of the model do not change.

    Args:
        model: Any module.
        layer: Name of the layer in `model.named_modules()`. `""` is the model itself.
        forward: Function that runs the model on a batch. Default: the model.

    Raises:
        ValueError: If the model has no such layer.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> FeatureExtractor(model, "2")(torch.zeros(5, 1, 2, 2)).shape
        torch.Size([5, 3])
    """

    def __init__(self, model: nn.Module, layer: str, *, forward: Callable[[Tensor], Any] | None = None) -> None:
        self.model = model
        self.layer = layer
        self._forward: Callable[[Tensor], Any] = model if forward is None else forward
        self._module = find_layer(model, layer)

    def __repr__(self) -> str:
        return f"FeatureExtractor({type(self.model).__name__}, {self.layer!r})"

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the features `(B, D)` of a batch `(B, ...)`, flattened from dimension 1 and differentiable.

        Raises:
            TypeError: If the layer does not return a tensor.
            ValueError: If the layer is not reached, or does not return one vector per sample.
        """
        hook = self._module.register_forward_hook(_stop)
        try:
            self._forward(inputs)
        except _LayerReached as reached:
            return self._as_features(reached.output, len(inputs))
        finally:
            hook.remove()
        raise ValueError(_not_reached(self.model, self.layer))

    def _as_features(self, output: Any, count: int) -> Tensor:
        if not isinstance(output, Tensor):
            raise TypeError(
                f"Expected layer `{self.layer}` to return a tensor, but got {type(output).__name__}.\n"
                "Name a layer inside it, or the one after it."
            )
        if output.ndim < 2 or len(output) != count:
            raise ValueError(
                f"Expected layer `{self.layer}` to return a vector for each of the {count} samples along the first "
                f"dimension, but got {describe(output)}.\nName another layer."
            )
        return output.flatten(1)


def shifted_output(model: nn.Module, layer: str, inputs: Tensor, shift: Tensor) -> Any:
    """Run a model with a vector added to the output of a named layer, and return its output.

    Args:
        model: Any module. Its mode does not change.
        layer: Name of the layer in `model.named_modules()`.
        inputs: Batch `(B, ...)`.
        shift: Vector to add to the features of each sample, `(D,)`, in the layout of `FeatureExtractor`. If the model
            calls the layer more than once, only the first call is shifted.

    Raises:
        ValueError: If there is no such layer, or it is not reached.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Flatten(), nn.Identity(), nn.Linear(4, 2, bias=False))
        >>> with torch.no_grad():
        ...     shifted = shifted_output(model, "1", torch.zeros(1, 1, 2, 2), torch.ones(4))
        ...     torch.allclose(shifted, model[2].weight.sum(1)[None])
        True
    """
    calls = []

    def add(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor | None:
        calls.append(True)
        return output + shift.to(output).view(1, *output.shape[1:]) if len(calls) == 1 else None

    hook = find_layer(model, layer).register_forward_hook(add)
    try:
        output = run_network(model, inputs)
    finally:
        hook.remove()
    if not calls:
        raise ValueError(_not_reached(model, layer))
    return output


def _not_reached(model: nn.Module, layer: str) -> str:
    return (
        f"Expected {type(model).__name__} to call its layer `{layer}`, but a forward pass did not.\n"
        "Name a layer that the model calls in `forward`."
    )


class _LayerReached(BaseException):
    """Ends the forward pass at the layer. Not an error, and not caught by `except Exception` in the model."""

    def __init__(self, output: Any) -> None:
        self.output = output


def _stop(_module: nn.Module, _inputs: Any, output: Any) -> None:
    raise _LayerReached(output)


def _quoted(layer: object) -> str:
    return repr(printable(layer))
