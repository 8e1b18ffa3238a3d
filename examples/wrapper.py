"""Keep poison out by wrapping the data, and attack your own data to see that it works.

Here the data come from a LightningDataModule, and nothing in the Trainer changes. Two wrappers go around it:

    PoisonedDataModule(data, attack, threat=...)      poisons the training set, so that you know the truth
    SanitizedDataModule(data, scorer)                 keeps out of it what is suspicious

Both look like the DataModule that they wrap in all but the training loader: its validation and test loaders, its
hooks, its attributes and its hyper-parameters are still its own. They can be nested: here the sanitizer stands around
data that were poisoned a moment before, as it would around data that a stranger has poisoned.

The attack comes from a plug-in and is found by its name: somebody relabels fives as eights, so that the model reads a
five as an eight. `lightning-poison attacks` lists what is installed; `pip install 'lightning-poison[demo]'` brings
these.

Run it: `python examples/wrapper.py`, or with `--data-root FOLDER` on MNIST.
"""

import tempfile

import lightning.pytorch as pl
import torch
from project import Classifier, Digits, data_root, quiet_trainer

from lightning_poison import LikelihoodScorer, PoisonedDataModule, SanitizedDataModule, Threat, get_attack
from lightning_poison.evaluation import AttackSuccessRate


def train(data: pl.LightningDataModule) -> pl.LightningModule:
    """Train the classifier on some data, print its accuracy on the test images, and return it."""
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

    # The attacker may touch 3 samples in a hundred, which is about 30 in a hundred of one class. It draws its poison
    # once, when the training loader is first asked for; `poisoned.poison` then holds the truth.
    attack = get_attack("label-flip", source_class=5, target_class=8)
    threat = Threat.of_fraction(digits.train_set, 0.03)
    poisoned = PoisonedDataModule(digits, attack, threat=threat)

    print("trained on the poisoned data")
    print_success(train(poisoned), poisoned)

    print("trained through the sanitizer")
    with tempfile.TemporaryDirectory() as folder:
        # Without `dirpath`, the manifest goes to the Trainer's log folder.
        sanitized = SanitizedDataModule(poisoned, LikelihoodScorer(), dirpath=folder)
        print_success(train(sanitized), poisoned)

    print(f"\n{sanitized.verdict}")
    truth = poisoned.poison.is_poison(len(digits.train_set))
    out = ~sanitized.verdict.keep
    print(f"\nin truth: {int((out & truth).sum())} of the {int(truth.sum())} poison samples were caught,")
    print(f"          {int((out & ~truth).sum())} of the {int((~truth).sum()):,} others lost")


@torch.no_grad()
def print_success(model: pl.LightningModule, poisoned: PoisonedDataModule) -> None:
    """Print how often the attacker gets what it wants, on the items that the attack itself names."""
    metric = AttackSuccessRate(poisoned.poison.objective)
    items = poisoned.poison.objective.evaluation_set(poisoned.test_set)
    inputs, true, wanted = zip(*(items[position] for position in range(len(items))), strict=True)
    metric.update(model(torch.stack(inputs)), torch.tensor(true), torch.tensor(wanted))
    print(f"  attack success rate    {metric.compute():.3f}")


if __name__ == "__main__":
    main()
