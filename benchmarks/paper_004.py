"""Poison against frozen features, naive and robust: tables 1, 2 and 3 of paper 004, beside the paper's figures.

Chan-Hon-Tong, "Features which are robust to adversarial attacks are also robust to several poisoning attacks", 2021.
Feature networks are trained on some classes of a data set, plainly, by FGSM with a random start, or by PGD; a linear
SVM on their frozen features learns others, whose training images are poisoned. The paper takes CIFAR-100 and SVHN as
the outside data and VGG13 as the network; here both are classes of one data set, and the network is small:

- CIFAR-10 (JPEG q75): features from classes 2 to 9, poison between airplane and automobile;
- MNIST: features from the digits 0 to 4, poison among the digits 5 to 9.

AP moves all training samples; frogs replace k samples of a target's task; LF relabels 2 %. The SVM's C is 100 on CIFAR
and 10 on MNIST, for features in units of their mean norm: with C = 1 frogs do much less.

    python benchmarks/paper_004.py --data-root DIR --results FILE
"""

import logging
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from common import (
    Figures,
    Results,
    arguments,
    load_cifar,
    load_mnist,
    print_goal,
    print_setting,
    print_table,
    spread,
)
from robust_networks import accuracy_of, digit_network, fit_network, photo_network
from sklearn.svm import LinearSVC
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from lightning_poison import PoisonedDataset, Surrogate, Threat, craft, get_attack
from lightning_poison.adversarial import FGSM, PGD, perturb_against
from lightning_poison.models import FrozenFeatureClassifier
from lightning_poison.randomness import derived_generator

KINDS = ("naive", "FGSM", "PGD")
TARGETS, TASK = 60, 300
PAPER = {
    "CIFAR": {"AP": (".24", ".30", ".34"), "frogs": (".85", ".53", ".16"), "LF": ("-7", "not given", "-11")},
    "MNIST": {"AP": (".68", ".93", ".95"), "frogs": ("none",) * 3, "LF": ("-2", "not given", "-2")},
}


@dataclass(frozen=True)
class Setting:
    """What is done on one data set; radii are in units of the raw image."""

    outside: tuple[int, ...]
    inside: tuple[int, ...]
    count: int
    trained: int
    epochs: int
    radius: float
    pgd_steps: int
    layer: str
    c: float
    ap: tuple[float, ...]
    frogs: float


SETTINGS = {
    "CIFAR": Setting(tuple(range(2, 10)), (0, 1), 4000, 24_000, 8, 8 / 255, 3, "15", 100, (3 / 255, 7 / 255), 7 / 255),
    "MNIST": Setting((0, 1, 2, 3, 4), (5, 6, 7, 8, 9), 8000, 12_000, 6, 0.3, 5, "6", 10, (7 / 255, 25 / 255), 25 / 255),
}


@dataclass(frozen=True)
class Part:
    """Images and their labels, counted from 0 in the order of the classes taken."""

    images: Tensor
    labels: Tensor

    @property
    def data(self) -> TensorDataset:
        return TensorDataset(self.images, self.labels)


def read_part(name: str, root: Any, classes: tuple[int, ...], count: int | None, *, train: bool, seed: int) -> Part:
    load = load_cifar if name == "CIFAR" else load_mnist
    images, labels = load(root, train=train)
    taken = torch.isin(labels, torch.tensor(classes)).nonzero().flatten()
    order = taken[torch.randperm(len(taken), generator=derived_generator(seed, f"{name} {train} {classes}"))][:count]
    return Part(images[order], torch.searchsorted(torch.tensor(classes), labels[order]))


def features_of(name: str, kind: str, root: Any, seed: int) -> nn.Module:
    """Train the feature network on the outside classes."""
    given = SETTINGS[name]
    part = read_part(name, root, given.outside, given.trained, train=True, seed=seed)
    torch.manual_seed(seed)
    network = (photo_network if name == "CIFAR" else digit_network)(len(given.outside))
    patient = PGD(given.radius, given.radius / 3, steps=given.pgd_steps)
    adversary = {"naive": None, "FGSM": FGSM(given.radius), "PGD": patient}[kind]
    return fit_network(network, part.images, part.labels, epochs=given.epochs, adversary=adversary, seed=seed)


def head(network: nn.Module, given: Setting) -> FrozenFeatureClassifier:
    return FrozenFeatureClassifier(network, given.layer, head=LinearSVC(C=given.c, max_iter=20_000, random_state=0))


def outside_figures(name: str, network: nn.Module, root: Any, seed: int) -> Figures:
    """Return how well the feature network reads its own classes, and under PGD-10 the first 500 of them."""
    given = SETTINGS[name]
    part = read_part(name, root, given.outside, 2000, train=False, seed=seed)
    some = part.images[:500], part.labels[:500]
    changed = perturb_against(
        network, *some, epsilon=given.radius, steps=10, generator=torch.Generator().manual_seed(0)
    )
    return {
        "outside accuracy": accuracy_of(network, part.images, part.labels),
        "outside PGD-10": accuracy_of(network, changed, some[1]),
    }


def adversarial_poisoning(name: str, network: nn.Module, train: Part, test: Part, seed: int) -> Figures:
    given, figures = SETTINGS[name], {}
    for radius in given.ap:
        attack = get_attack("adversarial-poisoning", c=given.c)
        poison = craft(
            attack,
            train.data,
            Threat(len(train.labels), epsilon=radius, clean_label=True),
            surrogates=[Surrogate(network, given.layer)],
            generator=derived_generator(seed, "AP"),
        )
        fitted = head(network, given).fit(PoisonedDataset(train.data, poison))
        figures[f"AP {255 * radius:.0f}"] = fitted.accuracy(test.data)
    return figures


def flipped_labels(name: str, network: nn.Module, train: Part, test: Part, seed: int) -> Figures:
    """Return the accuracy after 2 % of the labels were flipped, the mean of three draws."""
    given, found = SETTINGS[name], []
    for draw in range(3):
        threat = Threat.of_fraction(train.data, 0.02)
        poison = craft(get_attack("label-flip"), train.data, threat, generator=derived_generator(seed, "LF", draw))
        found.append(head(network, given).fit(PoisonedDataset(train.data, poison)).accuracy(test.data))
    return {"LF": sum(found) / len(found)}


def frogs(name: str, network: nn.Module, train: Part, test: Part, seed: int) -> Figures:
    """Return the share of targets of class 1 that are read as class 0, for one and five frogs in a task of 600."""
    given, figures = SETTINGS[name], {}
    chosen = torch.cat([(train.labels == label).nonzero().flatten()[:TASK] for label in (0, 1)])
    task = Part(train.images[chosen], train.labels[chosen])
    clean = head(network, given).fit(task.data)
    pair = (test.labels < 2).nonzero().flatten()
    held = Part(test.images[pair], test.labels[pair])
    right = (clean.predict(held.data) == held.labels).nonzero().flatten()
    held = Part(held.images[right], held.labels[right])
    known, known_labels = clean.features(task.data)
    for count in (1, 5):
        attack = get_attack(
            "poison-frog", source_class=1, base_class=0, poisons_per_target=count, placement="append", candidates=TASK
        )
        poison = craft(
            attack,
            task.data,
            Threat(TARGETS * count, epsilon=given.frogs, clean_label=True),
            surrogates=[Surrogate(network, given.layer)],
            holdout=held.data,
            generator=derived_generator(seed, "frogs"),
        )
        crafted, _ = clean.features(TensorDataset(poison.inputs, poison.labels))
        targets, _ = clean.features(TensorDataset(poison.objective.inputs, poison.objective.labels))
        fooled = []
        for number, target in enumerate(targets):
            mine = slice(number * count, (number + 1) * count)
            rows = known.clone()
            rows[poison.base_indices[mine]] = crafted[mine]
            scale = rows.norm(dim=1).mean()
            svm = LinearSVC(C=given.c, max_iter=20_000, random_state=0).fit(
                (rows / scale).numpy(), known_labels.numpy()
            )
            fooled.append(int(svm.predict((target[None] / scale).numpy())[0]) == 0)
        figures[f"frogs {count}"] = sum(fooled) / len(fooled)
    return figures


def ten_classes(network: nn.Module, root: Any, seed: int) -> Figures:
    """Return the ten-class accuracy on CIFAR, clean and under AP 3/255 on all samples: no longer disjoint classes."""
    train = read_part("CIFAR", root, tuple(range(10)), 10_000, train=True, seed=seed)
    test = read_part("CIFAR", root, tuple(range(10)), 4000, train=False, seed=seed)
    given = SETTINGS["CIFAR"]
    figures = {"ten classes": head(network, given).fit(train.data).accuracy(test.data)}
    poisoned = adversarial_poisoning("CIFAR", network, train, test, seed)
    return figures | {f"ten classes, {key}": value for key, value in poisoned.items()}


def measure(name: str, kind: str, root: Any, seed: int) -> Figures:
    given = SETTINGS[name]
    network = features_of(name, kind, root, seed)
    train = read_part(name, root, given.inside, given.count, train=True, seed=seed)
    test = read_part(name, root, given.inside, None, train=False, seed=seed)
    figures = outside_figures(name, network, root, seed)
    figures["clean"] = head(network, given).fit(train.data).accuracy(test.data)
    figures |= adversarial_poisoning(name, network, train, test, seed)
    figures |= flipped_labels(name, network, train, test, seed)
    figures |= frogs(name, network, train, test, seed)
    return figures | (ten_classes(network, root, seed) if name == "CIFAR" else {})


def print_results(name: str, found: dict[str, list[Figures]]) -> None:
    paper, given = PAPER[name], SETTINGS[name]
    first, second = (f"AP {255 * radius:.0f}" for radius in given.ap)
    rows = []
    for place, kind in enumerate(KINDS):
        runs = found[kind]
        drop = [100 * (run["LF"] - run["clean"]) for run in runs]
        rows.append(
            [kind]
            + [spread([run[key] for run in runs], ".3f") for key in ("outside accuracy", "outside PGD-10", "clean")]
            + [spread([run[first] for run in runs], ".3f"), spread([run[second] for run in runs], ".3f")]
            + [paper["AP"][place]]
            + [spread([run[key] for run in runs], ".2f") for key in ("frogs 1", "frogs 5")]
            + [paper["frogs"][place], spread(drop, "+.1f"), paper["LF"][place]]
            + [spread([run["cpu_s"] for run in runs], ".0f")]
        )
    print(f"\n{name}: frogs at {255 * given.frogs:.0f}/255, C = {given.c:g}")
    print_table(
        ["features", "outside", "its PGD-10", "clean", f"{first}/255", f"{second}/255", "paper: AP", "frogs, 1",
         "frogs, 5", "paper: frogs", "LF 2 %, points", "paper: LF", "CPU s"],
        rows,
    )  # fmt: skip
    if name == "CIFAR":
        rows = [
            [kind, *(spread([run[key] for run in found[kind]], ".3f") for key in ("ten classes", "ten classes, AP 3"))]
            for kind in KINDS
        ]
        print_table(["features", "ten classes, clean", "ten classes, AP 3/255"], rows)


def print_goals(found: dict[str, dict[str, list[Figures]]]) -> None:
    cifar, mnist = found.get("CIFAR", {}), found.get("MNIST", {})
    if cifar:
        print_goal("CIFAR, 5 frogs, 7/255, naive: at least .70", [run["frogs 5"] >= 0.7 for run in cifar["naive"]])
        for kind in ("FGSM", "PGD"):
            print_goal(f"CIFAR, 5 frogs, 7/255, {kind}: at most .15", [run["frogs 5"] <= 0.15 for run in cifar[kind]])
        print_goal("CIFAR, AP 3/255, naive: at most .70", [run["AP 3"] <= 0.7 for run in cifar["naive"]])
        for kind in ("FGSM", "PGD"):
            print_goal(f"CIFAR, AP 3/255, {kind}: at least .87", [run["AP 3"] >= 0.87 for run in cifar[kind]])
    if mnist:
        print_goal("MNIST, AP 25/255, naive: at most .65", [run["AP 25"] <= 0.65 for run in mnist["naive"]])
        for kind in ("FGSM", "PGD"):
            print_goal(f"MNIST, AP 25/255, {kind}: at least .92", [run["AP 25"] >= 0.92 for run in mnist[kind]])


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--data", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    args = parser.parse_args()
    logging.disable(logging.INFO)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    print_setting("paper_004", args)
    results, found = Results(args.results), {}
    for name in args.data:
        found[name] = {
            kind: [
                results.get(
                    {"data": name, "features": kind, "seed": seed},
                    lambda name=name, kind=kind, seed=seed: measure(name, kind, args.data_root, seed),
                )
                for seed in range(args.seeds)
            ]
            for kind in KINDS
        }
        print_results(name, found[name])
    print_goals(found)


if __name__ == "__main__":
    main()
