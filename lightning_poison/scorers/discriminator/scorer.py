"""`DiscriminatorScorer`: is this sample what its label says that it ought to be?

Smutny, "Dirty and clean-label attack detection using GAN discriminators", 2025, arXiv 2506.01224; by default without a
generator, with the projection of Miyato and Koyama, "cGANs with projection discriminator", ICLR 2018, arXiv 1802.05637.
"""

import functools
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal, Self

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_poison.checks import expected, one_of, positive_int
from lightning_poison.contexts import evaluating
from lightning_poison.data.pixel_range import PixelRange
from lightning_poison.errors import NotFittedError
from lightning_poison.models.fitting import FitSettings, fit_module, in_channels_last
from lightning_poison.runtime import LocalRuntime, Runtime
from lightning_poison.sanitization.dataset_scores import score_dataset
from lightning_poison.scorers.discriminator.gan import GanSettings, fit_gans, members_of
from lightning_poison.scorers.discriminator.gan_models import ClassDiscriminators
from lightning_poison.scorers.discriminator.mismatch import NegativeSettings, mismatch_loss
from lightning_poison.scorers.discriminator.projection import ProjectionDiscriminator
from lightning_poison.scorers.training_data import TrustedSamples

Mode = Literal["mismatch", "gan"]
Head = Literal["label", "texture"]

MISMATCH_FIT = FitSettings(epochs=6, batch_size=64)
"""How a discriminator without a generator is trained where nothing else is asked for."""

_NOT_FITTED = "Expected a fitted DiscriminatorScorer, but it has no model yet.\nCall `fit(trusted)`."


class DiscriminatorScorer:
    """Scores a sample by minus the logit that a discriminator gives to the pair of it and its label.

    The mode `"mismatch"` trains one projection discriminator for all classes on samples that are believed. Fakes are
    the same samples under the other labels, and copies with noise under their own; there is no generator. On MNIST it
    finds wrong labels and changed images far better than discriminators trained against generators, in a fraction of
    the time (`benchmarks/discriminator_mnist.py`).

    The mode `"gan"` is the paper's: a discriminator for each class against a generator of its own, all classes trained
    at once. It differs from the paper in what that does not state: numbers of channels, dropout, activations.

    On images with a flat background, noise there is found by counting pixels as well; see `PixelCountingScorer`. The
    head `"texture"` is trained on noise that leaves the background alone. It knows less about labels, so it is a
    scorer of its own, to stand beside one with the head `"label"`.

    Args:
        mode: `"mismatch"`, for images or vectors, or `"gan"`, for images.
        head: `"label"`, or `"texture"`: the copies are changed on ink or texture only. Images in the mode `"mismatch"`.
        pixels: the pixel domain of images; vectors are standardized.
        width: how many channels the first convolution has, in the mode `"gan"` that of each class.
        negatives: the fakes of the mode `"mismatch"`; `None` for the defaults.
        fit_settings: how the mode `"mismatch"` trains; `None` for 6 epochs in batches of 64.
        gan_settings: how the mode `"gan"` trains; `None` for the paper's table.

    Raises:
        ValueError: where an argument is out of its range, or has no meaning in the mode.

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
    is_control = False

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
            _refuse(mode, {"head": head == "texture", "negatives": negatives, "fit_settings": fit_settings})
            self.name = "discriminator-gan"
        else:
            _refuse(mode, {"gan_settings": gan_settings})
            self.name = "discriminator-texture" if head == "texture" else "discriminator"
        self.negatives = negatives or NegativeSettings()
        self.fit_settings = fit_settings or MISMATCH_FIT
        self.gan_settings = gan_settings or GanSettings()
        self._model: ProjectionDiscriminator | ClassDiscriminators | None = None

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in ("head", "pixels", "width", *self._used()))
        return f"DiscriminatorScorer({self.mode!r}, {shown})"

    @property
    def is_fitted(self) -> bool:
        """Whether it can score."""
        return self._model is not None

    def fit(
        self, trusted: "Dataset[Any]", *, runtime: Runtime | None = None, generator: torch.Generator | None = None
    ) -> Self:
        """Train a model of its own on samples that are believed, and return itself; see `Scorer.fit`.

        Raises:
            FloatingPointError: where the loss is no longer finite.
            UnreadableSampleError: where a sample cannot be read.
            ValueError: where there are fewer than two classes, in the mode `"gan"` fewer than two samples of a class;
                where samples are neither images nor vectors, or lie outside the declared pixel range.
        """
        self._model, _ = self._fitted(trusted, runtime, generator or torch.Generator().manual_seed(0), None)
        return self

    def rehearse(self, trusted: "Dataset[Any]", *, steps: int, runtime: Runtime | None = None) -> int:
        """Train a throw-away copy for a few steps, so that a caller can time them; return the steps of a whole fit."""
        return self._fitted(trusted, runtime, torch.Generator().manual_seed(0), steps)[1]

    def score_labels(self, inputs: Tensor) -> Tensor:
        """Return the score of each sample under each label.

        Args:
            inputs: float `(B, ...)`, as the data set returns them.

        Returns:
            float32 `(B, K)`; differentiable in `inputs`.

        Raises:
            NotFittedError: before a fit.
            ValueError: where samples have another shape than those that it was fitted on.
        """
        if self._model is None:
            raise NotFittedError(_NOT_FITTED)
        if next(self._model.parameters()).device != inputs.device:
            self._model.to(inputs.device)
        with evaluating(self._model):
            logits: Tensor = self._model(inputs)
        return -logits

    def score_batch(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Return the score of each sample under the label that it carries, float32 `(B,)`; see `score_labels`."""
        return self.score_labels(inputs).gather(1, labels[:, None])[:, 0]

    def score(self, dataset: "Dataset[Any]", *, runtime: Runtime | None = None) -> Tensor:
        """Return the score of each sample of a data set under its own label, float64 `(N,)`; see `score_dataset`."""
        return score_dataset(self, dataset, runtime=runtime)

    def settings(self) -> Mapping[str, Any]:
        """Return what the scorer was built with, as far as its mode uses it, as JSON can hold it."""
        chosen = {"mode": self.mode, "head": self.head, "width": self.width, "pixels": asdict(self.pixels)}
        return {**chosen, **{name: asdict(getattr(self, name)) for name in self._used()}}

    def state(self) -> Mapping[str, Tensor]:
        """Return the weights of the model, and the shape of a sample and the number of classes to build it again.

        Raises:
            NotFittedError: before a fit.
        """
        if self._model is None:
            raise NotFittedError(_NOT_FITTED)
        weights = {f"model.{name}": value.detach().clone() for name, value in self._model.state_dict().items()}
        sizes = {"sample_shape": self._model.shape, "num_classes": self._model.num_classes}
        return {**weights, **{name: torch.tensor(value) for name, value in sizes.items()}}

    def load(self, state: Mapping[str, Tensor]) -> Self:
        """Take over the weights that `state` of a scorer of the same settings returned, and return itself.

        Raises:
            ValueError: where they do not fit this scorer.
        """
        if not {"sample_shape", "num_classes"} <= set(state):
            raise ValueError("Expected the state of a DiscriminatorScorer, but got that of another scorer.")
        weights = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
        model = self._build(tuple(state["sample_shape"].tolist()), int(state["num_classes"]), seed=0)
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(
                f"Expected the state of a scorer like {self!r}, but it was fitted with other settings: {error}"
            ) from error
        self._model = in_channels_last(model).eval()
        return self

    def _used(self) -> tuple[str, ...]:
        return ("gan_settings",) if self.mode == "gan" else ("negatives", "fit_settings")

    def _build(
        self, shape: tuple[int, ...], num_classes: int, *, seed: int
    ) -> ProjectionDiscriminator | ClassDiscriminators:
        options: dict[str, Any] = {"pixels": self.pixels, "width": self.width, "seed": seed}
        if self.mode == "gan":
            return ClassDiscriminators(shape, num_classes, dropout=self.gan_settings.dropout, **options)
        model = ProjectionDiscriminator(shape, num_classes, **options)
        if self.head == "texture" and not model.takes_images:
            raise ValueError(expected("inputs", "images, for the head 'texture'", f"vectors {shape}"))
        return model

    def _fitted(
        self, trusted: Any, runtime: Runtime | None, generator: torch.Generator, max_steps: int | None
    ) -> tuple[ProjectionDiscriminator | ClassDiscriminators, int]:
        """Return a model that was trained for at most so many steps, and how many a whole fit takes."""
        data, runtime = TrustedSamples.read(trusted), runtime or LocalRuntime()
        seed = int(torch.randint(2**31, (1,), generator=generator))
        model = self._build(data.shape, data.num_classes, seed=seed)
        data.check_range(self.pixels)
        where: dict[str, Any] = {"sample": data.sample, "runtime": runtime, "max_steps": max_steps}
        if isinstance(model, ClassDiscriminators):
            counts = [len(own) for own in members_of(data.labels, data.num_classes)]
            gan: dict[str, Any] = {"width": self.width, "settings": self.gan_settings, "generator": generator}
            return fit_gans(model, trusted, data.labels, **gan, **where), self.gan_settings.total_steps(counts)
        if not model.takes_images:
            model.standardize(*data.moments(runtime.num_workers))
        noise = torch.Generator().manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        texture = self.head == "texture"
        loss: Any = functools.partial(mismatch_loss, settings=self.negatives, texture=texture, generator=noise)
        fit_module(
            model,
            trusted,
            loss,
            settings=self.fit_settings,
            generator=generator,
            description=f"fitting the {self.name} scorer",
            **where,
        )
        return model, self.fit_settings.total_steps(len(data.labels))


def _refuse(mode: str, given: Mapping[str, object]) -> None:
    """Refuse what has no meaning in a mode."""
    for name, value in given.items():
        if value not in (None, False):
            other = "mismatch" if mode == "gan" else "gan"
            raise ValueError(
                expected(name, f"left out in the mode {mode!r}", value, f"It belongs to the mode {other!r}.")
            )
