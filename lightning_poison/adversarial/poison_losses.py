"""Losses for which one part of a batch, the poison, is perturbed to affect the rest, the targets."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_poison.adversarial.adversaries import Loss
from lightning_poison.adversarial.batch import AttackedBatch
from lightning_poison.checks import describe, expected
from lightning_poison.contexts import evaluating, frozen
from lightning_poison.data.sample_spec import are_probabilities
from lightning_poison.models.feature_extractor import FeatureExtractor, find_layer

PoisonLoss = Callable[[AttackedBatch, Tensor, Sequence[str] | None], Loss | None]
"""Maps a batch, the mask of its poison, bool `(B,)`, and layer names to a loss of the inputs `(B, ...)` with the same
value for each of them, or to `None` if there is nothing to optimize."""

_NOT_DIFFERENTIABLE_TWICE = ("checkpoint", "double backward", "is not implemented")
"""Parts of torch's error messages."""


def matching_loss(attacked: AttackedBatch, poison: Tensor, layers: Sequence[str] | None = None) -> Loss | None:
    """Return the alignment of the poison's training gradient with a gradient that misclassifies the targets.

    The intended class of the targets is the most frequent label of the poison. Targets with that label are ignored.

    Args:
        attacked: The batch.
        poison: Mask of the poison, bool `(B,)`.
        layers: Names of the layers whose gradients are matched. Default: all trainable parameters.

    Raises:
        ValueError: If there is no such layer, or it has no trainable parameter.
    """
    parameters = _trainable_parameters(attacked.module, layers)
    classes = class_indices(attacked.labels)
    (rows, row_weights), (targets, target_weights) = _weighted_rows(poison), _weighted_rows(~poison)
    with torch.enable_grad(), evaluating(attacked.module):
        logits = attacked.logits(attacked.inputs[targets])
        one_hot = torch.arange(logits.shape[-1], device=classes.device) == classes[:, None]
        counts = attacked.sum_over_ranks(torch.stack([one_hot[poison].sum(0), one_hot[~poison].sum(0)]))
        wanted = counts[0].argmax()
        if not int(counts[0].sum()) or int(counts[1].sum()) == int(counts[1, wanted]):
            return None
        target_weights = target_weights * (classes[targets] != wanted)
        target_losses = attacked.loss(logits, _relabel(attacked.labels[targets], wanted))
        goal = attacked.sum_over_ranks(loss_gradient((target_weights * target_losses).sum(), parameters))
    labels = attacked.labels[rows]

    def alignment(inputs: Tensor) -> Tensor:
        with torch.enable_grad():
            losses = attacked.loss(attacked.logits(inputs[rows]), labels)
            gradient = loss_gradient((row_weights * losses).sum(), parameters, create_graph=True)
            value = gradient_alignment(_add_other_ranks(gradient, attacked), goal)
        return (value if torch.is_grad_enabled() else value.detach()).expand(len(inputs))

    return alignment


def collision_loss(attacked: AttackedBatch, poison: Tensor, layers: Sequence[str] | None = None) -> Loss | None:
    """Return the negative relative distance between the mean features of the poison and of the targets.

    −½ ‖mean φ(poison) − mean φ(targets)‖² / ‖mean φ(targets)‖², summed over layers φ.

    Args:
        attacked: The batch.
        poison: Mask of the poison, bool `(B,)`.
        layers: Names of the layers whose outputs are matched.

    Raises:
        ValueError: If there is no such layer, or it is not reached.
    """
    (rows, row_weights), (targets, target_weights) = _weighted_rows(poison), _weighted_rows(~poison)
    counts = attacked.sum_over_ranks(torch.stack([poison.sum(), (~poison).sum()]))
    if not bool(counts.all()):
        return None
    extractors = [FeatureExtractor(attacked.module, layer, forward=attacked.logits) for layer in layers or ()]
    with torch.no_grad(), evaluating(attacked.module), frozen(attacked.module):
        totals = [target_weights @ extract(attacked.inputs[targets]).float() for extract in extractors]
        goals = [attacked.sum_over_ranks(total) / counts[1] for total in totals]

    def proximity(inputs: Tensor) -> Tensor:
        value = inputs.new_zeros((), dtype=torch.float32)
        for extract, goal in zip(extractors, goals, strict=True):
            total = row_weights @ extract(inputs[rows]).float()
            distance = (_add_other_ranks(total, attacked) / counts[0] - goal).square().sum()
            value = value - 0.5 * distance / goal.square().sum().clamp_min(torch.finfo(goal.dtype).tiny)
        return value.expand(len(inputs))

    return proximity


def loss_gradient(loss: Tensor, parameters: Sequence[Tensor], *, create_graph: bool = False) -> Tensor:
    """Return the gradient of a loss with respect to parameters, as one vector.

    No `.grad` is written, and no gradient hook of the parameters runs. The gradient is 0 for parameters that the loss
    does not depend on.

    Args:
        loss: A scalar.
        parameters: One or more parameters, with D entries in total.
        create_graph: Whether the result can be differentiated again. Default: `False`.

    Returns:
        The gradient, `(D,)`, float32 or higher.

    Example:
        >>> weights = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> loss_gradient(weights.square().sum(), [weights, torch.zeros(1, requires_grad=True)])
        tensor([2., 4., 0.])
    """
    parts = torch.autograd.grad(
        loss, list(parameters), create_graph=create_graph, allow_unused=True, materialize_grads=True
    )
    return torch.cat([part.flatten().to(torch.promote_types(part.dtype, torch.float32)) for part in parts])


def gradient_alignment(gradient: Tensor, goal: Tensor) -> Tensor:
    """Compute the cosine of the angle between two gradients of any length, the objective of gradient matching.

    cos(∇θ Σᵢ L(F(xᵢ, θ), yᵢ), g) of Geiping, Fowl, Huang, Czaja, Taylor, Moeller, Goldstein, "Witches' Brew: Industrial
    Scale Data Poisoning via Gradient Matching", ICLR 2021, arXiv 2009.02276, whose objective is one minus this. If it
    is near 1, training on the samples xᵢ takes steps along g.

    Args:
        gradient: First gradient, `(D,)`.
        goal: Second gradient, `(D,)`.

    Returns:
        A scalar in [-1, 1], differentiable in both. 0 if one of them is 0.

    Example:
        >>> gradient_alignment(torch.tensor([1.0, 1.0]), torch.tensor([0.0, 1e-30])).round(decimals=3)
        tensor(0.7070)
    """
    return F.cosine_similarity(_scaled(gradient), _scaled(goal), dim=0)


@contextmanager
def uncompiled() -> Iterator[None]:
    """Run compiled parts of a model eagerly, so that forward hooks run.

    Example:
        >>> calls, layer = [], torch.nn.Linear(2, 1)
        >>> with uncompiled(), layer.register_forward_hook(lambda *_: calls.append(1)):
        ...     _ = torch.compile(layer)(torch.ones(1, 2))
        >>> calls
        [1]
    """
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Run compiled parts of a model eagerly, and attention by its plain formula, so that it has second derivatives.

    Raises:
        RuntimeError: If a part of the model still cannot be differentiated twice.

    Example:
        >>> x = torch.tensor(2.0, requires_grad=True)
        >>> with twice_differentiable():
        ...     (slope,) = torch.autograd.grad(x**3, x, create_graph=True)
        ...     torch.autograd.grad(slope, x)
        (tensor(12.),)
    """
    try:
        with uncompiled(), sdpa_kernel(SDPBackend.MATH):
            yield
    except RuntimeError as error:
        if not any(part in str(error).lower() for part in _NOT_DIFFERENTIABLE_TWICE):
            raise
        first_line = str(error).splitlines()[0]
        raise RuntimeError(
            f"Expected a module that can be differentiated twice, but got: {first_line}\nUse checkpoints with "
            '`use_reentrant=False`, or another attack: `PoisonImmunity("feature-collision", layers=[...])`.'
        ) from error


def class_indices(labels: Tensor) -> Tensor:
    """Return the class of each label, int64 `(B,)`. For mixed labels, it is the class with the largest share.

    Raises:
        ValueError: If the labels are neither class indices nor probabilities.

    Example:
        >>> class_indices(torch.tensor([[0.3, 0.7], [1.0, 0.0]]))
        tensor([1, 0])
    """
    if not are_probabilities(labels) if labels.is_floating_point() else labels.ndim != 1:
        what = "class indices (B,), or probabilities (B, C), for `PoisonImmunity`"
        raise ValueError(expected("labels", what, describe(labels)))
    return labels.argmax(1) if labels.is_floating_point() else labels.long()


def _trainable_parameters(module: nn.Module, layers: Sequence[str] | None) -> list[Tensor]:
    """Return the parameters that require a gradient, of all layers or of the named ones."""
    modules = [module] if layers is None else [find_layer(module, layer) for layer in layers]
    found = {id(each): each for part in modules for each in part.parameters() if each.requires_grad}
    if not found:
        where = type(module).__name__ if layers is None else ", ".join(map(repr, layers))
        raise ValueError(expected("layers", "layers with trainable parameters", f"none in {where}"))
    return list(found.values())


def _scaled(vector: Tensor) -> Tensor:
    """Scale the largest entry to 1, since the squares of small gradients would underflow."""
    largest = vector.detach().abs().amax()
    return vector / torch.where(largest > 0, largest.clamp_min(torch.finfo(vector.dtype).tiny), 1)


def _relabel(labels: Tensor, wanted: Tensor) -> Tensor:
    zeros = torch.zeros_like(labels)
    return zeros.index_fill(1, wanted[None], 1) if labels.is_floating_point() else zeros + wanted


def _weighted_rows(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return selected positions `(P,)` and their weights. A rank without any gets one position with weight 0."""
    rows = mask.nonzero().flatten()
    weights = torch.full((max(1, len(rows)),), float(len(rows) > 0))
    return (rows if len(rows) else rows.new_zeros(1)), weights.to(rows.device)


def _add_other_ranks(local: Tensor, attacked: AttackedBatch) -> Tensor:
    """Return the sum over ranks, differentiable in this rank's part only."""
    detached = local.detach()
    return local + (attacked.sum_over_ranks(detached) - detached)
