"""Naming a layer of any model and reading its output as feature vectors."""

import difflib
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from lightning_poison.checks import describe, expected, printable

_SHOWN_NAMES = 20  # at either end: features are taken near the last layers, which a list cut short would leave out


class FeatureExtractor:
    """Maps a batch to the output of a named layer, and runs the model no further than that layer.

    The result is the layer's own output, also where the next layer works in place. Where a model calls the layer more
    than once in a forward pass, the first call counts. The model stays in the mode, and on the device, it is found in.

    Args:
        model: any module.
        layer: a name as `model.named_modules()` gives it; `""` is the model itself.
        ask: runs the model on a batch; its `forward` where it is `None`.

    Raises:
        ValueError: where the model has no layer of that name.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> FeatureExtractor(model, "2")(torch.zeros(5, 1, 2, 2)).shape
        torch.Size([5, 3])
    """

    def __init__(self, model: nn.Module, layer: str, *, ask: Callable[[Tensor], Any] | None = None) -> None:
        self.model = model
        self.layer = layer
        self._ask = ask
        self._module = find_layer(model, layer)

    def __repr__(self) -> str:
        return f"FeatureExtractor({type(self.model).__name__}, {self.layer!r})"

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the features `(B, D)` of a batch `(B, ...)`, flattened from dimension 1 and differentiable.

        Raises:
            TypeError: where the layer returns something else than a tensor.
            ValueError: where it is not reached, or returns no vector for each sample.
        """
        hook = self._module.register_forward_hook(_stop)
        try:
            (self._ask or self.model)(inputs)
        except _LayerReached as reached:
            return self._as_features(reached.output, len(inputs))
        finally:
            hook.remove()
        raise ValueError(_unreached(self.model, self.layer))

    def _as_features(self, output: Any, count: int) -> Tensor:
        if not isinstance(output, Tensor):
            raise TypeError(
                f"Expected layer `{self.layer}` to return a tensor, but got {type(output).__name__}.\n"
                "Name a layer inside it, or the one behind it."
            )
        if output.ndim < 2 or len(output) != count:
            raise ValueError(
                f"Expected layer `{self.layer}` to return a vector for each of the {count} samples, first dimension "
                f"first, but got {describe(output)}.\nName another layer."
            )
        return output.flatten(1)


def layer_output(model: nn.Module, layer: str, inputs: Tensor) -> Tensor:
    """Return the output of a named layer for one batch; for many batches build a `FeatureExtractor`.

    Args:
        model: any module; it stays in the mode it is found in.
        layer: a name as `model.named_modules()` gives it; `""` is the model itself.
        inputs: a batch `(B, ...)`.

    Returns:
        `(B, D)`, flattened from dimension 1, differentiable in inputs and parameters.

    Raises:
        TypeError: where the layer returns something else than a tensor.
        ValueError: where there is no such layer, it is not reached, or returns no vector for each sample.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 10))
        >>> layer_output(model, "1", torch.zeros(4, 1, 5, 5)).shape
        torch.Size([4, 18])
    """
    return FeatureExtractor(model, layer)(inputs)


def shifted_output(model: nn.Module, layer: str, inputs: Tensor, shift: Tensor) -> Any:
    """Run a model with something added to the output of a named layer, and return what it returns.

    Args:
        model: any module; it stays in the mode it is found in.
        layer: a name as `model.named_modules()` gives it.
        inputs: a batch `(B, ...)`.
        shift: `(D,)`, added to the features of each sample, as a `FeatureExtractor` returns them. Where the model calls
            the layer more than once, the first call counts.

    Raises:
        ValueError: where there is no such layer, or it is not reached.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Flatten(), nn.Identity(), nn.Linear(4, 2, bias=False))
        >>> with torch.no_grad():
        ...     moved = shifted_output(model, "1", torch.zeros(1, 1, 2, 2), torch.ones(4))
        ...     torch.allclose(moved, model[2].weight.sum(1)[None])
        True
    """
    reached = []

    def add(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor | None:
        reached.append(True)
        return output + shift.to(output).view(1, *output.shape[1:]) if len(reached) == 1 else None

    hook = find_layer(model, layer).register_forward_hook(add)
    try:
        found = model(inputs)
    finally:
        hook.remove()
    if not reached:
        raise ValueError(_unreached(model, layer))
    return found


def _unreached(model: nn.Module, layer: str) -> str:
    return (
        f"Expected {type(model).__name__} to call its layer `{layer}`, but a forward pass did not.\n"
        "Name a layer that the model's `forward` runs through."
    )


def find_layer(model: nn.Module, layer: str) -> nn.Module:
    """Return a layer by its name, as `model.named_modules()` gives it.

    Raises:
        ValueError: where there is none; the message lists the names there are and the nearest.

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
            f"Expected a layer name of {type(model).__name__}, but got {_shown(layer)}, and it has no layers.\n"
            'Write "" for the model itself.'
        )
    cut = len(names) - 2 * _SHOWN_NAMES
    listed = names if cut <= 0 else [*names[:_SHOWN_NAMES], f"… {cut} more …", *names[-_SHOWN_NAMES:]]
    shown = ", ".join(printable(name) for name in listed)
    nearest = difflib.get_close_matches(str(layer), names, n=1, cutoff=0.3)
    raise ValueError(
        expected("layer", f"one of the layers of {type(model).__name__} ({shown})", _shown(layer))
        + (f"\nThe nearest name is `{nearest[0]}`." if nearest else "")
    )


class _LayerReached(BaseException):
    """Ends the forward pass at the layer, past any `except Exception` of the model's; no error."""

    def __init__(self, output: Any) -> None:
        self.output = output


def _stop(_module: nn.Module, _inputs: Any, output: Any) -> None:
    raise _LayerReached(output)


def _shown(layer: object) -> str:
    return repr(printable(layer))
