"""The frozen features of a surrogate as a function of raw images, scaled, with a constant for the bias of the head."""

import torch
from torch import Tensor

from lightning_poison import PixelRange, Surrogate
from lightning_poison.attacks import RawFeatures
from lightning_poison.checks import expected


class FrozenFeatures:
    """Maps raw images `(B, ...)` in [0, 1] to features `(B, D + 1)`, the last of them 1, on the surrogate's device.

    The model runs up to its feature layer only, so it may have any number of outputs. Features are divided by one
    number, so that penalties mean the same for every network. It is 1 until `fit_scale` is called.

    Args:
        surrogate: Model and its feature layer.
        pixels: Normalization of the samples.
        batch_size: Number of images mapped at once by `detached` and `input_gradient`.

    Raises:
        ValueError: If the model has no such layer.
    """

    def __init__(self, surrogate: Surrogate, pixels: PixelRange, *, batch_size: int) -> None:
        self._extract = RawFeatures(surrogate, pixels)
        self._name = f"layer `{surrogate.feature_layer}` of {type(surrogate.model).__name__}"
        self._scale = 1.0
        self.batch_size = batch_size
        self.device = self._extract.device

    def __call__(self, images: Tensor) -> Tensor:
        """Return the features, differentiable with respect to the images."""
        features = self._extract(images).float() / self._scale
        return torch.cat([features, features.new_ones(len(features), 1)], 1)

    def detached(self, images: Tensor) -> Tensor:
        """Return the features of any number of images, without gradients.

        Raises:
            ValueError: If they are not finite.
        """
        with torch.no_grad():
            features = torch.cat([self(block) for block in torch.split(images, self.batch_size)])
        if not torch.isfinite(features).all():
            what = f"models with finite features, including {self._name}"
            hint = "Check its weights, or name another `feature_layer`."
            raise ValueError(expected("surrogates", what, "NaN or infinite values", hint))
        return features

    def fit_scale(self, features: Tensor) -> Tensor:
        """Set the divisor so that the mean square of these features is 1, and return the scaled features.

        Args:
            features: Features from `detached` before the first call of this method, `(N, D + 1)`.

        Raises:
            ValueError: If they are the same for all images.
        """
        varying = features[:, :-1]
        if not (varying.std(0, correction=0) > 0).any():
            what = f"models whose features differ between images, including {self._name}"
            raise ValueError(expected("surrogates", what, "constant features", "Name another `feature_layer`."))
        self._scale = float(varying.square().mean().sqrt())
        return torch.cat([varying / self._scale, features[:, -1:]], 1)

    def input_gradient(self, images: Tensor, gradient: Tensor) -> Tensor:
        """Return the gradient `(B, ...)` with respect to images, given that `(B, D + 1)` with respect to features."""
        parts = []
        blocks, rows = torch.split(images, self.batch_size), torch.split(gradient, self.batch_size)
        for block, block_rows in zip(blocks, rows, strict=True):
            with torch.enable_grad():
                leaf = block.detach().requires_grad_()
                (part,) = torch.autograd.grad(self(leaf), leaf, block_rows)
            parts.append(part)
        return torch.cat(parts)
