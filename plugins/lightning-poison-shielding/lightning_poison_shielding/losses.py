"""The loss of class shielding: the protected class is misclassified, all other classes are classified correctly."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class ShieldingGoal:
    """The protected class, the shield class, and the weight of the protected class. Other classes are control classes.

    Args:
        protected_class: Class to be misclassified.
        shield_class: Class that carries the poison.
        protected_weight: t, the weight of the protected class relative to the others, above 0.
    """

    protected_class: int
    shield_class: int
    protected_weight: float = 1.0


def flipped_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return −ln(1 − p_y), averaged over the samples: 0 if the label has no probability.

    Pinkava, Towards Class-Shielding Data Poisoning, section 2.2, the flipped loss (its equations are not numbered).
    Computed from the logits, so that it is finite if p_y rounds to 1.

    Args:
        logits: Logits of at least two classes, `(B, C)`.
        labels: Labels that should not be predicted, int64 `(B,)`.

    Returns:
        A scalar of at least 0.

    Example:
        >>> flipped_cross_entropy(torch.zeros(1, 2), torch.tensor([0]))
        tensor(0.6931)
    """
    others = logits.scatter(1, labels[:, None], float("-inf"))
    return (logits.logsumexp(1) - others.logsumexp(1)).mean()


def shielding_loss(logits: Tensor, labels: Tensor, goal: ShieldingGoal) -> Tensor:
    """Return ((CE(shield) + CE(control)) / 2 + t · flipped CE(protected)) / 2.

    The total loss of Pinkava, section 2.2. A group without samples contributes 0.

    Args:
        logits: Logits, `(B, C)`.
        labels: True labels, int64 `(B,)`.
        goal: Protected class, shield class and t.

    Returns:
        A scalar of at least 0, differentiable with respect to the logits.

    Example:
        >>> logits = torch.tensor([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 9.0]])
        >>> bool(shielding_loss(logits, torch.tensor([0, 1, 2]), ShieldingGoal(0, 1)) > 4)
        True
    """
    protected, shield = labels == goal.protected_class, labels == goal.shield_class
    zero = logits.sum() * 0
    shield_loss, control_loss = (
        F.cross_entropy(logits[group], labels[group]) if group.any() else zero
        for group in (shield, ~(protected | shield))
    )
    protected_loss = flipped_cross_entropy(logits[protected], labels[protected]) if protected.any() else zero
    return ((shield_loss + control_loss) / 2 + goal.protected_weight * protected_loss) / 2


def head_gradient(head: Tensor, features: Tensor, labels: Tensor, goal: ShieldingGoal, *, scale: float = 1.0) -> Tensor:
    """Return the gradient of the shielding loss with respect to a linear head.

    Args:
        head: Weights, `(D, C)`. The logits are `scale · features @ head`.
        features: Features of the images on which the loss is measured, `(B, D)`.
        labels: True labels of these images, int64 `(B,)`.
        goal: Protected class, shield class and t.
        scale: Factor of the logits.

    Returns:
        `(D, C)`, detached.
    """
    with torch.enable_grad():
        leaf = head.detach().requires_grad_()
        loss = shielding_loss(scale * (features @ leaf), labels, goal)
        (gradient,) = torch.autograd.grad(loss, leaf)
    return gradient
