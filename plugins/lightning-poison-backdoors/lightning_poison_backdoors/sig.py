"""SIG: sinusoidal stripes on images of the target class, whose labels stay."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from lightning_poison import Poison, Surrogate, Threat, checks
from lightning_poison.attacks import TriggerObjective
from lightning_poison.data import labels_of
from lightning_poison_backdoors.choosing import check_class, draw
from lightning_poison_backdoors.limits import amplitude_of, check_change
from lightning_poison_backdoors.settings import as_json
from lightning_poison_backdoors.sinusoid import SinusoidTrigger
from lightning_poison_backdoors.stamping import raw_images, stamped


class Sig:
    """Adds stripes to images of the target class, and leaves labels alone.

    Barni, Kallas, Tondi, ICIP 2019, arXiv 1902.11237. The stripes at test time may be stronger than those
    in the poison.

    Args:
        target_class: the class whose images are poisoned, and that striped images shall be read as.
        amplitude: Δ of the poison, in (0, 1], in units of the raw [0, 1] image.
        test_amplitude: Δ at test time; the same where it is `None`.
        frequency: f, how many stripes there are across the image.

    Raises:
        ValueError: where an argument is out of range.

    Example:
        >>> from lightning_poison.testing import TinyImages
        >>> Sig(target_class=2).craft(
        ...     TinyImages(), Threat(20), surrogates=(), holdout=None, generator=torch.Generator().manual_seed(0)
        ... )
        Poison(sig: 20 samples, raw inputs (1, 8, 8))
    """

    name = "sig"
    clean_label = True

    def __init__(
        self,
        target_class: int = 0,
        *,
        amplitude: float = 40 / 255,
        test_amplitude: float | None = None,
        frequency: float = 6,
    ) -> None:
        self.target_class = checks.positive_int("target_class", target_class, minimum=0)
        self.amplitude = amplitude_of("amplitude", amplitude)
        self.test_amplitude = None if test_amplitude is None else amplitude_of("test_amplitude", test_amplitude)
        self.frequency = checks.positive("frequency", frequency)

    def __repr__(self) -> str:
        return (
            f"Sig(target_class={self.target_class}, amplitude={self.amplitude:.4g}, "
            f"test_amplitude={self.test_amplitude}, frequency={self.frequency:g})"
        )

    def craft(
        self,
        dataset: "Dataset[Any]",
        threat: Threat,
        *,
        surrogates: Sequence[Surrogate],  # noqa: ARG002 (no model is needed)
        holdout: "Dataset[Any] | None",  # noqa: ARG002
        generator: torch.Generator,
    ) -> Poison:
        """Return as many striped samples of the target class as the budget says.

        Raises:
            TypeError: where the raw images of the data set cannot be reached.
            ValueError: where the class is absent or has fewer samples than the budget, or the stripes change more than
                the threat's epsilon.
        """
        labels = labels_of(dataset)
        target = check_class("target_class", self.target_class, labels)
        chosen = draw(labels == target, threat.budget, f"samples of class {target}", generator)
        images = raw_images(dataset, chosen)
        poisoned = stamped(images, SinusoidTrigger(amplitude=self.amplitude, frequency=self.frequency))
        check_change(threat, images, poisoned)
        at_test = SinusoidTrigger(amplitude=self.test_amplitude or self.amplitude, frequency=self.frequency)
        return Poison(
            indices=chosen,
            labels=labels[chosen],
            objective=TriggerObjective(at_test, target),
            attack=self.name,
            inputs=poisoned,
            domain="raw",
            settings=as_json(self),
        )
