"""Keep poison out of a training that you have already: one callback.

Somebody could touch the labels of your training set, and gave three images in ten a wrong one. Your Trainer does not
notice: it trains on what it is given. This program trains the same module twice, once as before and once with

    Trainer(callbacks=[Sanitizer(LikelihoodScorer())])

and prints what that changes. When the Trainer first asks for its training data, the sanitizer scores every sample, says
whether there is poison at all, and lets the Trainer see only what it keeps. It is not told which labels are wrong, how
many, or that there are any; and nothing is trusted: each third of the data is judged by a model of the other two. Where
it finds no evidence of poison, it removes nothing.

Run it: `python examples/callback.py`, or with
`--data-root FOLDER` on MNIST.
"""

import tempfile

import lightning.pytorch as pl
import torch
from project import Classifier, data_root, load, quiet_trainer
from torch.utils.data import DataLoader, TensorDataset

from lightning_poison import LikelihoodScorer, Sanitizer


def mislabel(clean: TensorDataset, share: float) -> tuple[TensorDataset, torch.Tensor]:
    """Return the data with a share of the labels wrong, and which those are."""
    images, labels = clean.tensors
    generator = torch.Generator().manual_seed(1)
    wrong = torch.rand(len(labels), generator=generator) < share
    others = (labels + torch.randint(1, 10, labels.shape, generator=generator)) % 10
    return TensorDataset(images, torch.where(wrong, others, labels)), wrong


def train(data: TensorDataset, test: TensorDataset, *callbacks: pl.Callback) -> float:
    """Train the classifier on some data and return its accuracy on the test images."""
    pl.seed_everything(0, verbose=False)
    trainer = quiet_trainer(list(callbacks))
    model = Classifier()
    trainer.fit(model, DataLoader(data, batch_size=64, shuffle=True))
    return trainer.test(model, DataLoader(test, batch_size=500), verbose=False)[0]["accuracy"]


def main() -> None:
    """Train with and without the callback."""
    clean, test = load(data_root())
    poisoned, wrong = mislabel(clean, 0.3)
    print(f"{len(poisoned):,} training images, {int(wrong.sum()):,} of them under a wrong label\n")

    print(f"accuracy, trained on all of them       {train(poisoned, test):.3f}")

    # The one line. Without `dirpath`, the verdict and the manifest of what was kept out go to the Trainer's log folder.
    with tempfile.TemporaryDirectory() as folder:
        sanitizer = Sanitizer(LikelihoodScorer(), dirpath=folder)
        print(f"accuracy, with the sanitizer           {train(poisoned, test, sanitizer):.3f}")
    print(f"accuracy, had no label been touched    {train(clean, test):.3f}\n")

    # What the sanitizer found, in its own words; and, since we know the truth here, how right it was.
    print(sanitizer.verdict)
    out = ~sanitizer.verdict.keep
    print(f"\nin truth: {int((out & wrong).sum())} of the {int(wrong.sum())} wrong labels were caught,")
    print(f"          {int((out & ~wrong).sum())} of the {int((~wrong).sum()):,} right ones lost")


if __name__ == "__main__":
    main()
