"""What class shielding minimizes: the protected class is misread, all others are read rightly."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Roles:
    """Which class plays which part; the rest is control.

    Args:
        protected_class: the class to be misread.
        shield_class: the class that carries the poison.
        protected_weight: t, what the protected class counts for beside the others, above 0.
    """

    protected_class: int
    shield_class: int
    protected_weight: float = 1.0


def flipped_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return −ln(1 − p_y), the mean over the samples: 0 where the label is given no probability at all.

    Pinkava, Towards Class-Shielding Data Poisoning, section 2.2, the flipped loss (its equations carry no numbers).
    Computed from the logits, so that it stays finite where p_y rounds to 1.

    Args:
        logits: `(B, C)`, at least two classes.
        labels: int64 `(B,)`, what the samples shall not be read as.

    Returns:
        A scalar of at least 0.

    Example:
        >>> flipped_cross_entropy(torch.zeros(1, 2), torch.tensor([0]))
        tensor(0.6931)
    """
    others = logits.scatter(1, labels[:, None], float("-inf"))
    return (logits.logsumexp(1) - others.logsumexp(1)).mean()


def shielding_loss(logits: Tensor, labels: Tensor, roles: Roles) -> Tensor:
    """Return ((CE(shield) + CE(control)) / 2 + t · flipped CE(protected)) / 2.

    The total loss of Pinkava, section 2.2. A group without a sample counts as 0.

    Args:
        logits: `(B, C)`.
        labels: int64 `(B,)`, the true labels.
        roles: which class is which, and t.

    Returns:
        A scalar of at least 0, differentiable in the logits.

    Example:
        >>> logits = torch.tensor([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 9.0]])
        >>> hidden = shielding_loss(logits, torch.tensor([1, 1, 2]), Roles(0, 1))
        >>> read = shielding_loss(logits, torch.tensor([0, 1, 2]), Roles(0, 1))
        >>> bool(read > 4)
        True
    """
    protected, shield = labels == roles.protected_class, labels == roles.shield_class
    nothing = logits.sum() * 0
    kept = [
        F.cross_entropy(logits[group], labels[group]) if group.any() else nothing
        for group in (shield, ~(protected | shield))
    ]
    hidden = flipped_cross_entropy(logits[protected], labels[protected]) if protected.any() else nothing
    return ((kept[0] + kept[1]) / 2 + roles.protected_weight * hidden) / 2


def head_gradient(head: Tensor, features: Tensor, labels: Tensor, roles: Roles, *, scale: float = 1.0) -> Tensor:
    """Return the gradient of the shielding loss in a linear head.

    Args:
        head: `(D, C)`; the logits are `scale · features @ head`.
        features: `(B, D)`, of the images that the loss is measured on.
        labels: int64 `(B,)`, their true labels.
        roles: which class is which.
        scale: what logits are multiplied by.

    Returns:
        `(D, C)`, detached.
    """
    with torch.enable_grad():
        leaf = head.detach().requires_grad_()
        loss = shielding_loss(scale * (features @ leaf), labels, roles)
        (gradient,) = torch.autograd.grad(loss, leaf)
    return gradient
