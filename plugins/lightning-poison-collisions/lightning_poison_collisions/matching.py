"""How well the training gradient of a target's poisons is aligned with the gradient that would misread the target."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from lightning_poison import PixelRange, Surrogate
from lightning_poison.checks import describe, expected
from lightning_poison.data import index_blocks
from lightning_poison.models import find_layer


class TrainingGradient:
    """The gradient of a model's summed cross-entropy with respect to its parameters, as one vector.

    The model's own parameters, their flags and their `.grad` are left alone.

    Args:
        surrogate: the model; its feature layer is not used.
        pixels: how samples are normalized.
        layers: names of the layers whose parameters count, nested ones included; all where it is `None`.
        classes: how many classes the labels have, at least; logits must have as many columns.

    Raises:
        ValueError: where the model has no such layer, or there is no parameter in them.
    """

    def __init__(self, surrogate: Surrogate, pixels: PixelRange, *, layers: Sequence[str] | None, classes: int) -> None:
        self._model = surrogate.model
        self._pixels = pixels
        self._classes = classes
        self._parameters = _leaves(surrogate.model, layers)
        self.device = next(iter(self._parameters.values())).device

    def __call__(self, images: Tensor, labels: Tensor, *, create_graph: bool = False) -> Tensor:
        """Return the gradient `(D,)` for raw images `(B, ...)` in [0, 1] and int64 labels `(B,)`.

        Args:
            images: the images.
            labels: their labels.
            create_graph: whether the result is differentiable in the images.

        Raises:
            ValueError: where the model returns no logits for as many classes.
        """
        with torch.enable_grad():
            inputs = self._pixels.from_raw(images.to(self.device))
            logits = functional_call(self._model, self._parameters, (inputs,))
            self._check(logits, len(images))
            precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
            loss = F.cross_entropy(precise, labels.to(self.device), reduction="sum")
            parts = torch.autograd.grad(
                loss, list(self._parameters.values()), create_graph=create_graph, materialize_grads=True
            )
            return torch.cat([part.flatten() for part in parts])

    def _check(self, logits: object, count: int) -> None:
        fits = isinstance(logits, Tensor) and logits.ndim == 2 and len(logits) == count
        if not fits or logits.shape[1] < self._classes:  # type: ignore[attr-defined]
            what = f"a model that returns logits ({count}, C) for the {self._classes} classes of the data or more"
            hint = "Gradient matching needs a surrogate that was trained on the classes of the training set."
            raise ValueError(expected("surrogates", what, describe(logits), hint))


def _leaves(model: nn.Module, layers: Sequence[str] | None) -> dict[str, Tensor]:
    """Return the parameters that count, by name, as leaves of their own that share the model's memory."""
    chosen = {id(part) for name in ("",) if layers is None for part in find_layer(model, name).parameters()}
    chosen |= {id(part) for name in layers or () for part in find_layer(model, name).parameters()}
    found = {name: part for name, part in model.named_parameters() if id(part) in chosen}
    if not found:
        which = "the model" if layers is None else f"the layers {', '.join(map(repr, layers))}"
        raise ValueError(
            expected("layers", "layers with parameters", f"none in {which} of {type(model).__name__}")
            + "\nName a layer with weights, or leave `layers` out for all of them."
        )
    return {name: part.detach().requires_grad_() for name, part in found.items()}


class GradientMatch:
    """1 − cos(∇θ Σⱼ L(F(xⱼ, θ), yⱼ), ∇θ L(F(t, θ), y_wanted)), the mean over several surrogates.

    In [0, 2]: 0 where a step on the poisons is a step toward the misread target. The objective of gradient matching
    (Geiping et al., ICLR 2021, arXiv 2009.02276: one minus the cosine of the two gradients), for the poisons of one
    target.

    Args:
        gradients: one for each surrogate.
        target: `(1, ...)`, a raw image in [0, 1].
        wanted: what it shall be read as.
        labels: int64 `(P,)`, the labels of the poisons.
        batch_size: how many images are differentiated at once; bounds memory, and changes nothing up to rounding.
    """

    def __init__(
        self, gradients: Sequence[TrainingGradient], target: Tensor, wanted: int, labels: Tensor, *, batch_size: int
    ) -> None:
        self._gradients = tuple(gradients)
        self._labels = labels
        self._batch_size = batch_size
        self._goals = [gradient(target, torch.tensor([wanted])) for gradient in self._gradients]

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the value, a scalar, and its gradient `(P, ...)` with respect to raw images, both detached.

        The value depends on the sum over all images. So that it need not be held at once, a first pass finds the sum
        and the slope of the value in it, and a second one carries the slope back to each batch of images.
        """
        blocks = index_blocks(torch.arange(len(images)), self._batch_size)
        value, slopes = images.new_zeros(()), torch.zeros_like(images)
        for gradient, goal in zip(self._gradients, self._goals, strict=True):
            leaves = [images[block].detach().requires_grad_() for block in blocks]
            held = len(blocks) == 1
            parts = [
                gradient(leaf, self._labels[block], create_graph=held)
                for leaf, block in zip(leaves, blocks, strict=True)
            ]
            term, pull = misalignment_and_slope(torch.stack([part.detach() for part in parts]).sum(0), goal)
            value += term.to(value.device) / len(self._gradients)
            for leaf, block, part in zip(leaves, blocks, parts, strict=True):
                again = part if held else gradient(leaf, self._labels[block], create_graph=True)
                (slope,) = torch.autograd.grad(again, leaf, pull)
                slopes[block] += slope / len(self._gradients)
        return value, slopes


def misalignment_and_slope(gradient: Tensor, goal: Tensor) -> tuple[Tensor, Tensor]:
    """Return 1 − cos(g, a), a scalar, and its gradient −(â − cos(g, a) ĝ) / ‖g‖ with respect to g `(D,)`.

    Where g or a is zero the value is 1 and the gradient zero.

    Example:
        >>> misalignment_and_slope(torch.tensor([2.0, 0.0]), torch.tensor([0.0, 3.0]))
        (tensor(1.), tensor([-0.0000, -0.5000]))
    """
    length = gradient.norm()
    own, others = F.normalize(gradient, dim=0), F.normalize(goal, dim=0)
    cosine = own @ others
    slope = -(others - cosine * own) / length if length > 0 else torch.zeros_like(gradient)
    return 1 - cosine, slope
