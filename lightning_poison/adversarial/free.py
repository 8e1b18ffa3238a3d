"""`Free`: adversarial training at the cost of standard training, by replaying batches.

Shafahi, Najibi, Ghiasi, Xu, Dickerson, Studer, Davis, Taylor, Goldstein, "Adversarial training for free!", NeurIPS
2019, arXiv 1904.12843, algorithm 1.
"""

from typing import Any

import torch
from torch import Tensor

from lightning_poison.adversarial.batch import AttackedBatch
from lightning_poison.adversarial.recipes import Step
from lightning_poison.adversarial.step_output import loss_in
from lightning_poison.checks import expected, positive_int
from lightning_poison.data.pixel_range import PixelRange


class Free:
    """Trains on each batch several times, and uses each backward pass for both weights and inputs.

    A batch is replayed for `replays` steps, instead of the batches that the loader yields meanwhile. An epoch of n
    batches therefore trains on n / replays of them, costs as much as a standard epoch, and keeps the number of steps
    and the learning-rate schedule. The authors divide the number of epochs instead. Each epoch replays different
    batches, even if the loader does not shuffle. The perturbation is carried over from batch to batch, as in the paper.

    Only the radius of the adversary is used. The step is one radius, as in the paper, and the norm is L∞. The replayed
    batch and its perturbation are local to a rank and not part of a checkpoint: a resumed run replays its first batch,
    and starts with a perturbation of 0.

    Args:
        replays: m of the paper, at least 2. Default: 4.

    Raises:
        ValueError: If `replays` is smaller than 2.

    Example:
        >>> Free()
        Free(replays=4)
    """

    def __init__(self, replays: int = 4) -> None:
        self.replays = positive_int("replays", replays, minimum=2)
        self._replayed: AttackedBatch | None = None
        self._perturbation: Tensor | None = None
        self._is_checked = False

    def __repr__(self) -> str:
        return f"Free(replays={self.replays})"

    def step(self, attacked: AttackedBatch, call_next: Step) -> Any:
        """Train on the replayed batch, and update its perturbation by the gradient with respect to the inputs.

        Raises:
            ValueError: If the norm is not L∞, or the first loss has no gradient with respect to the inputs.
        """
        if getattr(attacked.adversary, "norm", "linf") != "linf":
            hint = "`Free` moves each pixel by the sign of its gradient."
            raise ValueError(expected("norm", "'linf' for `Free`", repr(attacked.adversary.norm), hint))  # type: ignore[attr-defined]
        if self._replayed is None or (attacked.index + attacked.epoch) % self.replays == 0:
            self._replayed = attacked
        batch, radius = self._replayed, attacked.strength * attacked.adversary.epsilon
        pixels = batch.pixels or PixelRange()
        raw = pixels.to_raw(batch.inputs.detach().float())
        perturbation = self._previous_perturbation(raw).clamp(-radius, radius)
        inputs = pixels.from_raw((raw + perturbation).clamp(0, 1)).to(batch.inputs.dtype).requires_grad_()

        def update(gradient: Tensor) -> None:
            updated = (perturbation + radius * gradient.float().sign()).clamp(-radius, radius)
            self._perturbation = (raw + updated).clamp(0, 1) - raw

        inputs.register_hook(update)  # type: ignore[no-untyped-call]
        output = call_next(batch.with_inputs(inputs))
        if not self._is_checked and output is not None:
            self._check_gradient(loss_in(output), inputs)
        return output

    def _check_gradient(self, loss: Tensor, inputs: Tensor) -> None:
        """Check once that a backward pass reaches the inputs."""
        self._is_checked = not loss.requires_grad or inputs in _leaves(loss)
        if not self._is_checked:
            what = "a function whose loss has a gradient in the inputs"
            hint = "Do not detach the inputs in the step, or use `Madry()`."
            raise ValueError(expected("training_step", what, "one that has none", hint))

    def _previous_perturbation(self, raw: Tensor) -> Tensor:
        """Return the perturbation of the previous step, cropped or zero-padded to the length of the batch."""
        previous = self._perturbation
        if previous is None or previous.shape[1:] != raw.shape[1:]:
            return torch.zeros_like(raw)
        missing = len(raw) - len(previous)
        padded = torch.cat([previous, raw.new_zeros(missing, *raw.shape[1:])]) if missing > 0 else previous
        return padded[: len(raw)]


def _leaves(loss: Tensor) -> set[Tensor]:
    """Return the leaf tensors that receive a gradient in a backward pass of a loss."""
    leaves: set[Tensor] = set()
    visited, pending = set(), [loss.grad_fn]
    while pending:
        node = pending.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        if hasattr(node, "variable"):
            leaves.add(node.variable)
        pending += [following for following, _ in node.next_functions]
    return leaves
