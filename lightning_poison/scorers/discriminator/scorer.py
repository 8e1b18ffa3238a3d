"""`DiscriminatorScorer`: whether a sample and its label look like a real pair.

Smutny, "Dirty and clean-label attack detection using GAN discriminators", 2025, arXiv 2506.01224; by default without a
generator, with the projection of Miyato and Koyama, "cGANs with projection discriminator", ICLR 2018, arXiv 1802.05637.
"""

import functools
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_poison.checks import expected, one_of, positive_int
from lightning_poison.data.pixel_range import PixelRange
from lightning_poison.models.fitting import FitSettings, fit_module
from lightning_poison.runtime import LocalRuntime, Runtime
from lightning_poison.scorers.discriminator.gan import GanSettings, fit_gans, positions_by_class
from lightning_poison.scorers.discriminator.gan_models import ClassDiscriminators
from lightning_poison.scorers.discriminator.mismatch import NegativeSettings, mismatch_loss
from lightning_poison.scorers.discriminator.projection import ProjectionDiscriminator
from lightning_poison.scorers.network_scorer import NetworkScorer
from lightning_poison.scorers.training_data import TrainingData

Mode = Literal["mismatch", "gan"]
Head = Literal["label", "texture"]

MISMATCH_FIT = FitSettings(epochs=6, batch_size=64)
"""Default training settings of a discriminator without a generator."""


class DiscriminatorScorer(NetworkScorer):
    """Scores a sample by minus the logit of a discriminator for the pair of the sample and its label.

    The mode `"mismatch"` trains one projection discriminator for all classes on known-clean samples. Fakes are the same
    samples under the other labels, and copies with noise under their own label; there is no generator. On MNIST it
    detects wrong labels and changed images far better than discriminators trained against generators, in a fraction of
    the time (`benchmarks/discriminator_mnist.py`).

    The mode `"gan"` is the paper's: one discriminator per class against a generator of the same class, all classes
    trained at once. It differs from the paper in what that does not state: numbers of channels, dropout, activations.

    On images with a flat background, counting pixels detects noise in the background as well; see
    `PixelCountingScorer`. The head `"texture"` is trained on noise that leaves the background unchanged. It learns less
    about labels, so use it as an additional scorer beside one with the head `"label"`.

    Args:
        mode: `"mismatch"`, for images or vectors, or `"gan"`, for images. Default: `"mismatch"`.
        head: `"label"`, or `"texture"` for noise on ink or texture only, for images in the mode `"mismatch"`. Default:
            `"label"`.
        pixels: Pixel domain of images; vectors are standardized. Default: raw images in [0, 1].
        width: Channels of the first convolution, in the mode `"gan"` those of each class. Default: 16.
        negatives: Negatives of the mode `"mismatch"`. Default: `NegativeSettings()`.
        fit_settings: Training settings of the mode `"mismatch"`. Default: 6 epochs in batches of 64.
        gan_settings: Training settings of the mode `"gan"`. Default: `GanSettings()`, the paper's table.

    Raises:
        ValueError: If an argument is out of range, or has no meaning in the mode.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> labels = torch.arange(64) % 2
        >>> images = 0.3 + 0.4 * labels[:, None, None, None] + torch.zeros(64, 1, 8, 8)
        >>> quick = FitSettings(epochs=5, batch_size=32, min_steps=60)
        >>> scorer = DiscriminatorScorer(fit_settings=quick).fit(TensorDataset(images, labels))
        >>> scores = scorer.score_batch(images[:2], torch.tensor([0, 0]))
        >>> bool(scores[1] > scores[0])
        True
    """

    name = "discriminator"

    def __init__(
        self,
        mode: Mode = "mismatch",
        *,
        head: Head = "label",
        pixels: PixelRange = PixelRange(),  # noqa: B008 (frozen)
        width: int = 16,
        negatives: NegativeSettings | None = None,
        fit_settings: FitSettings | None = None,
        gan_settings: GanSettings | None = None,
    ) -> None:
        self.mode: Mode = one_of("mode", mode, ("mismatch", "gan"))
        self.head: Head = one_of("head", head, ("label", "texture"))
        self.pixels = pixels
        self.width = positive_int("width", width)
        if mode == "gan":
            _check_unused(mode, {"head": head == "texture", "negatives": negatives, "fit_settings": fit_settings})
            self.name = "discriminator-gan"
        else:
            _check_unused(mode, {"gan_settings": gan_settings})
            self.name = "discriminator-texture" if head == "texture" else "discriminator"
        self.negatives = negatives or NegativeSettings()
        self.fit_settings = fit_settings or MISMATCH_FIT
        self.gan_settings = gan_settings or GanSettings() if mode == "gan" else None

    def state(self) -> Mapping[str, Tensor]:
        """Return copies of the weights of the network, the shape of a sample, and the number of classes.

        Raises:
            NotFittedError: Before a fit.
        """
        return {**super().state(), "num_classes": torch.tensor(self._network.num_classes)}

    def _build(
        self, shape: tuple[int, ...], num_classes: int, *, seed: int = 0
    ) -> ProjectionDiscriminator | ClassDiscriminators:
        options: dict[str, Any] = {"pixels": self.pixels, "width": self.width, "seed": seed}
        if self.gan_settings is not None:
            return ClassDiscriminators(shape, num_classes, dropout=self.gan_settings.dropout, **options)
        network = ProjectionDiscriminator(shape, num_classes, **options)
        if self.head == "texture" and not network.has_images:
            raise ValueError(expected("inputs", "images, for the head 'texture'", f"vectors {shape}"))
        return network

    def _train(
        self, trusted: Any, runtime: Runtime | None, generator: torch.Generator, max_steps: int | None = None
    ) -> tuple[nn.Module, int]:
        data, runtime = (
            TrainingData.of(trusted, why="A label needs other labels to differ from."),
            runtime or LocalRuntime(),
        )
        seed = int(torch.randint(2**31, (1,), generator=generator))
        network = self._build(data.shape, data.num_classes, seed=seed)
        data.check_range(self.pixels)
        options: dict[str, Any] = {
            "sample": data.sample,
            "runtime": runtime,
            "generator": generator,
            "max_steps": max_steps,
        }
        if isinstance(network, ClassDiscriminators):
            settings = self.gan_settings or GanSettings()
            counts = [len(own) for own in positions_by_class(data.labels, data.num_classes)]
            fit_gans(network, trusted, data.labels, width=self.width, settings=settings, **options)
            return network, settings.total_steps(counts)
        if not network.has_images:
            network.standardize(*data.moments(runtime.num_workers))
        loss: Any = functools.partial(
            mismatch_loss,
            settings=self.negatives,
            texture=self.head == "texture",
            generator=torch.Generator().manual_seed(int(torch.randint(2**31, (1,), generator=generator))),
        )
        description = f"Fitting the {self.name} scorer"
        fit_module(network, trusted, loss, settings=self.fit_settings, description=description, **options)
        return network, self.fit_settings.total_steps(len(data.labels))

    def _label_scores(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self._network(inputs)
        return -logits


def _check_unused(mode: str, given: Mapping[str, object]) -> None:
    """Raise if an argument that has no meaning in the mode was passed."""
    for name, value in given.items():
        if value not in (None, False):
            other = "mismatch" if mode == "gan" else "gan"
            way = f"It belongs to the mode {other!r}."
            raise ValueError(expected(name, f"left out in the mode {mode!r}", value, way))
