"""Keep poison out of an existing training run with one callback.

Three in ten labels of the training set are wrong. This program trains the same module twice, without and with

    Trainer(callbacks=[Sanitizer(LikelihoodScorer())])

and prints the difference. When the Trainer first requests its training data, the sanitizer scores every sample,
estimates whether there is poison at all, and passes only the kept samples on. It does not know which labels are wrong,
how many, or that there are any. There are no trusted data: each third of the data is scored by a model of the other two
thirds. Without evidence of poison, nothing is removed.

Run it with `python examples/callback.py`, or with `--data-root FOLDER` for MNIST.
"""

import tempfile

import lightning.pytorch as pl
import torch
from project import Classifier, data_root, load, quiet_trainer
from torch.utils.data import DataLoader, TensorDataset

from lightning_poison import LikelihoodScorer, Sanitizer


def mislabel(clean: TensorDataset, share: float) -> tuple[TensorDataset, torch.Tensor]:
    """Return the data with a share of wrong labels, and the mask of those."""
    images, labels = clean.tensors
    generator = torch.Generator().manual_seed(1)
    wrong = torch.rand(len(labels), generator=generator) < share
    others = (labels + torch.randint(1, 10, labels.shape, generator=generator)) % 10
    return TensorDataset(images, torch.where(wrong, others, labels)), wrong


def train(data: TensorDataset, test: TensorDataset, *callbacks: pl.Callback) -> float:
    """Train the classifier and return its accuracy on the test images."""
    pl.seed_everything(0, verbose=False)
    trainer = quiet_trainer(list(callbacks))
    model = Classifier()
    trainer.fit(model, DataLoader(data, batch_size=64, shuffle=True))
    return trainer.test(model, DataLoader(test, batch_size=500), verbose=False)[0]["accuracy"]


def main() -> None:
    """Train with and without the callback."""
    clean, test = load(data_root())
    poisoned, wrong = mislabel(clean, 0.3)
    print(f"{len(poisoned):,} training images, {int(wrong.sum()):,} of them mislabeled\n")

    print(f"accuracy, trained on all images        {train(poisoned, test):.3f}")

    # The one added line. Default `dirpath`: a folder in the Trainer's log directory.
    with tempfile.TemporaryDirectory() as folder:
        sanitizer = Sanitizer(LikelihoodScorer(), dirpath=folder)
        print(f"accuracy, with the sanitizer           {train(poisoned, test, sanitizer):.3f}")
    print(f"accuracy, trained on correct labels    {train(clean, test):.3f}\n")

    # What the sanitizer found, and, since the ground truth is known here, how accurate it is.
    print(sanitizer.verdict)
    out = ~sanitizer.verdict.keep
    print(f"\nground truth: {int((out & wrong).sum())} of the {int(wrong.sum())} wrong labels were removed,")
    print(f"              {int((out & ~wrong).sum())} of the {int((~wrong).sum()):,} correct ones were lost")


if __name__ == "__main__":
    main()
