"""Training a generator of poison through the victim's head."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_poison import PixelRange
from lightning_poison_shielding.box import PixelBox
from lightning_poison_shielding.heads import LOGISTIC_PENALTIES, LogisticHead, RidgeHead
from lightning_poison_shielding.losses import Roles
from lightning_poison_shielding.optimizer import Team
from lightning_poison_shielding.paper_generator import Pairs
from lightning_poison_shielding.scene import Scene


@dataclass(frozen=True)
class SuperBatch:
    """Images of the three groups that a generator learns from at one step, in equal parts.

    Args:
        shields: int64 `(B,)`, training samples of the shield class.
        protected: int64 `(B,)`, positions in the pool, each paired with a shield.
        measured: int64 `(M,)`, rows of the scene's outer set: protected, shield and control images.
    """

    shields: Tensor
    protected: Tensor
    measured: Tensor


def draw_super_batch(
    bases: Tensor, protected: Tensor, outer_labels: Tensor, roles: Roles, size: int, *, generator: torch.Generator
) -> SuperBatch:
    """Draw a super-batch, a third of it from each group; a group is drawn with replacement.

    Args:
        bases: int64, training samples of the shield class that may carry poison.
        protected: int64, positions in the pool of protected images.
        outer_labels: int64 `(M,)`, of the images that the loss may be measured on.
        roles: which class is which.
        size: how many images, all three groups together.
        generator: draws them.
    """
    part = max(1, size // 3)

    def drawn(group: Tensor) -> Tensor:
        return group[torch.randint(len(group), (part,), generator=generator)] if len(group) else group

    hidden, shield = outer_labels == roles.protected_class, outer_labels == roles.shield_class
    groups = [group.nonzero().flatten() for group in (hidden, shield, ~(hidden | shield))]
    return SuperBatch(drawn(bases), drawn(protected), torch.cat([drawn(group) for group in groups]))


class MetaTrainer:
    """Trains a generator so that heads which are trained on its poison misread the protected class.

    Pinkava, Towards Class-Shielding Data Poisoning, section 2.2. The dummy victim is solved, and not trained for some
    steps: its head is a least-squares head first and a logistic one after that, the gradient goes through the solution,
    and beside the poison it sees all the clean training samples, the protected ones too. Each poison of a super-batch
    counts for `budget / B` of the poison to come.

    Args:
        network: maps `Pairs` to perturbations `(B, C, H, W)`.
        scene: the data, as the surrogates see them.
        roles: which class is which.
        keep: bool `(N,)`, the clean training samples that the victim will see.
        budget: how many poisons there will be.
        radius: how far a pixel may move, in units of the raw image.
        pixels: says which values a pixel can take.
    """

    def __init__(
        self,
        network: nn.Module,
        scene: Scene,
        roles: Roles,
        keep: Tensor,
        *,
        budget: int,
        radius: float,
        pixels: PixelRange,
    ) -> None:
        self.network = network
        self._scene, self._roles = scene, roles
        self._known, self._budget, self._radius, self._pixels = scene.known(keep), budget, radius, pixels

    def train(
        self, bases: Tensor, steps: tuple[int, int], *, size: int, learning_rate: float, generator: torch.Generator
    ) -> None:
        """Train the generator in place with Adam.

        Args:
            bases: int64, training samples of the shield class that may carry poison.
            steps: how many against least squares, and against logistic heads that take turns.
            size: how many images a super-batch has.
            learning_rate: Adam's; it falls to zero along a cosine.
            generator: draws the super-batches.
        """
        weight = self._budget / max(1, size // 3)
        ridge = [RidgeHead(each, self._roles, weight=weight) for each in self._known]
        logistic = [
            [LogisticHead(each, self._roles, penalty=penalty, weight=weight) for each in self._known]
            for penalty in LOGISTIC_PENALTIES
        ]
        optimizer = torch.optim.Adam(self.network.parameters(), lr=learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=sum(steps))
        for step in range(sum(steps)):
            team: Team = ridge if step < steps[0] else logistic[step % len(logistic)]
            batch = draw_super_batch(
                bases, self._scene.protected, self._scene.outer.labels, self._roles, size, generator=generator
            )
            optimizer.zero_grad()
            self._backward(batch, team)
            optimizer.step()
            schedule.step()

    def poison(self, shields: Tensor, protected: Tensor) -> Tensor:
        """Return the poison of pairs, raw `(B, C, H, W)`, within the ball and on the grid.

        Args:
            shields: int64 `(B,)`, training samples.
            protected: int64 `(B,)`, positions in the pool.
        """
        blocks = self._scene.maps[0].batch_size
        made = []
        with torch.no_grad():
            for some, others in zip(torch.split(shields, blocks), torch.split(protected, blocks), strict=True):
                pairs = self.pairs(some, others)
                box = PixelBox(pairs.shields, self._radius, self._pixels)
                made.append(box.rounded(self._added(pairs)))
        return torch.cat(made)

    def pairs(self, shields: Tensor, protected: Tensor) -> Pairs:
        """Read pairs of images and their frozen features."""
        device = self._scene.maps[0].device
        images = self._scene.images(shields).to(device), self._scene.pool(protected).to(device)
        features = [torch.cat([extract.known(part).to(device) for extract in self._scene.maps], 1) for part in images]
        return Pairs(images[1], images[0], features[1], features[0])

    def _backward(self, batch: SuperBatch, team: Team) -> None:
        pairs = self.pairs(batch.shields, batch.protected)
        with torch.enable_grad():
            added = self._added(pairs)
            box = PixelBox(pairs.shields, self._radius, self._pixels)
            poison = added + (box.clamp(added) - added).detach()
            features = [extract(poison) for extract in self._scene.maps]
        rows = [head.gradient(part.detach(), batch.measured) for head, part in zip(team, features, strict=True)]
        torch.autograd.backward(features, rows)

    def _added(self, pairs: Pairs) -> Tensor:
        """The residual form of the paper: the bounded perturbation is added to the shield image."""
        perturbation: Tensor = self.network(pairs)
        return pairs.shields + self._radius * perturbation.tanh()
