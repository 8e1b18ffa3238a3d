"""`Free`: adversarial training at the price of the plain one, by replaying batches.

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
    """Trains on each batch several times, and lets each backward pass change weights and inputs at once.

    A batch is held for `replays` steps, in the place of those that the loader makes meanwhile; an epoch of n batches
    sees n / replays of them, so that an epoch costs what a plain one does, and steps and learning-rate schedules stay
    what they were. The authors divide the number of epochs instead. In each epoch other batches are held, also where
    the loader does not shuffle. The change of the inputs is kept from batch to batch, as in the paper.

    Only the radius of the adversary is used; the step is one radius, as in the paper, and the norm L∞. The held batch
    and its change belong to a rank and are no part of a checkpoint: a resumed run holds the batch that comes first, and
    starts with a change of 0.

    Args:
        replays: m of the paper, at least 2.

    Raises:
        ValueError: where it is smaller.

    Example:
        >>> Free()
        Free(replays=4)
    """

    def __init__(self, replays: int = 4) -> None:
        self.replays = positive_int("replays", replays, minimum=2)
        self._held: AttackedBatch | None = None
        self._change: Tensor | None = None
        self._is_reached = False

    def __repr__(self) -> str:
        return f"Free(replays={self.replays})"

    def step(self, attacked: AttackedBatch, call_next: Step) -> Any:
        """Train on the held batch; its gradient with respect to the inputs moves their change.

        Raises:
            ValueError: where the norm is not L∞, or in the first step the loss has no gradient in the inputs.
        """
        if getattr(attacked.adversary, "norm", "linf") != "linf":
            hint = "`Free` moves each pixel by the sign of its gradient."
            raise ValueError(expected("norm", "'linf' for `Free`", repr(attacked.adversary.norm), hint))  # type: ignore[attr-defined]
        if self._held is None or (attacked.index + attacked.epoch) % self.replays == 0:
            self._held = attacked
        held, radius = self._held, attacked.strength * attacked.adversary.epsilon
        pixels = held.pixels or PixelRange()
        raw = pixels.to_raw(held.inputs.detach().float())
        change = self._change_for(raw).clamp(-radius, radius)
        inputs = pixels.from_raw((raw + change).clamp(0, 1)).to(held.inputs.dtype).requires_grad_()

        def move(gradient: Tensor) -> None:
            moved = (change + radius * gradient.float().sign()).clamp(-radius, radius)
            self._change = (raw + moved).clamp(0, 1) - raw

        inputs.register_hook(move)  # type: ignore[no-untyped-call]
        output = call_next(held.with_inputs(inputs))
        if not self._is_reached and output is not None:
            self._check(loss_in(output), inputs)
        return output

    def _check(self, loss: Tensor, inputs: Tensor) -> None:
        """Look once whether a backward pass will come to the inputs."""
        self._is_reached = not loss.requires_grad or inputs in _leaves(loss)
        if not self._is_reached:
            what = "a function whose loss has a gradient in the inputs"
            hint = "Do not detach the inputs in the step, or use `Madry()`."
            raise ValueError(expected("training_step", what, "one that has none", hint))

    def _change_for(self, raw: Tensor) -> Tensor:
        """Return the change so far, cut or filled up with zeros for a batch of another length."""
        known = self._change
        if known is None or known.shape[1:] != raw.shape[1:]:
            return torch.zeros_like(raw)
        short = len(raw) - len(known)
        return torch.cat([known, raw.new_zeros(short, *raw.shape[1:])]) if short > 0 else known[: len(raw)]


def _leaves(loss: Tensor) -> set[Tensor]:
    """Return the tensors that a backward pass of a loss gives a gradient to."""
    found: set[Tensor] = set()
    known, ahead = set(), [loss.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in known:
            continue
        known.add(node)
        if hasattr(node, "variable"):
            found.add(node.variable)
        ahead += [following for following, _ in node.next_functions]
    return found
