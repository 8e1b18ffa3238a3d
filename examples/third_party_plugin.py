"""Write an attack, verify it, and measure whether a sanitizer detects it.

An attack is one class with a method `craft`. It receives the training set and the limits, and returns which samples it
controls, what they look like now, and its objective. It does not import Lightning and trains nothing.

This attack appends noisy copies of one class with the label of another. It changes no existing sample, so a comparison
with the original files finds no difference.

In a package of its own, one entry point makes the class available by name (`get_attack`, the command line):
`docs/write-an-attack.md` shows this step. It is not needed to use the object itself, as here.

Run it with `python examples/third_party_plugin.py`, or with `--data-root FOLDER` for MNIST.
"""

from collections.abc import Sequence
from typing import Any

import torch
from project import data_root, load
from torchmetrics.functional import precision, recall

from lightning_poison import LikelihoodScorer, Poison, PoisonedDataset, Surrogate, Threat, craft, sanitize
from lightning_poison.attacks import ProtectedClassObjective
from lightning_poison.data import labels_of
from lightning_poison.testing import check_attack


class NoisyCopies:
    """Appends noisy copies of images of one class, labeled as another."""

    name = "noisy-copies"
    clean_label = False  # the label of a copy differs from that of its original

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
        # Draw random samples with the generator only: the same seed gives the same poison.
        source = (labels_of(dataset) == self.source_class).nonzero().flatten()
        bases = source[torch.randperm(len(source), generator=generator)[: threat.budget]]

        # Copy them, and stay in the pixel range and on the grid of levels of the data; `craft` rejects anything else.
        images = torch.stack([dataset[index][0] for index in bases.tolist()])
        noise = self.noise * torch.randn(images.shape, generator=generator)
        images = threat.pixels.round(threat.pixels.clamp(images + noise))

        # Indices from the length of the data set on append samples.
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
    """Verify the attack, run it, and detect it."""
    # 1. The conformance suite runs the attack on small bundled images, and raises an error if a rule is broken.
    check_attack(NoisyCopies)
    print("check_attack: the attack follows all rules")

    # 2. `craft` runs it on real data, verifies the result again, and returns the poison.
    train, _ = load(data_root())
    threat = Threat.of_fraction(train, 0.03)
    poison = craft(NoisyCopies(4, 9), train, threat, generator=torch.Generator().manual_seed(0))
    poisoned = PoisonedDataset(train, poison)
    print(f"{poison}: {len(train):,} samples before, {len(poisoned):,} after\n")

    # 3. A sanitizer that does not know the attack scores the poisoned data. The callback and the DataModule wrapper
    #    call `sanitize` too.
    verdict = sanitize(poisoned, LikelihoodScorer())
    print(verdict)

    # 4. The ground truth is known here, so the verdict can be evaluated.
    removed, is_poison = (~verdict.keep).int(), poisoned.is_poison
    print(f"\nground truth: {recall(removed, is_poison, task='binary'):.0%} of the poison was removed,")
    print(f"              {precision(removed, is_poison, task='binary'):.0%} of the removed samples are poison")


if __name__ == "__main__":
    main()
