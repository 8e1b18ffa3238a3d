"""Write an attack of your own, have it checked, and see whether a sanitizer catches it.

An attack is one class with a method `craft`. It is given the training set and the limits, and says which samples it
controls, what they look like now, and what it wants. It imports no Lightning and trains nothing.

The attack here adds noisy copies of one class under the label of another: it changes nobody's sample, so that whoever
compares the old files with what they were finds nothing.

In a distribution of its own, one entry point makes such a class known by its name (`get_attack`, the command line):
`docs/write-an-attack.md` shows that step. Without one, the object itself is good enough, as here.

Run it: `python examples/third_party_plugin.py`, or with `--data-root FOLDER` on MNIST.
"""

from collections.abc import Sequence
from typing import Any

import torch
from project import data_root, load

from lightning_poison import LikelihoodScorer, Poison, PoisonedDataset, Surrogate, Threat, craft, sanitize
from lightning_poison.attacks import ProtectedClassObjective
from lightning_poison.data import labels_of
from lightning_poison.evaluation import RemovalPrecision, RemovalRecall
from lightning_poison.testing import check_attack


class NoisyCopies:
    """Appends noisy copies of images of one class, labeled as another."""

    name = "noisy-copies"
    clean_label = False  # the copies carry another label than the images they were made from

    def __init__(self, source_class: int = 1, target_class: int = 2, *, noise: float = 0.05) -> None:
        self.source_class = source_class
        self.target_class = target_class
        self.noise = noise

    def craft(
        self,
        dataset: Any,
        threat: Threat,
        *,
        surrogates: Sequence[Surrogate],
        holdout: Any,
        generator: torch.Generator,
    ) -> Poison:
        """Return at most `threat.budget` copies."""
        # Choose at random, but by the generator alone: the same seed gives the same poison.
        source = (labels_of(dataset) == self.source_class).nonzero().flatten()
        bases = source[torch.randperm(len(source), generator=generator)[: threat.budget]]

        # Copy, and stay in the range and on the grid of levels that the data have: the door would refuse anything else.
        images = torch.stack([dataset[index][0] for index in bases.tolist()])
        noise = self.noise * torch.randn(images.shape, generator=generator)
        images = threat.pixels.round(threat.pixels.clamp(images + noise))

        # Indices from the length of the data set on mean: appended.
        return Poison(
            indices=torch.arange(len(dataset), len(dataset) + len(bases)),
            base_indices=bases,
            inputs=images,
            labels=torch.full_like(bases, self.target_class),
            objective=ProtectedClassObjective(self.source_class, self.target_class),
            attack=self.name,
            settings={"source_class": self.source_class, "target_class": self.target_class, "noise": self.noise},
        )


def main() -> None:
    """Check the attack, use it, and look for it."""
    # 1. The conformance suite runs the attack on small images that it brings along, and raises where a rule is broken.
    check_attack(NoisyCopies)
    print("check_attack: the attack keeps the contract")

    # 2. The door runs it on real data, checks what comes back once more, and hands out the poison.
    train, _ = load(data_root())
    threat = Threat.of_fraction(train, 0.03)
    poison = craft(NoisyCopies(4, 9), train, threat, generator=torch.Generator().manual_seed(0))
    poisoned = PoisonedDataset(train, poison)
    print(f"{poison}: {len(train):,} samples before, {len(poisoned):,} after\n")

    # 3. A sanitizer that knows nothing of the attack judges the poisoned data. `sanitize` is what the callback and the
    #    DataModule wrapper do, without a Trainer.
    verdict = sanitize(poisoned, LikelihoodScorer())
    print(verdict)

    # 4. The truth is known here, so the verdict can be measured.
    precision, recall = RemovalPrecision(), RemovalRecall()
    for metric in (precision, recall):
        metric.update(verdict.keep, poisoned.is_poison)
    print(f"\nin truth: {recall.compute():.0%} of the poison was caught,")
    print(f"          {precision.compute():.0%} of what was kept out is poison")


if __name__ == "__main__":
    main()
