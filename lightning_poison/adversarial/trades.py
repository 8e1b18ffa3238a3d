"""`TRADES`: the loss of clean inputs plus the divergence of the predictions for perturbed inputs.

Zhang, Yu, Jiao, Xing, El Ghaoui, Jordan, "Theoretically Principled Trade-off between Robustness and Accuracy", ICML
2019, arXiv 1901.08573, eq. 5, with the Kullback-Leibler divergence that the authors use for more than two classes.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from lightning_poison.adversarial.batch import AttackedBatch
from lightning_poison.adversarial.recipes import Step
from lightning_poison.adversarial.step_output import loss_in, with_loss
from lightning_poison.checks import describe, expected, positive
from lightning_poison.contexts import untracked
from lightning_poison.data.sample_spec import are_probabilities


def prediction_divergence(logits: Tensor, clean_logits: Tensor) -> Tensor:
    """Compute KL(p(x) ‖ p(x′)) of each sample.

    Args:
        logits: Logits of perturbed inputs x′, `(B, C)`.
        clean_logits: Logits of clean inputs x, `(B, C)`.

    Returns:
        Divergences, float32 `(B,)`, at least 0.

    Example:
        >>> import torch
        >>> clean = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
        >>> prediction_divergence(torch.tensor([[0.0, 0.0], [0.0, 2.0]]), clean).round(decimals=2)
        tensor([0.0000, 0.4300])
    """
    log_p, log_q = F.log_softmax(clean_logits.float(), dim=1), F.log_softmax(logits.float(), dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


class TRADES:
    """Trains on clean inputs, with β KL(p(x) ‖ p(x′)) added to the loss, where x′ is perturbed to maximize it.

    The user's step receives the clean batch, and β times the divergence, averaged over the batch, is added to the loss
    that it returns. The module runs two more forward passes with batch statistics: one for the clean inputs, without an
    update of batch norm's running statistics, and one for the perturbed inputs, with an update, as in the authors'
    code. Manual optimization is not supported, since there is no loss to add to. If the step returns `None`, the batch
    is skipped as usual. The divergence has no gradient at the clean inputs, so the adversary needs a random start. It
    compares class probabilities: regression, multi-label classification and segmentation are refused in the first step.

    Args:
        beta: 1/λ of the paper, above 0. The authors use 1 and 6. Default: 6.

    Raises:
        ValueError: If `beta` is out of range.

    Example:
        >>> TRADES()
        TRADES(beta=6)
    """

    def __init__(self, beta: float = 6.0) -> None:
        self.beta = positive("beta", beta)

    def __repr__(self) -> str:
        return f"TRADES(beta={self.beta:g})"

    def step(self, attacked: AttackedBatch, call_next: Step) -> Any:
        """Train on the clean batch and the divergence."""
        if not getattr(attacked.module, "automatic_optimization", True):
            raise ValueError(
                "Expected automatic optimization for `TRADES`, which adds to the loss that a step returns, but got "
                f"{type(attacked.module).__name__} with manual optimization.\nUse `Madry()` or `Free()`."
            )
        if attacked.adversary.steps == 1 and not getattr(attacked.adversary, "random_start", True):
            hint = "The divergence is 0 at the clean inputs, and has no gradient there."
            raise ValueError(expected("random_start", "True for a single step of `TRADES`", "False", hint))
        reference = attacked.evaluate(attacked.inputs)
        _check_classes(reference, attacked.labels)
        perturbed = attacked.perturb(
            attacked.inputs, lambda inputs: prediction_divergence(attacked.logits(inputs), reference)
        )
        output = call_next(attacked.batch)
        if output is None:
            return None
        loss = loss_in(output)
        with untracked(attacked.module):
            clean = attacked.logits(attacked.inputs)
        divergence = prediction_divergence(attacked.logits(perturbed), clean).mean()
        return with_loss(output, loss + self.beta * divergence)


def _check_classes(logits: Tensor, labels: Tensor) -> None:
    """Check that the module predicts one class per sample, by a softmax.

    Raises:
        ValueError: If logits or labels have another form, as in regression.
    """
    way = (
        "`TRADES` compares the predicted class probabilities of clean and perturbed inputs, for one class per sample. "
    )
    way += "For regression, multi-label classification or segmentation use `Madry()` with a `loss=` for each sample."
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(expected("logits", "(B, C), of at least two classes", describe(logits), way))
    if labels.shape != logits.shape[:1] if not labels.is_floating_point() else not are_probabilities(labels):
        raise ValueError(expected("labels", "class indices (B,), or probabilities (B, C)", describe(labels), way))
