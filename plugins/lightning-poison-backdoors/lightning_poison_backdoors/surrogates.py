"""What surrogates are checked for before anything is crafted on them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from lightning_poison import PixelRange, SampleSpec, Surrogate, checks
from lightning_poison.attacks import check_surrogates
from lightning_poison.contexts import evaluating
from lightning_poison.data import read_sample
from lightning_poison.randomness import seeded_rng


class _Ensemble(nn.Module):
    """The mean of the log-probabilities of several models."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.stack([model(inputs).log_softmax(1) for model in self.models]).mean(0)


def ensemble(surrogates: Sequence[Surrogate], sample: Tensor, classes: int) -> nn.Module:
    """Return one module for all surrogates.

    Args:
        surrogates: models that map samples to logits, on one device.
        sample: a batch of one, `(1, ...)`.
        classes: how many classes the data set has.

    Raises:
        ValueError: where there is none, or one does not return a logit for each class.
    """
    check_surrogates(surrogates)
    models = [surrogate.model for surrogate in surrogates]
    with evaluating(*models), torch.no_grad():
        for number, model in enumerate(models):
            logits = model(sample.to(device_of(model)))
            if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] < classes:
                what = f"a model that returns logits (B, {classes}), one for each class of the data set"
                raise ValueError(checks.expected(f"surrogates[{number}]", what, checks.describe(logits)))
    return models[0] if len(models) == 1 else _Ensemble(models)


def device_of(model: nn.Module) -> torch.device:
    """Return where the first parameter or buffer of a model lies; the CPU where it has none."""
    return next((state.device for state in model.state_dict().values()), torch.device("cpu"))


def check_samples(dataset: "Dataset[Any]", index: int, image: Tensor, pixels: PixelRange) -> None:
    """Check that a sample is its raw image, scaled and normalized as the pixel range says.

    Args:
        dataset: a map-style data set.
        index: of the sample.
        image: its raw image, uint8 `(C, H, W)`.
        pixels: how samples are normalized.

    Raises:
        ValueError: where the sample has another shape, or lies outside the pixel range.
    """
    with seeded_rng(0):
        sample = read_sample(dataset, index)
    inputs = SampleSpec.detect(sample).inputs_in(sample)
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point() or inputs.shape != image.shape:
        raise ValueError(
            f"Expected samples like their raw images, float {tuple(image.shape)}, but sample {index} is "
            f"{checks.describe(inputs)}.\nHand over a view whose transform scales and normalizes, and no more."
        )
    if not pixels.contains(inputs):
        raw = pixels.to_raw(inputs)
        raise ValueError(
            f"Expected images that lie in [0, 1] once {pixels} is undone, but sample {index} has values from "
            f"{float(raw.min()):.3g} to {float(raw.max()):.3g}.\n"
            "Say how the data set normalizes: `Threat(..., pixels=PixelRange(mean=..., std=...))`."
        )
