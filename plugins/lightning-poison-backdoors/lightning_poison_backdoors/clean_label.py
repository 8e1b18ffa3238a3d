"""Clean-label backdoors: images of the target class carry the trigger and keep their label."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from lightning_poison import PixelRange, SampleSpec, Surrogate, Threat, checks
from lightning_poison.adversarial import Norm, perturb_against
from lightning_poison.attacks import Pattern, Trigger, as_pattern, check_surrogates
from lightning_poison.contexts import evaluating
from lightning_poison.data import labels_of, read_sample
from lightning_poison.randomness import seeded_rng
from lightning_poison_backdoors.backdoor import Backdoor, Images
from lightning_poison_backdoors.triggers import SinusoidTrigger, check_amplitude, corner_patches, white_square


@dataclass(eq=False, repr=False)
class Sig(Backdoor):
    """SIG: adds sinusoidal stripes to images of the target class; labels are unchanged.

    Barni, Kallas, Tondi, ICIP 2019, arXiv 1902.11237. The stripes may be stronger at test time than in the poison.

    Args:
        target_class: Class whose images are poisoned, and that is predicted for images with stripes.
        amplitude: Δ of the poison, in (0, 1], in units of the raw [0, 1] image.
        test_amplitude: Δ at test time. Default: `amplitude`.
        frequency: f, the number of stripes across the image, above 0.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> from lightning_poison.testing import TinyImages
        >>> Sig(target_class=2).craft(
        ...     TinyImages(), Threat(20), surrogates=(), holdout=None, generator=torch.Generator().manual_seed(0)
        ... )
        Poison(sig: 20 samples, raw inputs (1, 8, 8))
    """

    name = "sig"
    clean_label = True

    target_class: int = 0
    _: KW_ONLY
    amplitude: float = 40 / 255
    test_amplitude: float | None = None
    frequency: float = 6

    def __post_init__(self) -> None:
        checks.positive_int("target_class", self.target_class, minimum=0)
        self.amplitude = check_amplitude("amplitude", self.amplitude)
        if self.test_amplitude is not None:
            self.test_amplitude = check_amplitude("test_amplitude", self.test_amplitude)
        self.frequency = checks.positive("frequency", self.frequency)

    def _triggers(self, image: Tensor, source: Images, generator: torch.Generator) -> Sequence[Trigger]:  # noqa: ARG002
        amplitudes = (self.amplitude, self.test_amplitude or self.amplitude)
        return [SinusoidTrigger(amplitude=amplitude, frequency=self.frequency) for amplitude in amplitudes]


@dataclass(eq=False, repr=False)
class CleanLabelBackdoor(Backdoor):
    """Perturbs images of the target class until surrogates misclassify them and adds a patch; labels are unchanged.

    Because the perturbed image no longer supports its label, a victim learns the patch instead. Turner, Tsipras, Madry,
    "Label-consistent backdoor attacks", 2019, arXiv 1912.02771: the variants with adversarial perturbations and with
    four corners.

    Differences from the paper: several surrogates may contribute equally to the loss; perturbed images are rounded to
    gray levels, toward the original; and the patch is a white square, larger than the paper's pattern of 3 × 3 pixels,
    which is far more effective on MNIST.

    Args:
        target_class: Class whose images are poisoned, and that is predicted for triggered images.
        epsilon: Radius of the perturbation, in units of the raw [0, 1] image; in (0, 1] for `norm="linf"`. 0.3 is
            common for MNIST; the paper uses 8 / 255 to 32 / 255 on CIFAR-10.
        steps: Number of gradient steps.
        step_size: Step size. Default: 2.5 ε / steps.
        norm: `"linf"` or `"l2"`.
        corners: 1 for a patch in the lower right corner, 4 for mirrored patches in all corners.
        pattern: Patch, uint8 `(C, h, w)` or nested lists of gray levels. Default: a white square, 5 pixels wide for
            images of 28 pixels and scaled for other sizes (`triggers.white_square`).
        amplitude: Opacity of the patch in the poison, in (0, 1].
        test_amplitude: Opacity of the patch at test time. Default: `amplitude`.
        batch_size: Number of images perturbed at once; bounds memory.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> from lightning_poison.testing import TinyImages
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> CleanLabelBackdoor(1, steps=5).craft(
        ...     TinyImages(), Threat(20), surrogates=[Surrogate(model, "2")], holdout=None, generator=torch.Generator()
        ... )
        Poison(clean-label-backdoor: 20 samples, raw inputs (1, 8, 8))
    """

    name = "clean-label-backdoor"
    clean_label = True
    needs_surrogates = True

    target_class: int = 0
    _: KW_ONLY
    epsilon: float = 0.3
    steps: int = 40
    step_size: float | None = None
    norm: Norm = "linf"
    corners: int = 4
    pattern: Pattern | None = None
    amplitude: float = 1.0
    test_amplitude: float | None = None
    batch_size: int = 256

    def __post_init__(self) -> None:
        checks.positive_int("target_class", self.target_class, minimum=0)
        checks.one_of("norm", self.norm, ("linf", "l2"))
        check_radius = checks.epsilon if self.norm == "linf" else lambda value: checks.positive("epsilon", value)
        self.epsilon = check_radius(self.epsilon)
        checks.positive_int("steps", self.steps)
        self.step_size = None if self.step_size is None else checks.positive("step_size", self.step_size)
        checks.one_of("corners", self.corners, (1, 4))
        self.pattern = None if self.pattern is None else as_pattern("pattern", self.pattern)
        self.amplitude = check_amplitude("amplitude", self.amplitude)
        if self.test_amplitude is not None:
            self.test_amplitude = check_amplitude("test_amplitude", self.test_amplitude)
        checks.positive_int("batch_size", self.batch_size)

    def _triggers(self, image: Tensor, source: Images, generator: torch.Generator) -> Sequence[Trigger]:  # noqa: ARG002
        height, width = image.shape[-2:]
        pattern = white_square(height, width) if self.pattern is None else as_pattern("pattern", self.pattern)
        amplitudes = (self.amplitude, self.test_amplitude or self.amplitude)
        return [corner_patches(pattern, corners=self.corners, amplitude=amplitude) for amplitude in amplitudes]

    def _prepare(
        self,
        images: Tensor,
        dataset: "Dataset[Any]",
        indices: Tensor,
        threat: Threat,
        surrogates: Sequence[Surrogate],
        generator: torch.Generator,
    ) -> Tensor:
        """Perturb the images. The data set's transform may only scale and normalize."""
        pixels = threat.pixels
        check_transform(dataset, int(indices[0]), images[0], pixels)
        classes = int(labels_of(dataset).max()) + 1
        model = ensemble(surrogates, pixels.from_raw(images[:1].float() / 255), classes)
        parts = torch.split(images, self.batch_size)
        return torch.cat([self._perturb(model, part, pixels, generator) for part in parts])

    def _perturb(self, model: nn.Module, images: Tensor, pixels: PixelRange, generator: torch.Generator) -> Tensor:
        """Return perturbed images, uint8 `(B, C, H, W)`, rounded toward the originals."""
        device = _device_of(model)
        perturbed = perturb_against(
            model,
            pixels.from_raw(images.float() / 255).to(device),
            torch.full((len(images),), self.target_class, device=device),
            epsilon=self.epsilon,
            steps=self.steps,
            step_size=self.step_size,
            norm=self.norm,
            pixels=pixels,
            generator=generator,
        )
        change = 255 * pixels.to_raw(perturbed.cpu().float()) - images
        levels = (change + 0.01 * change.sign()).trunc()
        return (images + levels).clamp(0, 255).to(torch.uint8)


class _Ensemble(nn.Module):
    """The mean log-probabilities of several models."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.stack([model(inputs).log_softmax(1) for model in self.models]).mean(0)


def ensemble(surrogates: Sequence[Surrogate], sample: Tensor, classes: int) -> nn.Module:
    """Return one module for all surrogates.

    Args:
        surrogates: Models that map samples to logits, on one device.
        sample: Batch of one sample, `(1, ...)`.
        classes: Number of classes of the data set.

    Raises:
        ValueError: If there is no surrogate, or one does not return a logit for each class.
    """
    check_surrogates(surrogates)
    models = [surrogate.model for surrogate in surrogates]
    with evaluating(*models), torch.no_grad():
        for position, model in enumerate(models):
            logits = model(sample.to(_device_of(model)))
            if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] < classes:
                what = f"a model that returns logits (B, {classes}), one for each class of the training set"
                way = "Craft on a model that was trained on these classes."
                raise ValueError(checks.expected(f"surrogates[{position}]", what, checks.describe(logits), way))
    return models[0] if len(models) == 1 else _Ensemble(models)


def _device_of(model: nn.Module) -> torch.device:
    return next((state.device for state in model.state_dict().values()), torch.device("cpu"))


def check_transform(dataset: "Dataset[Any]", index: int, image: Tensor, pixels: PixelRange) -> None:
    """Check that a sample is its raw image, scaled and normalized as `pixels` specifies.

    Args:
        dataset: Map-style data set.
        index: Position of the sample.
        image: Raw image of the sample, uint8 `(C, H, W)`.
        pixels: Normalization of the samples.

    Raises:
        ValueError: If the sample has another shape or is outside the pixel range.
    """
    with seeded_rng(0):
        sample = read_sample(dataset, index)
    inputs = SampleSpec.detect(sample).inputs_in(sample)
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point() or inputs.shape != image.shape:
        raise ValueError(
            f"Expected samples of the shape of their raw images, float {tuple(image.shape)}, but sample {index} is "
            f"{checks.describe(inputs)}.\nPass a data set whose transform only scales and normalizes."
        )
    if not pixels.contains(inputs):
        raw = pixels.to_raw(inputs)
        raise ValueError(
            f"Expected images in [0, 1] after {pixels} is undone, but sample {index} has values from "
            f"{float(raw.min()):.3g} to {float(raw.max()):.3g}.\n"
            "Declare the normalization of the data set: `Threat(..., pixels=PixelRange(mean=..., std=...))`."
        )
