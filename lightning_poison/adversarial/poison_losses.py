"""What a part of a batch, playing the poison, does to the rest, the targets: losses that the adversary raises."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_poison.adversarial.adversaries import Loss
from lightning_poison.adversarial.alignment import gradient_alignment, loss_gradient
from lightning_poison.adversarial.batch import AttackedBatch
from lightning_poison.checks import describe, expected
from lightning_poison.contexts import evaluating, frozen
from lightning_poison.models.feature_extractor import FeatureExtractor, find_layer

_SAID = ("checkpoint", "double backward", "is not implemented")


@contextmanager
def uncompiled() -> Iterator[None]:
    """Run compiled parts of a model eagerly, so that layers can be hooked.

    Example:
        >>> seen, layer = [], torch.nn.Linear(2, 1)
        >>> with uncompiled(), layer.register_forward_hook(lambda *_: seen.append(1)):
        ...     _ = torch.compile(layer)(torch.ones(1, 2))
        >>> seen
        [1]
    """
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Run compiled parts of a model eagerly and attention by its plain formula, and say what still cannot be done.

    Raises:
        RuntimeError: where a part of the model cannot be differentiated twice, with the way out.

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
        if not any(part in str(error).lower() for part in _SAID):
            raise
        first = str(error).splitlines()[0]
        raise RuntimeError(
            f"Expected a module that can be differentiated twice, but got: {first}\nCheckpoint by "
            '`use_reentrant=False`, or play another poison: `PoisonImmunity("feature-collision", layers=[...])`.'
        ) from error


PoisonLoss = Callable[[AttackedBatch, Tensor, Sequence[str] | None], Loss | None]
"""Maps a batch, which of its samples are poison, bool `(B,)`, and layer names to a loss of the inputs `(B, ...)`, the
same for each of them; `None` where there is nothing to gain."""


def matching_loss(attacked: AttackedBatch, poison: Tensor, layers: Sequence[str] | None = None) -> Loss | None:
    """Return how well the training gradient of the poison is aligned with one that misreads the targets.

    What the targets shall be read as is the most frequent label of the poison; targets that carry it do not count.

    Args:
        attacked: the batch.
        poison: which samples are poison, bool `(B,)`.
        layers: names of the layers whose gradients count; all that are trained where it is `None`.

    Raises:
        ValueError: where there is no such layer, or nothing in it is trained.
    """
    parameters = trained_in(attacked.module, layers)
    classes = classes_of(attacked.labels)
    (rows, ours), (targets, theirs) = _chosen(poison), _chosen(~poison)
    with torch.enable_grad(), evaluating(attacked.module):
        logits = attacked.logits(attacked.inputs[targets])
        known = torch.arange(logits.shape[-1], device=classes.device) == classes[:, None]
        counts = attacked.total(torch.stack([known[poison].sum(0), known[~poison].sum(0)]))
        wanted = counts[0].argmax()
        if not int(counts[0].sum()) or int(counts[1].sum()) == int(counts[1, wanted]):
            return None
        theirs = theirs * (classes[targets] != wanted)
        misread = attacked.loss(logits, _relabeled(attacked.labels[targets], wanted))
        goal = attacked.total(loss_gradient((theirs * misread).sum(), parameters))
    labels = attacked.labels[rows]

    def aligned(inputs: Tensor) -> Tensor:
        with torch.enable_grad():
            losses = attacked.loss(attacked.logits(inputs[rows]), labels)
            own = loss_gradient((ours * losses).sum(), parameters, create_graph=True)
            value = gradient_alignment(_with_others(own, attacked), goal)
        return (value if torch.is_grad_enabled() else value.detach()).expand(len(inputs))

    return aligned


def collision_loss(attacked: AttackedBatch, poison: Tensor, layers: Sequence[str] | None = None) -> Loss | None:
    """Return how near the mean feature of the poison is to that of the targets.

    −½ ‖mean φ(poison) − mean φ(targets)‖² / ‖mean φ(targets)‖², the sum over layers φ.

    Args:
        attacked: the batch.
        poison: which samples are poison, bool `(B,)`.
        layers: names of the layers whose outputs count.

    Raises:
        ValueError: where there is no such layer, or it is not reached.
    """
    (rows, ours), (targets, theirs) = _chosen(poison), _chosen(~poison)
    counts = attacked.total(torch.stack([poison.sum(), (~poison).sum()]))
    if not bool(counts.all()):
        return None
    readers = [FeatureExtractor(attacked.module, layer, ask=attacked.logits) for layer in layers or ()]
    with torch.no_grad(), evaluating(attacked.module), frozen(attacked.module):
        features = [theirs @ read(attacked.inputs[targets]).float() for read in readers]
        goals = [attacked.total(feature) / counts[1] for feature in features]

    def near(inputs: Tensor) -> Tensor:
        value = inputs.new_zeros((), dtype=torch.float32)
        for read, goal in zip(readers, goals, strict=True):
            own = ours @ read(inputs[rows]).float()
            away = (_with_others(own, attacked) / counts[0] - goal).square().sum()
            value = value - 0.5 * away / goal.square().sum().clamp_min(torch.finfo(goal.dtype).tiny)
        return value.expand(len(inputs))

    return near


def trained_in(module: nn.Module, layers: Sequence[str] | None) -> list[Tensor]:
    """Return the parameters that are trained, of all layers or of the named ones.

    Raises:
        ValueError: where there is no such layer, or no such parameter.

    Example:
        >>> [tuple(part.shape) for part in trained_in(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)), ["1"])]
        [(1, 2), (1,)]
    """
    chosen = [module] if layers is None else [find_layer(module, layer) for layer in layers]
    found = {id(part): part for layer in chosen for part in layer.parameters() if part.requires_grad}
    if not found:
        which = type(module).__name__ if layers is None else ", ".join(map(repr, layers))
        raise ValueError(expected("layers", "layers with parameters that are trained", f"none in {which}"))
    return list(found.values())


def classes_of(labels: Tensor) -> Tensor:
    """Return int64 `(B,)`; of mixed labels the class with the largest part.

    Raises:
        ValueError: where labels name no classes.

    Example:
        >>> classes_of(torch.tensor([[0.3, 0.7], [1.0, 0.0]]))
        tensor([1, 0])
    """
    if labels.ndim != 1 + labels.is_floating_point():
        what = "class indices (B,), or probabilities (B, C), which `PoisonImmunity` asks for"
        raise ValueError(expected("labels", what, describe(labels)))
    return labels.argmax(1) if labels.is_floating_point() else labels.long()


def _relabeled(labels: Tensor, wanted: Tensor) -> Tensor:
    blank = torch.zeros_like(labels)
    return blank.index_fill(1, wanted[None], 1) if labels.is_floating_point() else blank + wanted


def _chosen(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return positions `(P,)` and their weights; a rank that has none goes along with a weight of 0."""
    rows = mask.nonzero().flatten()
    return (rows if len(rows) else rows.new_zeros(1)), torch.full((max(1, len(rows)),), float(len(rows) > 0)).to(
        rows.device
    )


def _with_others(own: Tensor, attacked: AttackedBatch) -> Tensor:
    """Return the sum over ranks, in which only this rank's part can be differentiated."""
    here = own.detach()
    return own + (attacked.total(here) - here)
