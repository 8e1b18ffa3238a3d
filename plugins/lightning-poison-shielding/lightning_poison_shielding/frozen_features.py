"""A surrogate's frozen features as a function of raw images, scaled, with a constant for the head's bias."""

import torch
from torch import Tensor

from lightning_poison import PixelRange, Surrogate
from lightning_poison.attacks import RawFeatures
from lightning_poison.checks import expected


class FrozenFeatures:
    """Maps raw images `(B, ...)` in [0, 1] to features `(B, D + 1)`, the last of them 1, on the surrogate's device.

    The model may have any number of outputs, since it is run up to its feature layer only. Features are divided by one
    number, so that penalties mean the same for every network; it is 1 until `fit_scale` is called.

    Args:
        surrogate: a model and its feature layer.
        pixels: how samples are normalized.
        batch_size: how many images are mapped at once where no gradient is asked for.

    Raises:
        ValueError: where the model has no such layer.
    """

    def __init__(self, surrogate: Surrogate, pixels: PixelRange, *, batch_size: int) -> None:
        self._extract = RawFeatures(surrogate, pixels)
        self._name = f"layer `{surrogate.feature_layer}` of {type(surrogate.model).__name__}"
        self._scale = 1.0
        self.batch_size = batch_size
        self.device = self._extract.device

    def __call__(self, images: Tensor) -> Tensor:
        """Return the features, differentiable in the images."""
        features = self._extract(images).float() / self._scale
        return torch.cat([features, features.new_ones(len(features), 1)], 1)

    def known(self, images: Tensor) -> Tensor:
        """Return the features of any number of images, without gradients.

        Raises:
            ValueError: where they are not finite.
        """
        with torch.no_grad():
            features = torch.cat([self(block) for block in torch.split(images, self.batch_size)])
        if not torch.isfinite(features).all():
            raise ValueError(
                expected("surrogates", f"models with finite features, of {self._name} too", "NaN or infinite values")
                + "\nLook at its weights, or name another `feature_layer`."
            )
        return features

    def fit_scale(self, features: Tensor) -> Tensor:
        """Choose the divisor, so that the mean square of these features is 1, and return them divided by it.

        Args:
            features: `(N, D + 1)`, from `known`, before any other call of this.

        Raises:
            ValueError: where they are the same for all images.
        """
        varying = features[:, :-1]
        if not (varying.std(0, correction=0) > 0).any():
            raise ValueError(
                expected("surrogates", f"models whose features tell images apart, of {self._name} too", "constant ones")
                + "\nName another `feature_layer`."
            )
        self._scale = float(varying.square().mean().sqrt())
        return torch.cat([varying / self._scale, features[:, -1:]], 1)

    def backward(self, images: Tensor, gradient: Tensor) -> Tensor:
        """Return the gradient `(B, ...)` in the images, given that `(B, D + 1)` in their features, block by block."""
        parts = []
        for block, rows in zip(
            torch.split(images, self.batch_size), torch.split(gradient, self.batch_size), strict=True
        ):
            with torch.enable_grad():
                leaf = block.detach().requires_grad_()
                (part,) = torch.autograd.grad(self(leaf), leaf, rows)
            parts.append(part)
        return torch.cat(parts)
