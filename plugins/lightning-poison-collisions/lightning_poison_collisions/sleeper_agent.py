"""`SleeperAgent`: clean-label poison whose training gradient is aligned with one that installs a backdoor."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_poison import Surrogate, checks
from lightning_poison.data import index_blocks, labels_of
from lightning_poison.models import FitSettings
from lightning_poison_collisions.augmentation import Augmentation
from lightning_poison_collisions.descent import descend_within
from lightning_poison_collisions.gradient_matching import GradientMatch, TrainingGradient, check_layers
from lightning_poison_collisions.retraining import check_resettable, retrained
from lightning_poison_collisions.triggered import HiddenTriggerAttack, Scene, poison_of, read_originals


@dataclass(frozen=True, kw_only=True)
class SleeperAgent(HiddenTriggerAttack):
    """Sleeper Agent: gradient matching for a backdoor whose trigger no training image carries.

    Small changes of images of the target class align their summed training gradient with the gradient that lowers the
    loss of source images with the patch at the target class. The bases are the images with the largest gradients, and
    the surrogates are trained anew on the poison while it is crafted, `retrain_factor` times at equal distances. The
    attack is designed for networks trained from scratch. Souri, Fowl, Chellappa, Goldblum, Goldstein, "Sleeper Agent:
    Scalable Hidden Trigger Backdoors for Neural Networks Trained from Scratch", NeurIPS 2022, arXiv 2106.08970, eq. 3
    and algorithm 1.

    Differences from the paper: the patch has one position; images are augmented by shifts and mirroring of whole
    pixels, and only if asked for; a copy of each surrogate is initialized by `reset_parameters` of its layers and
    trained by `lightning_poison.models.fit_module`; crafted images are rounded to gray levels.

    The arguments not listed here are those of `HiddenTriggerAttack`.

    Args:
        retrain_factor: How often the surrogates are trained anew, at least 0 and below `steps`. The paper uses 4. With
            0 the given surrogates alone are used.
        fit_settings: Settings of this training, as the victim's as far as they are known. Default: `FitSettings()`.
        restarts: Number of random starts, of which the best is used. Each trains the surrogates anew.
        shift: Maximum random shift of the poison while crafting, in pixels; set it to that of the victim.
        flip: Whether the poison is mirrored at random while crafting.
        layers: Names of the layers whose gradients are matched, as in `model.named_modules()`. Default: all layers.

    Raises:
        TypeError: If `fit_settings` is not a `FitSettings`.
        ValueError: If an argument is out of range.

    Example:
        >>> from torch import nn
        >>> from lightning_poison import Threat
        >>> from lightning_poison.testing import TinyImages
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> quick = FitSettings(epochs=1, min_steps=0)
        >>> SleeperAgent(target_class=1, steps=10, retrain_factor=1, fit_settings=quick).craft(
        ...     TinyImages(), Threat(10), surrogates=[Surrogate(model, "2")], holdout=None, generator=torch.Generator()
        ... )
        Poison(sleeper-agent: 10 samples, raw inputs (1, 8, 8))
    """

    name = "sleeper-agent"

    retrain_factor: int = 4
    fit_settings: FitSettings | Mapping[str, Any] | None = None
    restarts: int = 1
    shift: int = 0
    flip: bool = False
    layers: Sequence[str] | None = None
    batch_size: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive_int("restarts", self.restarts)
        checks.positive_int("retrain_factor", self.retrain_factor, minimum=0)
        if self.retrain_factor >= self.steps:
            raise ValueError(checks.expected("retrain_factor", f"below `steps` ({self.steps})", self.retrain_factor))
        Augmentation(self.shift, self.flip)
        settings = self.fit_settings
        if settings is not None:
            loaded = FitSettings(**settings) if isinstance(settings, Mapping) else settings
            object.__setattr__(self, "fit_settings", checks.instance("fit_settings", loaded, FitSettings))
        object.__setattr__(self, "layers", check_layers(self.layers))

    def _craft_images(self, scene: Scene) -> tuple[Tensor, Tensor]:
        if self.retrain_factor:
            check_resettable(scene.surrogates)
        classes = int(labels_of(scene.dataset).max()) + 1
        gradients = self._gradients(scene, scene.surrogates, classes)
        indices = self._largest(scene, gradients)
        bases = (read_originals(scene.dataset, indices).float() / 255).to(gradients[0].device)
        best, best_value = bases, torch.tensor(torch.inf)
        for _ in range(self.restarts):
            objective = RetrainedMatch(
                lambda surrogates: self._match(scene, surrogates, classes),
                scene.surrogates,
                lambda images: self._retrain(scene, indices, images),
                [round(part * self.steps / (self.retrain_factor + 1)) for part in range(1, self.retrain_factor + 1)],
            )
            noise = 2 * torch.rand(bases.shape, generator=scene.generator).to(bases) - 1
            images, value = descend_within(
                objective,
                bases,
                epsilon=scene.radius,
                steps=self.steps,
                step_size=self.step_size * scene.radius,
                start=bases + scene.radius * noise,
                keep_best=False,
            )
            if value < best_value:
                best, best_value = images, value
        return indices, best.cpu()

    def _gradients(self, scene: Scene, surrogates: Sequence[Surrogate], classes: int) -> list[TrainingGradient]:
        return [TrainingGradient(each, scene.pixels, layers=self.layers, classes=classes) for each in surrogates]

    def _match(self, scene: Scene, surrogates: Sequence[Surrogate], classes: int) -> GradientMatch:
        return GradientMatch(
            self._gradients(scene, surrogates, classes),
            scene.sources,
            self.target_class,
            torch.full((scene.budget,), self.target_class),
            batch_size=self.batch_size,
            augmentation=Augmentation(self.shift, self.flip),
            generator=scene.generator,
        )

    def _largest(self, scene: Scene, gradients: Sequence[TrainingGradient]) -> Tensor:
        """Return the candidates whose training gradients are largest, in ascending order."""
        parts = []
        for block in index_blocks(scene.candidates, self.batch_size):
            images = read_originals(scene.dataset, block).float() / 255
            parts.append(gradient_norms(gradients, images, self.target_class))
        chosen = torch.cat(parts).argsort(descending=True, stable=True)[: scene.budget]
        return scene.candidates[chosen].sort().values

    def _retrain(self, scene: Scene, indices: Tensor, images: Tensor) -> list[Surrogate]:
        poison = poison_of(scene, indices, images, attack=self.name, settings={})
        settings = self.fit_settings if isinstance(self.fit_settings, FitSettings) else FitSettings()
        return [
            retrained(surrogate, scene.dataset, poison, settings=settings, generator=scene.generator)
            for surrogate in scene.surrogates
        ]


class RetrainedMatch:
    """A gradient match whose surrogates are replaced in certain calls.

    Args:
        build: Builds the match of surrogates.
        surrogates: Surrogates of the first call.
        retrain: Maps the current raw images `(P, ...)` to new surrogates.
        due: Calls before which the surrogates are replaced; the first call is 0.
    """

    def __init__(
        self,
        build: Callable[[Sequence[Surrogate]], GradientMatch],
        surrogates: Sequence[Surrogate],
        retrain: Callable[[Tensor], Sequence[Surrogate]],
        due: Collection[int],
    ) -> None:
        self._build, self._retrain, self._due = build, retrain, frozenset(due)
        self._match = build(surrogates)
        self._calls = 0

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the value, a scalar, and its gradient `(P, ...)` with respect to raw images, both detached."""
        if self._calls in self._due:
            self._match = self._build(self._retrain(images))
        self._calls += 1
        return self._match(images)


def gradient_norms(gradients: Sequence[TrainingGradient], images: Tensor, label: int) -> Tensor:
    """Return the norm of the training gradient of each image, `(M,)`, averaged over models.

    Args:
        gradients: One for each surrogate.
        images: Raw images in [0, 1], `(M, ...)`.
        label: Label of all images.
    """
    wanted = torch.tensor([label])
    norms = torch.stack(
        [torch.stack([each(image[None], wanted).norm().cpu() for image in images]) for each in gradients]
    )
    return norms.mean(0)
