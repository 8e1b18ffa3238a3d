"""`GradientMatching`: clean-label poison whose training gradient is aligned with one that misclassifies the target."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from lightning_poison import PixelRange, Surrogate, Threat, checks
from lightning_poison.attacks import RawFeatures
from lightning_poison.data import index_blocks
from lightning_poison.models import find_layer
from lightning_poison_collisions.augmentation import Augmentation
from lightning_poison_collisions.descent import descend_within
from lightning_poison_collisions.pairing import even_sizes, whole_groups
from lightning_poison_collisions.targeted import Block, BlockCrafter, TargetedAttack


@dataclass(frozen=True, kw_only=True)
class GradientMatching(TargetedAttack):
    """Gradient matching (Witches' Brew): training steps on the poison are steps that misclassify the target.

    Small changes of the images align the summed training gradient of a target's poisons with the gradient that lowers
    the loss of the target at the class of the bases. All poisons of a target are crafted together. The attack is
    designed for networks trained from scratch; the surrogates are trained once, on clean data, and no network is
    trained while crafting. Geiping, Fowl, Huang, Czaja, Taylor, Moeller, Goldstein, "Witches' Brew: Industrial Scale
    Data Poisoning via Gradient Matching", ICLR 2021, arXiv 2009.02276, algorithm 1.

    Differences from the paper: the cosine is that of the sum over all poisons of a target at any `batch_size`; images
    are augmented while crafting only if asked for, by shifts of whole pixels; without augmentation the best point is
    kept instead of the last; crafted images are rounded to the gray levels of the data. The poison replaces what the
    data set returns, so `shift` and `flip` are for victims that augment their batches later, as `FitSettings` does.

    The arguments not listed here are those of `TargetedAttack`. As in the paper, bases are random and replaced by
    default.

    Args:
        epsilon: L∞ radius if the threat sets none, in units of the raw [0, 1] image. Default: that of the paper for
            CIFAR-10.
        targets: Number of test images that share the budget.
        steps: Number of steps. Default: that of the paper.
        restarts: Number of random starts, of which the best is used. The paper uses 8.
        step_size: Initial step size in units of epsilon. It decays tenfold at 3/8, 5/8 and 7/8 of the steps.
        layers: Names of the layers whose gradients are matched, as in `model.named_modules()`. The last layers alone
            are faster. Default: all layers.
        shift: Maximum random shift of the poison in each step, in pixels, with the edges repeated; set it to that of
            the victim. Default: none.
        flip: Whether the poison is mirrored at random in each step.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> images = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        >>> data = TensorDataset(images, torch.arange(40) % 2)
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> GradientMatching(steps=20).craft(
        ...     data, Threat(10), surrogates=[Surrogate(model, "2")], holdout=data, generator=torch.Generator()
        ... )
        Poison(gradient-matching: 10 samples, sample inputs (1, 4, 4))
    """

    name = "gradient-matching"

    placement: Literal["append", "replace"] = "replace"
    base_choice: Literal["nearest", "random"] = "random"
    batch_size: int = 512
    epsilon: float = 16 / 255
    targets: int = 1
    steps: int = 250
    restarts: int = 1
    step_size: float = 0.4
    layers: Sequence[str] | None = None
    shift: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.epsilon(self.epsilon)
        Augmentation(self.shift, self.flip)
        checks.positive("step_size", self.step_size)
        for name in ("targets", "steps", "restarts"):
            checks.positive_int(name, getattr(self, name))
        object.__setattr__(self, "layers", check_layers(self.layers))

    def _sizes(self, budget: int) -> list[int]:
        if budget < self.targets:
            raise ValueError(checks.expected("targets", f"at most the budget ({budget})", self.targets))
        return even_sizes(budget, self.targets)

    def _blocks(self, sizes: list[int]) -> list[Tensor]:
        return whole_groups(sizes, 1)

    def _radius(self, threat: Threat) -> float:
        return self.epsilon if threat.epsilon is None else threat.epsilon

    def _crafter(
        self, surrogates: Sequence[Surrogate], threat: Threat, classes: int, generator: torch.Generator
    ) -> BlockCrafter:
        gradients = [
            TrainingGradient(surrogate, threat.pixels, layers=self.layers, classes=classes) for surrogate in surrogates
        ]

        def craft_block(_maps: Sequence[RawFeatures], block: Block) -> Tensor:
            wanted = int(block.wanted)
            labels = torch.full((len(block.bases),), wanted)
            match = GradientMatch(
                gradients,
                block.targets,
                wanted,
                labels,
                batch_size=self.batch_size,
                augmentation=Augmentation(self.shift, self.flip),
                generator=generator,
            )
            return self._best_start(match, block.bases, self._radius(threat), generator)

        return craft_block

    def _best_start(self, match: "GradientMatch", bases: Tensor, epsilon: float, generator: torch.Generator) -> Tensor:
        """Return the best raw images over several random starts."""
        augmented = bool(self.shift or self.flip)
        best, best_value = bases, torch.tensor(torch.inf)
        for _ in range(self.restarts):
            noise = 2 * torch.rand(bases.shape, generator=generator).to(bases) - 1
            images, value = descend_within(
                match,
                bases,
                epsilon=epsilon,
                steps=self.steps,
                step_size=self.step_size * epsilon,
                start=bases + epsilon * noise,
                keep_best=not augmented,
            )
            if value < best_value:
                best, best_value = images, value
        return best


class TrainingGradient:
    """The gradient of a model's summed cross-entropy with respect to its parameters, as one vector.

    The parameters of the model, their `requires_grad` flags and their `.grad` are not changed.

    Args:
        surrogate: Model. Its feature layer is not used.
        pixels: Normalization of the samples.
        layers: Names of the layers whose parameters are used, including nested layers. `None`: all layers.
        classes: Number of classes of the labels; the model must return at least as many logits.

    Raises:
        ValueError: If the model has no such layer, or the layers have no parameters.
    """

    def __init__(self, surrogate: Surrogate, pixels: PixelRange, *, layers: Sequence[str] | None, classes: int) -> None:
        self._model = surrogate.model
        self._pixels = pixels
        self._classes = classes
        self._parameters = _leaves(surrogate.model, layers)
        self.device = next(iter(self._parameters.values())).device

    def __call__(self, images: Tensor, labels: Tensor, *, create_graph: bool = False) -> Tensor:
        """Return the gradient `(D,)`.

        Args:
            images: Raw images in [0, 1], `(B, ...)`.
            labels: Labels, int64 `(B,)`.
            create_graph: Whether the result is differentiable with respect to the images.

        Raises:
            ValueError: If the model does not return enough logits.
        """
        with torch.enable_grad():
            inputs = self._pixels.from_raw(images.to(self.device))
            logits = functional_call(self._model, self._parameters, (inputs,))
            self._check_logits(logits, len(images))
            precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
            loss = F.cross_entropy(precise, labels.to(self.device), reduction="sum")
            parts = torch.autograd.grad(
                loss, list(self._parameters.values()), create_graph=create_graph, materialize_grads=True
            )
            return torch.cat([part.flatten() for part in parts])

    def _check_logits(self, logits: object, count: int) -> None:
        is_batch = isinstance(logits, Tensor) and logits.ndim == 2 and len(logits) == count
        if not is_batch or logits.shape[1] < self._classes:  # type: ignore[attr-defined]
            what = f"a model that returns logits ({count}, C) for at least the {self._classes} classes of the data"
            hint = "Gradient matching requires a surrogate that was trained on the classes of the training set."
            raise ValueError(checks.expected("surrogates", what, checks.describe(logits), hint))


def check_layers(layers: Sequence[str] | None) -> tuple[str, ...] | None:
    """Return a list of layer names as a tuple.

    Raises:
        ValueError: If it is a string or empty.
    """
    if layers is None:
        return None
    if isinstance(layers, str) or not layers:
        hint = "Omit it for all layers."
        raise ValueError(checks.expected("layers", "a list of layer names", repr(layers), hint))
    return tuple(layers)


def _leaves(model: nn.Module, layers: Sequence[str] | None) -> dict[str, Tensor]:
    """Return the parameters of the layers by name, as new leaves that share the model's memory."""
    names = ("",) if layers is None else layers
    chosen = {id(parameter) for name in names for parameter in find_layer(model, name).parameters()}
    found = {name: parameter for name, parameter in model.named_parameters() if id(parameter) in chosen}
    if not found:
        which = "the model" if layers is None else f"the layers {', '.join(map(repr, layers))}"
        hint = "Name a layer with weights, or omit `layers` to use all layers."
        received = f"none in {which} of {type(model).__name__}"
        raise ValueError(checks.expected("layers", "layers with parameters", received, hint))
    return {name: parameter.detach().requires_grad_() for name, parameter in found.items()}


class GradientMatch:
    """1 − cos(∇θ Σⱼ L(F(xⱼ, θ), yⱼ), ∇θ L(F(t, θ), y_wanted)), averaged over several surrogates.

    The value is in [0, 2]. It is 0 if a step on the poisons is a step toward the misclassification of the target. The
    objective of gradient matching (Geiping et al., ICLR 2021, arXiv 2009.02276: one minus the cosine of the two
    gradients), for the poisons of one target.

    Args:
        gradients: One for each surrogate.
        targets: Raw images in [0, 1], `(T, ...)`; their gradients are summed.
        wanted: Class that the attacker wants for the targets.
        labels: Labels of the poisons, int64 `(P,)`.
        batch_size: Number of images differentiated at once. Bounds memory; changes the value by rounding errors only.
        augmentation: Augmentation of the poisons, drawn anew for each call.
        generator: Draws the augmentation. Required with one.
    """

    def __init__(
        self,
        gradients: Sequence[TrainingGradient],
        targets: Tensor,
        wanted: int,
        labels: Tensor,
        *,
        batch_size: int,
        augmentation: Augmentation = Augmentation(),  # noqa: B008 (frozen)
        generator: torch.Generator | None = None,
    ) -> None:
        self._gradients = tuple(gradients)
        self._labels = labels
        self._batch_size = batch_size
        self._augmentation = augmentation
        self._generator = generator if generator is not None else torch.Generator().manual_seed(0)
        self._goals = [summed_gradient(each, targets, wanted, batch_size=batch_size) for each in self._gradients]

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the value, a scalar, and its gradient `(P, ...)` with respect to raw images, both detached.

        The value depends on the sum over all images. To avoid keeping the graph of all images in memory, a first pass
        computes the sum and the slope of the value with respect to it, and a second pass propagates the slope to each
        batch.
        """
        blocks = index_blocks(torch.arange(len(images)), self._batch_size)
        augment = self._augmentation.draw(len(images), self._generator)
        value, slopes = images.new_zeros(()), torch.zeros_like(images)
        for gradient, goal in zip(self._gradients, self._goals, strict=True):
            leaves = [images[block].detach().requires_grad_() for block in blocks]
            keep_graph = len(blocks) == 1
            parts = [
                gradient(augment(leaf, block), self._labels[block], create_graph=keep_graph)
                for leaf, block in zip(leaves, blocks, strict=True)
            ]
            term, term_slope = misalignment_and_slope(torch.stack([part.detach() for part in parts]).sum(0), goal)
            value += term.to(value.device) / len(self._gradients)
            for leaf, block, part in zip(leaves, blocks, parts, strict=True):
                with_graph = part
                if not keep_graph:
                    with_graph = gradient(augment(leaf, block), self._labels[block], create_graph=True)
                (slope,) = torch.autograd.grad(with_graph, leaf, term_slope)
                slopes[block] += slope / len(self._gradients)
        return value, slopes


def summed_gradient(gradient: TrainingGradient, images: Tensor, label: int, *, batch_size: int) -> Tensor:
    """Return the gradient `(D,)` of images with the same label, summed over batches.

    Args:
        gradient: Gradient of a model.
        images: Raw images in [0, 1], `(T, ...)`.
        label: Label of all images.
        batch_size: Number of images differentiated at once.
    """
    parts = [gradient(part, torch.full((len(part),), label)) for part in torch.split(images, batch_size)]
    return torch.stack(parts).sum(0)


def misalignment_and_slope(gradient: Tensor, goal: Tensor) -> tuple[Tensor, Tensor]:
    """Return 1 − cos(g, a), a scalar, and its gradient −(â − cos(g, a) ĝ) / ‖g‖ with respect to g `(D,)`.

    If g or a is zero, the value is 1 and the gradient zero.

    Example:
        >>> misalignment_and_slope(torch.tensor([2.0, 0.0]), torch.tensor([0.0, 3.0]))
        (tensor(1.), tensor([-0.0000, -0.5000]))
    """
    length = gradient.norm()
    unit, unit_goal = F.normalize(gradient, dim=0), F.normalize(goal, dim=0)
    cosine = unit @ unit_goal
    slope = -(unit_goal - cosine * unit) / length if length > 0 else torch.zeros_like(gradient)
    return 1 - cosine, slope
