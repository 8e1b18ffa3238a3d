"""Paper 001: the Gaussian mixture loss against clean-label poison."""

import functools
from pathlib import Path
from typing import Any

import torch
from harness.datasets import bases_of, load_mnist
from harness.frog_poison import TRAINING, fit_twin
from harness.lgm_twins import LGMClassifier, SoftmaxClassifier, class_means, features_of
from harness.networks import accuracy_of
from harness.runs import Figures
from likelihood_mnist import collisions, craft_poison, detection, split
from mixture_head_crafting import BETAS, SETTINGS, TWINS, attacker_on, draw_pairs, load, required
from torch import Tensor
from torch.utils.data import TensorDataset

from lightning_poison import LikelihoodScorer, PoisonedDataset
from lightning_poison.scorers import ConfidenceScorer
from paper_claims.claims import Claim, Measurement, Medians, Paper, Row, Verdict, judge

WORKS, SEPARATES, DETECTED = 0.5, 0.99, 0.9
AHEAD, AHEAD_TPR, AS_ACCURATE, FARTHER = 0.005, 0.03, 0.02, 1.1


def likelihoods(root: Path, seed: int, *, training: int, tested: int) -> Figures:
    """Train the twins, craft frogs on each, and score them beside clean images, with trusted images to calibrate."""
    images, labels = load_mnist(root, train=True)
    parts = split(labels, seed)
    known = TensorDataset(images[parts["training"][:training]], labels[parts["training"][:training]])
    trusted = TensorDataset(images[parts["trusted"]], labels[parts["trusted"]])
    test = TensorDataset(*(column[:tested] for column in load_mnist(root, train=False)))
    twins: dict[str, tuple[type[Any], Any]] = {
        "lgm": (LGMClassifier, LikelihoodScorer),
        "twin": (SoftmaxClassifier, ConfidenceScorer),
    }
    figures: Figures = {}
    for name, (kind, scorer) in twins.items():
        module = fit_twin(kind, known, seed)
        figures[name] = {"accuracy": accuracy_of(module, *test.tensors)}
        for attack in ("frogs", "linf"):
            poison = craft_poison(attack, module, test, seed)
            data = PoisonedDataset(test, poison)
            found = detection(scorer.from_module(module), data, data.is_poison, trusted, seed)
            figures[name][attack] = found | collisions(module, poison, bases_of(poison, test.tensors[0]), known)
    return figures


def crafting(root: Path, seed: int, *, place: int, **sizes: int) -> Figures:
    """Train twins with the features of the paper, and measure the perturbation that a collision needs on each."""
    setting = SETTINGS[place].__class__(**{**vars(SETTINGS[place]), **sizes})
    data = load(root, setting, seed)
    attackers = {name: attacker_on(kind, setting, data, seed) for name, kind in TWINS.items()}
    correct = [attacker.nearest(data.test_images) == data.test_labels for attacker in attackers.values()]
    allowed = torch.stack(correct).all(0).nonzero().flatten()
    pairs = draw_pairs(allowed, data.test_labels, setting.poisons, seed)
    figures: Figures = {}
    for name, attacker in attackers.items():
        attacker.set_pairs(data, *pairs)
        crafted = [attacker.unbounded(beta) for beta in BETAS]
        lengths = [(images - attacker.bases).flatten(1).norm(dim=1) for images in crafted]
        figures[name] = {
            "accuracy": accuracy_of(attacker.module, data.test_images, data.test_labels),
            "needed L2": required([attacker.collides(images) for images in crafted], lengths),
            "separation": separation(attacker.module, data.test_images, data.test_labels),
        }
    return figures


def separation(module: Any, images: Tensor, labels: Tensor) -> float:
    """Return the mean distance between class means, divided by that of features from the mean of their class."""
    means, features = class_means(module, images, labels), features_of(module, images)
    between = torch.pdist(means).mean()
    within = (features - means[labels]).norm(dim=1).mean()
    return float(between / within)


LIKELIHOODS = Measurement(
    "001, likelihood",
    likelihoods,
    full={"training": TRAINING, "tested": 10_000},
    quick={"training": 8000, "tested": 3000},
)
FULL = {"training": 20_000, "test": 10_000, "poisons": 50}
DIGITS = Measurement(
    "001, crafting on MNIST",
    functools.partial(crafting, place=0),
    full=FULL,
    quick={"training": 8000, "test": 4000, "poisons": 30},
)
PHOTOS = Measurement(
    "001, crafting on CIFAR-10",
    functools.partial(crafting, place=1),
    full=FULL,
    quick={"training": 5000, "test": 3000, "poisons": 30},
)


def likelihood_separates(of: Medians) -> Verdict:
    return judge(
        of["auroc"] >= SEPARATES and of["1 %"] >= DETECTED,
        {"5 % of the clean samples may be lost": of["auroc"] >= SEPARATES and of["5 %"] >= DETECTED},
        unless={"fewer than half of the frogs collide": of["collide"] < WORKS},
    )


def mixture_is_needed(of: Medians) -> Verdict:
    partial = of["lgm, linf"] - of["twin, linf"]
    return judge(
        of["lgm"] - of["twin"] >= AHEAD,
        {"the poison stays in an L∞ ball of .2, where it collides in part": partial >= AHEAD_TPR},
    )


def harder_to_craft(of: Medians) -> Verdict:
    harder, as_accurate = of["lgm"] > of["twin"], of["twin, accuracy"] - of["lgm, accuracy"] <= AS_ACCURATE
    return judge(
        harder and as_accurate, {"the network with the mixture head may be less accurate after as many epochs": harder}
    )


def farther_apart(of: Medians) -> Verdict:
    return judge(of["lgm"] >= FARTHER * of["twin"])


def detection_row(label: str, model: str, attack: str, *path: str, form: str = "%", **texts: str) -> Row:
    return Row(label, LIKELIHOODS, (model, attack, *path), form=form, **texts)


def crafting_rows(measurement: Measurement, recorded: tuple[str, str, str, str]) -> dict[str, Row]:
    lgm, twin, lgm_accuracy, twin_accuracy = recorded
    return {
        "lgm": Row("L2 needed, LGM", measurement, ("LGM", "needed L2"), "larger", lgm, ".2f"),
        "twin": Row("L2 needed, cross-entropy", measurement, ("cross-entropy", "needed L2"), "", twin, ".2f"),
        "lgm, accuracy": Row("test accuracy, LGM", measurement, ("LGM", "accuracy"), "", lgm_accuracy),
        "twin, accuracy": Row("the same, cross-entropy", measurement, ("cross-entropy", "accuracy"), "", twin_accuracy),
    }


CRAFTING_NOTE = (
    "For each pair of base and target, the smallest change with which a poison collides, over five weights of eq. 1; "
    "median over pairs. As accurate: at most two points below its twin."
)

PAPER = Paper(
    "001",
    'Yaseen, Aadil, Sargsyan, "Preventing clean label poisoning using Gaussian mixture loss", 2020, arXiv 2003.00798.',
    "Twins of one network, with an LGM head and with a linear head and cross-entropy, are trained on the training set; "
    "poison frogs are made of test images, on the network that is attacked, as in the paper. The network is "
    "`SmallConvNet`, with 32 features for the likelihood and 2, as in the paper, for the crafting on MNIST (32 on "
    "CIFAR-10). The paper shows pictures and curves, and states no number. Quick: 8,000 training images of MNIST and "
    "5,000 of CIFAR-10, and fewer test images.",
    (
        Claim(
            "The likelihood separates poison from clean samples",
            "Section 4.4, figures 1 and 5; 100 frogs with β = 8e-3 among 10,000 test images, 5,000 trusted images",
            {
                "collide": detection_row("frogs that collide", "lgm", "frogs", "collide", recorded="93 %"),
                "auroc": detection_row(
                    "AUROC", "lgm", "frogs", "auroc", form=".4f", paper="well separated", recorded=".9997"
                ),
                "1 %": detection_row("detected at a stated FPR of 1 %", "lgm", "frogs", "1 %", "tpr", recorded="99 %"),
                "5 %": detection_row("detected at 5 %", "lgm", "frogs", "5 %", "tpr", recorded="100 %"),
            },
            likelihood_separates,
            "benchmarks.md#likelihood-and-cross-entropy",
            f"Separated: AUROC at least {SEPARATES:g}, and {100 * DETECTED:g} % detected.",
        ),
        Claim(
            "Only a mixture head shows how unusual a sample is for its label",
            "Section 3; the twin is scored by its cross-entropy",
            {
                "lgm": detection_row("AUROC, LGM", "lgm", "frogs", "auroc", form=".4f", recorded=".9997"),
                "twin": detection_row(
                    "AUROC, cross-entropy", "twin", "frogs", "auroc", form=".4f", paper="not available",
                    recorded=".9999",
                ),
                "lgm, linf": detection_row(
                    "frogs within L∞ .2: detected at 1 %, LGM", "lgm", "linf", "1 %", "tpr", recorded="97 %"
                ),
                "twin, linf": detection_row("the same, cross-entropy", "twin", "linf", "1 %", "tpr", recorded="89 %"),
            },
            mixture_is_needed,
            "benchmarks.md#likelihood-and-cross-entropy",
            f"Ahead: by {AHEAD:g} of AUROC, or {100 * AHEAD_TPR:g} points detected. Crafted on another network, "
            "the mixture head is well ahead ([recorded](benchmarks.md#trusted-data)).",
        ),
        Claim(
            "Poison is harder to craft against a mixture head: MNIST",
            "Section 4.3, figure 3",
            crafting_rows(DIGITS, ("1.95", "2.15", "97.1 %", "97.4 %")),
            harder_to_craft,
            "benchmarks.md#crafting-against-a-mixture-head",
            CRAFTING_NOTE,
        ),
        Claim(
            "Poison is harder to craft against a mixture head: CIFAR-10",
            "Appendix B, figure 6; the paper's network did not converge either",
            crafting_rows(PHOTOS, ("1.38", "1.24", "53.3 %", "66.3 %")),
            harder_to_craft,
            "benchmarks.md#crafting-against-a-mixture-head",
            CRAFTING_NOTE,
        ),
        Claim(
            "With a mixture head, the features of classes are farther apart",
            "Section 4.2, figure 2; MNIST, 2 features; distance of class means ÷ distance of features from their mean",
            {
                "lgm": Row("LGM", DIGITS, ("LGM", "separation"), "farther", form=".2f"),
                "twin": Row("cross-entropy", DIGITS, ("cross-entropy", "separation"), form=".2f"),
            },
            farther_apart,
            note=f"Farther: at least {FARTHER:g} times the ratio of the twin.",
        ),
    ),
)  # fmt: skip
