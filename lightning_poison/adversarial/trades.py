"""`TRADES`: the loss of clean inputs, and how far the reading of changed ones lies from theirs.

Zhang, Yu, Jiao, Xing, El Ghaoui, Jordan, "Theoretically Principled Trade-off between Robustness and Accuracy", ICML
2019, arXiv 1901.08573, eq. 5, with the Kullback-Leibler divergence that the authors use for more than two classes.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from lightning_poison.adversarial.batch import AttackedBatch
from lightning_poison.adversarial.recipes import Step
from lightning_poison.adversarial.step_output import loss_in, with_loss
from lightning_poison.checks import expected, positive
from lightning_poison.contexts import untracked


def reading_divergence(logits: Tensor, clean_logits: Tensor) -> Tensor:
    """Compute KL(p(x) ‖ p(x′)) of each sample.

    Args:
        logits: of changed inputs x′, `(B, C)`.
        clean_logits: of the clean inputs x, `(B, C)`.

    Returns:
        float32 `(B,)`, at least 0.

    Example:
        >>> import torch
        >>> clean = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
        >>> reading_divergence(torch.tensor([[0.0, 0.0], [0.0, 2.0]]), clean).round(decimals=2)
        tensor([0.0000, 0.4300])
    """
    log_p, log_q = F.log_softmax(clean_logits.float(), dim=1), F.log_softmax(logits.float(), dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


class TRADES:
    """Trains on clean inputs, and adds β KL(p(x) ‖ p(x′)) to the loss, where x′ is changed so that this is large.

    The user's step gets the clean batch; β times the divergence, averaged over the batch, is added to the loss that it
    returns. The module's forward runs twice more, with the statistics of the batch: once for the clean inputs, which
    leaves the running statistics of batch norm alone, and once for the changed ones, which moves them, as the authors'
    code does. Under manual optimization there is no loss to add to, and it is an error; a step that returns nothing
    skips its batch, as ever. At the clean inputs the divergence has no gradient, so that the adversary needs a random
    start.

    Args:
        beta: 1/λ of the paper, above 0; the authors use 1 and 6.

    Raises:
        ValueError: where β is out of its range.

    Example:
        >>> TRADES()
        TRADES(beta=6)
    """

    def __init__(self, beta: float = 6.0) -> None:
        self.beta = positive("beta", beta)

    def __repr__(self) -> str:
        return f"TRADES(beta={self.beta:g})"

    def step(self, attacked: AttackedBatch, call_next: Step) -> Any:
        """Train on the clean batch, and on the divergence."""
        if not getattr(attacked.module, "automatic_optimization", True):
            raise ValueError(
                "Expected automatic optimization for `TRADES`, which adds to the loss that a step returns, but got a "
                f"{type(attacked.module).__name__} that optimizes by itself.\nUse `Madry()` or `Free()`."
            )
        if attacked.adversary.steps == 1 and not getattr(attacked.adversary, "random_start", True):
            hint = "At the clean inputs the divergence is 0, and has no gradient."
            raise ValueError(expected("random_start", "True for a single step of `TRADES`", "False", hint))
        aim = attacked.read(attacked.inputs)
        changed = attacked.perturbed(attacked.inputs, lambda inputs: reading_divergence(attacked.logits(inputs), aim))
        output = call_next(attacked.batch)
        if output is None:
            return None
        loss = loss_in(output)
        with untracked(attacked.module):
            clean = attacked.logits(attacked.inputs)
        divergence = reading_divergence(attacked.logits(changed), clean).mean()
        return with_loss(output, loss + self.beta * divergence)
