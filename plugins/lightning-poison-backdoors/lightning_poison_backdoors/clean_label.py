"""The clean-label backdoor: images of the target class that are hard to read, with a trigger that is easy."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from lightning_poison import Poison, Surrogate, Threat, checks
from lightning_poison.adversarial import perturb_against
from lightning_poison.adversarial.pgd import Norm
from lightning_poison.attacks import TriggerObjective
from lightning_poison.data import labels_of
from lightning_poison_backdoors.chain import corner_patches
from lightning_poison_backdoors.choosing import check_class, draw
from lightning_poison_backdoors.limits import amplitude_of, check_change
from lightning_poison_backdoors.patterns import Pattern, as_pattern, white_square
from lightning_poison_backdoors.settings import as_call, as_json
from lightning_poison_backdoors.stamping import raw_images, stamped
from lightning_poison_backdoors.surrogates import check_samples, device_of, ensemble


class CleanLabelBackdoor:
    """Perturbs images of the target class until surrogates misread them, adds a patch, and leaves labels alone.

    Since the image itself no longer speaks for its label, a victim learns the patch in its stead. Turner, Tsipras,
    Madry, "Label-consistent backdoor attacks", 2019, arXiv 1912.02771: the variant with adversarial perturbations,
    and that with four corners.

    Differences from the paper: several surrogates may share the loss evenly; perturbed images are rounded to gray
    levels, toward the original; and the patch is a white square, larger than the paper's pattern of 3 × 3 pixels, with
    which the attack does far better on MNIST.

    Args:
        target_class: the class whose images are poisoned, and that triggered images shall be read as.
        epsilon: the radius of the perturbation, in units of the raw [0, 1] image; for `norm="linf"` in (0, 1]. 0.3 is
            usual for MNIST; the paper uses 8 / 255 to 32 / 255 on CIFAR-10.
        steps: how many gradients are taken.
        step_size: the length of a step; 2.5 ε / steps where it is `None`.
        norm: `"linf"` or `"l2"`.
        corners: the patch stands in the lower right, 1, or mirrored in all 4 corners.
        pattern: the patch, uint8 `(C, h, w)` or nested lists of gray levels; where it is `None` a white square, 5
            pixels wide on images of 28 and in proportion on others (`patterns.white_square`).
        amplitude: how far each pixel moves toward the patch in the poison, in (0, 1].
        test_amplitude: the same at test time; that of the poison where it is `None`.
        batch_size: how many images are perturbed at once; bounds memory.

    Raises:
        ValueError: where an argument is out of range.

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

    def __init__(
        self,
        target_class: int = 0,
        *,
        epsilon: float = 0.3,
        steps: int = 40,
        step_size: float | None = None,
        norm: Norm = "linf",
        corners: int = 4,
        pattern: Pattern | None = None,
        amplitude: float = 1.0,
        test_amplitude: float | None = None,
        batch_size: int = 256,
    ) -> None:
        self.target_class = checks.positive_int("target_class", target_class, minimum=0)
        self.norm = checks.one_of("norm", norm, ("linf", "l2"))
        self.epsilon = checks.epsilon(epsilon) if norm == "linf" else checks.positive("epsilon", epsilon)
        self.steps = checks.positive_int("steps", steps)
        self.step_size = None if step_size is None else checks.positive("step_size", step_size)
        self.corners = checks.one_of("corners", corners, (1, 4))
        self.pattern = None if pattern is None else as_pattern("pattern", pattern)
        self.amplitude = amplitude_of("amplitude", amplitude)
        self.test_amplitude = None if test_amplitude is None else amplitude_of("test_amplitude", test_amplitude)
        self.batch_size = checks.positive_int("batch_size", batch_size)

    def __repr__(self) -> str:
        return as_call(self)

    def craft(
        self,
        dataset: "Dataset[Any]",
        threat: Threat,
        *,
        surrogates: Sequence[Surrogate],
        holdout: "Dataset[Any] | None",  # noqa: ARG002 (targets are not needed)
        generator: torch.Generator,
    ) -> Poison:
        """Return as many perturbed and patched samples of the target class as the budget says.

        Args:
            dataset: the training set; its transform may scale and normalize, and no more.
            threat: the budget and the pixel range; an `epsilon` of its own bounds perturbation and patch together.
            surrogates: one at least, trained on such data.
            holdout: not used.
            generator: draws samples and random starts.

        Raises:
            TypeError: where the raw images of the data set cannot be reached.
            ValueError: where there is no surrogate or one with too few outputs, the class is absent or has fewer
                samples than the budget, images lie outside the pixel range, the patch does not fit them, or poison
                changes more than the threat's epsilon.
        """
        labels = labels_of(dataset)
        target = check_class("target_class", self.target_class, labels)
        chosen = draw(labels == target, threat.budget, f"samples of class {target}", generator)
        originals = raw_images(dataset, chosen)
        check_samples(dataset, int(chosen[0]), originals[0], threat.pixels)
        model = ensemble(surrogates, threat.pixels.from_raw(originals[:1].float() / 255), int(labels.max()) + 1)
        height, width = originals.shape[-2:]
        pattern = white_square(height, width) if self.pattern is None else self.pattern
        trigger, at_test = (
            corner_patches(pattern, corners=self.corners, amplitude=amplitude)
            for amplitude in (self.amplitude, self.test_amplitude or self.amplitude)
        )
        parts = torch.split(originals, self.batch_size)
        perturbed = torch.cat([self._perturb(model, part, threat, generator) for part in parts])
        poisoned = stamped(perturbed, trigger)
        check_change(threat, originals, poisoned)
        return Poison(
            indices=chosen,
            labels=labels[chosen],
            objective=TriggerObjective(at_test, target),
            attack=self.name,
            inputs=poisoned,
            domain="raw",
            settings=as_json(self),
        )

    def _perturb(self, model: nn.Module, images: Tensor, threat: Threat, generator: torch.Generator) -> Tensor:
        """Return perturbed images, uint8 `(B, C, H, W)`, rounded toward the originals."""
        device = device_of(model)
        found = perturb_against(
            model,
            threat.pixels.from_raw(images.float() / 255).to(device),
            torch.full((len(images),), self.target_class, device=device),
            epsilon=self.epsilon,
            steps=self.steps,
            step_size=self.step_size,
            norm=self.norm,
            pixels=threat.pixels,
            generator=generator,
        )
        change = 255 * threat.pixels.to_raw(found.cpu().float()) - images
        levels = (change + 0.01 * change.sign()).trunc()
        return (images + levels).clamp(0, 255).to(torch.uint8)
