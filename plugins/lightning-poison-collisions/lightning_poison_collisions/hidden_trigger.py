"""`HiddenTrigger`: clean-label poison whose features approach those of images with a trigger."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_poison.attacks import RawFeatures
from lightning_poison.data import index_blocks
from lightning_poison_collisions.descent import descend_within
from lightning_poison_collisions.distances import squared_norm
from lightning_poison_collisions.triggered import HiddenTriggerAttack, Scene, read_originals


@dataclass(frozen=True, kw_only=True)
class HiddenTrigger(HiddenTriggerAttack):
    """Hidden trigger backdoor: poisons of the target class look like it, and have the features of triggered images.

    Each poison xₖ minimizes ‖f(xₖ) − f(s̃ₐ₍ₖ₎)‖² within an L∞ ball around its base, where the s̃ are source images with
    the patch. In each step other sources are drawn and paired with the poisons of a batch one to one, nearest pair
    first, so that the poisons learn the patch and not single images. The attack is designed for heads that are trained
    on frozen features. Saha, Subramanya, Pirsiavash, "Hidden Trigger Backdoor Attacks", AAAI 2020, arXiv 1910.00157,
    eq. 1 and algorithm 1.

    Differences from the paper: the patch has one position, at crafting as at test time, where the paper draws one for
    each image; Adam on the signs of the gradient instead of gradient descent; several surrogates may be used; crafted
    images are rounded to gray levels.

    The arguments are those of `HiddenTriggerAttack`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> from torch import nn
        >>> from lightning_poison import Surrogate, Threat
        >>> from lightning_poison.testing import TinyImages
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> poison = HiddenTrigger(target_class=1, steps=20).craft(
        ...     TinyImages(), Threat(10), surrogates=[Surrogate(model, "2")], holdout=None, generator=torch.Generator()
        ... )
        >>> poison
        Poison(hidden-trigger: 10 samples, raw inputs (1, 8, 8))
        >>> poison.objective
        TriggerObjective(PatchTrigger((1, 2, 2), row=-1, column=-1, amplitude=1), target_class=1, source_class=None)
    """

    name = "hidden-trigger"

    def _craft_images(self, scene: Scene) -> tuple[Tensor, Tensor]:
        maps = [RawFeatures(surrogate, scene.pixels) for surrogate in scene.surrogates]
        device = maps[0].device
        order = torch.randperm(len(scene.candidates), generator=scene.generator)[: scene.budget]
        indices = scene.candidates[order].sort().values
        sources = _features(maps, scene.sources, self.batch_size)
        crafted = []
        for block in index_blocks(indices, self.batch_size):
            bases = (read_originals(scene.dataset, block).float() / 255).to(device)
            collision = PairedCollision(maps, bases, sources, generator=scene.generator)
            images, _ = descend_within(
                collision,
                bases,
                epsilon=scene.radius,
                steps=self.steps,
                step_size=self.step_size * scene.radius,
                keep_best=False,
            )
            crafted.append(images.cpu())
        return indices, torch.cat(crafted)


def _features(maps: Sequence[RawFeatures], images: Tensor, batch_size: int) -> list[Tensor]:
    with torch.no_grad():
        return [torch.cat([extract(part) for part in torch.split(images, batch_size)]) for extract in maps]


class PairedCollision:
    """‖f(xₖ) − f(s̃ₐ₍ₖ₎)‖² for each image, with sources drawn and paired anew in each call, averaged over feature maps.

    Each feature map is in units of its mean squared distance between bases and sources.

    Args:
        features: One feature map for each surrogate.
        bases: Raw images in [0, 1], `(P, ...)`.
        sources: Features `(S, D)` of the sources for each map.
        generator: Draws the sources.

    Example:
        >>> collision = PairedCollision(
        ...     [torch.nn.Flatten()], torch.zeros(1, 2), [torch.ones(1, 2)], generator=torch.Generator()
        ... )
        >>> collision(torch.tensor([[0.5, 0.5]]))
        (tensor([0.2500]), tensor([[-0.5000, -0.5000]]))
    """

    def __init__(
        self,
        features: Sequence[Callable[[Tensor], Tensor]],
        bases: Tensor,
        sources: Sequence[Tensor],
        *,
        generator: torch.Generator,
    ) -> None:
        self._features, self._sources, self._generator = tuple(features), tuple(sources), generator
        with torch.no_grad():
            starts = [extract(bases) for extract in self._features]
        self._units = [
            squared_distances(start, source).mean().clamp(min=torch.finfo(source.dtype).tiny)
            for start, source in zip(starts, self._sources, strict=True)
        ]

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the values `(P,)` of raw images `(P, ...)` and the gradient of their sum, both detached."""
        drawn = draw_rows(len(self._sources[0]), len(images), self._generator)
        goals = [source[drawn.to(source.device)] for source in self._sources]
        with torch.enable_grad():
            leaf = images.detach().requires_grad_()
            found = [extract(leaf) for extract in self._features]
            costs = [
                (squared_distances(own.detach(), goal) / unit).cpu()
                for own, goal, unit in zip(found, goals, self._units, strict=True)
            ]
            partner = pair_greedily(torch.stack(costs).sum(0))
            terms = [
                (squared_norm(own - goal[partner.to(goal.device)]) / unit).to(images.device)
                for own, goal, unit in zip(found, goals, self._units, strict=True)
            ]
            values = torch.stack(terms).mean(0)
            (gradient,) = torch.autograd.grad(values.sum(), leaf)
        return values.detach(), gradient


def draw_rows(available: int, count: int, generator: torch.Generator) -> Tensor:
    """Draw `count` rows, each as often as any other if there are fewer than `count`, int64 `(count,)`.

    Example:
        >>> draw_rows(2, 4, torch.Generator().manual_seed(0)).bincount()
        tensor([2, 2])
    """
    rounds = -(-count // available)
    return torch.cat([torch.randperm(available, generator=generator) for _ in range(rounds)])[:count]


def squared_distances(rows: Tensor, others: Tensor) -> Tensor:
    """Return the squared Euclidean distance of each row `(P, D)` to each of the others `(S, D)`, `(P, S)`.

    Example:
        >>> squared_distances(torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0]]))
        tensor([[9.],
                [4.]])
    """
    return torch.cdist(rows, others).square()


def pair_greedily(costs: Tensor) -> Tensor:
    """Pair rows with columns one to one, the cheapest remaining pair first.

    Args:
        costs: Cost of each pair, `(P, P)`.

    Returns:
        Column of each row, int64 `(P,)`.

    Example:
        >>> pair_greedily(torch.tensor([[1.0, 2.0], [0.5, 9.0]]))
        tensor([1, 0])
    """
    remaining = costs.clone()
    partner = torch.empty(len(costs), dtype=torch.int64)
    for _ in range(len(costs)):
        row, column = divmod(int(remaining.argmin()), remaining.shape[1])
        partner[row] = column
        remaining[row], remaining[:, column] = torch.inf, torch.inf
    return partner
