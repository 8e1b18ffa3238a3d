"""Keep poison out by wrapping the data, and attack the data to measure the defense.

Here the data come from a LightningDataModule, and nothing changes in the Trainer. There are two wrappers:

    PoisonedDataModule(data, attack, threat=...)      poisons the training set, with known ground truth
    SanitizedDataModule(data, scorer)                 removes suspicious samples from it

Except for the training loader, both behave like the wrapped DataModule: its validation and test loaders, hooks,
attributes and hyperparameters are unchanged. They can be nested: here the sanitizer wraps data that have just been
poisoned, like data that someone else has poisoned.

The attack is a plug-in, created by name: it relabels fives as eights, so that the model predicts a five as an eight.
`lightning-poison attacks` lists the installed attacks; `pip install ./plugins/*/`, in a clone of the repository,
installs these.

Run it with `python examples/wrapper.py`, or with `--data-root FOLDER` for MNIST.
"""

import tempfile

import lightning.pytorch as pl
import torch
from project import Classifier, Digits, data_root, quiet_trainer

from lightning_poison import LikelihoodScorer, PoisonedDataModule, SanitizedDataModule, Threat, get_attack
from lightning_poison.evaluation import AttackSuccessRate


def train(data: pl.LightningDataModule) -> pl.LightningModule:
    """Train the classifier, print its accuracy on the test images, and return it."""
    pl.seed_everything(0, verbose=False)
    trainer = quiet_trainer()
    model = Classifier()
    trainer.fit(model, datamodule=data)
    accuracy = trainer.test(model, datamodule=data, verbose=False)[0]["accuracy"]
    print(f"  accuracy               {accuracy:.3f}")
    return model


def main() -> None:
    """Train on poisoned data, with and without the sanitizer."""
    digits = Digits(data_root())

    # The attacker may change 3 % of the samples, which is about 30 % of one class. The poison is drawn once, when the
    # training loader is first requested; `poisoned.poison` then holds the ground truth.
    attack = get_attack("label-flip", source_class=5, target_class=8)
    threat = Threat.of_fraction(digits.train_set, 0.03)
    poisoned = PoisonedDataModule(digits, attack, threat=threat)

    print("trained on the poisoned data")
    print_success(train(poisoned), poisoned)

    print("trained on the sanitized data")
    with tempfile.TemporaryDirectory() as folder:
        # Default `dirpath`: a folder in the Trainer's log directory.
        sanitized = SanitizedDataModule(poisoned, LikelihoodScorer(), dirpath=folder)
        print_success(train(sanitized), poisoned)

    print(f"\n{sanitized.verdict}")
    truth = poisoned.poison.is_poison(len(digits.train_set))
    out = ~sanitized.verdict.keep
    print(f"\nground truth: {int((out & truth).sum())} of the {int(truth.sum())} poison samples were removed,")
    print(f"              {int((out & ~truth).sum())} of the {int((~truth).sum()):,} others were lost")


@torch.no_grad()
def print_success(model: pl.LightningModule, poisoned: PoisonedDataModule) -> None:
    """Print the attack success rate on the evaluation set that the attack defines."""
    metric = AttackSuccessRate(poisoned.poison.objective)
    items = poisoned.poison.objective.evaluation_set(poisoned.test_set)
    inputs, true, wanted = zip(*(items[position] for position in range(len(items))), strict=True)
    metric.update(model(torch.stack(inputs)), torch.tensor(true), torch.tensor(wanted))
    print(f"  attack success rate    {metric.compute():.3f}")


if __name__ == "__main__":
    main()
