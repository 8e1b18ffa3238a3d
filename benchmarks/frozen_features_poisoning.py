"""Poison against frozen features, plain and robust: tables 1, 2 and 3 of paper 004 on MNIST and CIFAR-10.

    python benchmarks/frozen_features_poisoning.py --data-root data --results frozen_features.jsonl

Chan-Hon-Tong, "Features which are robust to adversarial attacks are also robust to several poisoning attacks", 2021.
Feature networks are trained on some classes of a data set, plainly ("naive"), by FGSM with a random start, or by PGD. A
linear SVM on their frozen features learns other classes, whose training images are poisoned. The paper uses CIFAR-100
and SVHN as the outside data and VGG13 as the network; here both are classes of one data set, and the network is small:

- CIFAR-10 (JPEG q75): features from classes 2 to 9, poison between airplane and automobile;
- MNIST: features from the digits 0 to 4, poison among the digits 5 to 9.

Adversarial poisoning (AP) perturbs all training samples; frogs replace k samples of a target's task; label flips (LF)
relabel 2 %. The SVM's C is 100 on CIFAR and 10 on MNIST, for features divided by their mean norm: with C = 1 frogs have
much less effect.
"""

import functools
import logging
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from harness.datasets import cifar_files, first_of_each_class, inputs_of, load_mnist, read_images, targets_of
from harness.networks import accuracy_of, digit_network, fit_network, photo_network
from harness.runs import Figures, Results, benchmark_parser, print_goal, print_table, spread, spread_of, start
from sklearn.svm import LinearSVC
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from lightning_poison import PoisonedDataset, Surrogate, Threat, craft, get_attack
from lightning_poison.adversarial import FGSM, PGD, perturb_against
from lightning_poison.models import FrozenFeatureClassifier
from lightning_poison.randomness import derived_generator

KINDS = ("naive", "FGSM", "PGD")
TASK = 300
PAPER = {
    "CIFAR": {"AP": (".24", ".30", ".34"), "frogs": (".85", ".53", ".16"), "LF": ("-7", "not given", "-11")},
    "MNIST": {"AP": (".68", ".93", ".95"), "frogs": ("none",) * 3, "LF": ("-2", "not given", "-2")},
}


@dataclass(frozen=True)
class Setting:
    """The settings of one data set; radii are in units of the raw image.

    `count` images of the inside classes are learned, `trained` images of the outside ones train the features, `targets`
    are attacked by frogs, and `ten` images of all classes are learned in the table of ten classes, which 0 leaves out.
    """

    name: str
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
    targets: int = 60
    ten: int = 0


SETTINGS = {
    "CIFAR": Setting(
        "CIFAR", tuple(range(2, 10)), (0, 1), 4000, 24_000, 8, 8 / 255, 3, "15", 100, (3 / 255, 7 / 255), 7 / 255,
        ten=10_000,
    ),
    "MNIST": Setting(
        "MNIST", (0, 1, 2, 3, 4), (5, 6, 7, 8, 9), 8000, 12_000, 6, 0.3, 5, "6", 10, (7 / 255, 25 / 255), 25 / 255,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Part:
    """Images and their labels, renumbered from 0 in the order of the chosen classes."""

    images: Tensor
    labels: Tensor

    @property
    def data(self) -> TensorDataset:
        return TensorDataset(self.images, self.labels)


def read_part(name: str, root: Any, classes: tuple[int, ...], count: int | None, *, train: bool, seed: int) -> Part:
    files, images = list[str](), torch.empty(0)
    if name == "CIFAR":
        files, labels = cifar_files(root, train=train, classes=classes)
    else:
        images, labels = load_mnist(root, train=train)
    chosen = torch.isin(labels, torch.tensor(classes)).nonzero().flatten()
    order = chosen[torch.randperm(len(chosen), generator=derived_generator(seed, f"{name} {train} {classes}"))][:count]
    images = read_images([files[index] for index in order.tolist()]) if files else images[order]
    return Part(images, torch.searchsorted(torch.tensor(classes), labels[order]))


def features_of(setting: Setting, kind: str, root: Any, seed: int) -> nn.Module:
    """Train the feature network on the outside classes."""
    part = read_part(setting.name, root, setting.outside, setting.trained, train=True, seed=seed)
    torch.manual_seed(seed)
    network = (photo_network if setting.name == "CIFAR" else digit_network)(len(setting.outside))
    pgd = PGD(setting.radius, setting.radius / 3, steps=setting.pgd_steps)
    adversary = {"naive": None, "FGSM": FGSM(setting.radius), "PGD": pgd}[kind]
    return fit_network(network, part.images, part.labels, epochs=setting.epochs, adversary=adversary, seed=seed)


def head(network: nn.Module, setting: Setting) -> FrozenFeatureClassifier:
    svm = LinearSVC(C=setting.c, max_iter=20_000, random_state=0)
    return FrozenFeatureClassifier(network, setting.layer, head=svm)


def outside_accuracies(setting: Setting, network: nn.Module, root: Any, seed: int) -> Figures:
    """Return the feature network's accuracy on its own classes, and under PGD-10 on the first 500 images."""
    part = read_part(setting.name, root, setting.outside, 2000, train=False, seed=seed)
    some = part.images[:500], part.labels[:500]
    generator = torch.Generator().manual_seed(0)
    perturbed = perturb_against(network, *some, epsilon=setting.radius, steps=10, generator=generator)
    return {
        "outside accuracy": accuracy_of(network, part.images, part.labels),
        "outside PGD-10": accuracy_of(network, perturbed, some[1]),
    }


def adversarial_poisoning(setting: Setting, network: nn.Module, train: Part, test: Part, seed: int) -> Figures:
    figures = {}
    for radius in setting.ap:
        attack = get_attack("adversarial-poisoning", c=setting.c)
        poison = craft(
            attack,
            train.data,
            Threat(len(train.labels), epsilon=radius, clean_label=True),
            surrogates=[Surrogate(network, setting.layer)],
            generator=derived_generator(seed, "AP"),
        )
        fitted = head(network, setting).fit(PoisonedDataset(train.data, poison))
        figures[f"AP {255 * radius:.0f}"] = fitted.accuracy(test.data)
    return figures


def flipped_labels(setting: Setting, network: nn.Module, train: Part, test: Part, seed: int) -> Figures:
    """Return the accuracy with 2 % of the labels flipped, the mean of three draws."""
    accuracies = []
    for draw in range(3):
        threat = Threat.of_fraction(train.data, 0.02)
        poison = craft(get_attack("label-flip"), train.data, threat, generator=derived_generator(seed, "LF", draw))
        fitted = head(network, setting).fit(PoisonedDataset(train.data, poison))
        accuracies.append(fitted.accuracy(test.data))
    return {"LF": sum(accuracies) / len(accuracies)}


def frogs(setting: Setting, network: nn.Module, train: Part, test: Part, seed: int) -> Figures:
    """Return the share of targets of class 1 predicted as class 0, for one and five frogs in a task of 600 images."""
    figures = {}
    chosen = first_of_each_class(train.labels, TASK, classes=2)
    task = Part(train.images[chosen], train.labels[chosen])
    clean = head(network, setting).fit(task.data)
    pair = (test.labels < 2).nonzero().flatten()
    holdout = Part(test.images[pair], test.labels[pair])
    correct = (clean.predict(holdout.data) == holdout.labels).nonzero().flatten()
    holdout = Part(holdout.images[correct], holdout.labels[correct])
    known, known_labels = clean.features(task.data)
    for count in (1, 5):
        attack = get_attack(
            "poison-frog", source_class=1, base_class=0, poisons_per_target=count, placement="append", candidates=TASK
        )
        poison = craft(
            attack,
            task.data,
            Threat(setting.targets * count, epsilon=setting.frogs, clean_label=True),
            surrogates=[Surrogate(network, setting.layer)],
            holdout=holdout.data,
            generator=derived_generator(seed, "frogs"),
        )
        assert poison.base_indices is not None
        crafted, _ = clean.features(TensorDataset(inputs_of(poison), poison.labels))
        targets, _ = clean.features(TensorDataset(targets_of(poison).inputs, targets_of(poison).labels))
        successes = []
        for number, target in enumerate(targets):
            own = slice(number * count, (number + 1) * count)
            rows = known.clone()
            rows[poison.base_indices[own]] = crafted[own]
            scale = rows.norm(dim=1).mean()
            svm = LinearSVC(C=setting.c, max_iter=20_000, random_state=0)
            svm.fit((rows / scale).numpy(), known_labels.numpy())
            successes.append(int(svm.predict((target[None] / scale).numpy())[0]) == 0)
        figures[f"frogs {count}"] = sum(successes) / len(successes)
    return figures


def ten_classes(setting: Setting, network: nn.Module, root: Any, seed: int) -> Figures:
    """Return the ten-class accuracy on CIFAR, clean and with AP 3/255 on all samples; the classes now overlap."""
    train = read_part("CIFAR", root, tuple(range(10)), setting.ten, train=True, seed=seed)
    test = read_part("CIFAR", root, tuple(range(10)), 4000, train=False, seed=seed)
    figures = {"ten classes": head(network, setting).fit(train.data).accuracy(test.data)}
    poisoned = adversarial_poisoning(setting, network, train, test, seed)
    return figures | {f"ten classes, {key}": value for key, value in poisoned.items()}


def measure(root: Any, setting: Setting, kind: str, seed: int) -> Figures:
    network = features_of(setting, kind, root, seed)
    train = read_part(setting.name, root, setting.inside, setting.count, train=True, seed=seed)
    test = read_part(setting.name, root, setting.inside, None, train=False, seed=seed)
    figures = outside_accuracies(setting, network, root, seed)
    figures["clean"] = head(network, setting).fit(train.data).accuracy(test.data)
    figures |= adversarial_poisoning(setting, network, train, test, seed)
    figures |= flipped_labels(setting, network, train, test, seed)
    figures |= frogs(setting, network, train, test, seed)
    return figures | (ten_classes(setting, network, root, seed) if setting.ten else {})


def print_results(name: str, found: dict[str, list[Figures]]) -> None:
    paper, setting = PAPER[name], SETTINGS[name]
    first, second = (f"AP {255 * radius:.0f}" for radius in setting.ap)
    rows = []
    for place, kind in enumerate(KINDS):
        runs = found[kind]
        drop = [100 * (run["LF"] - run["clean"]) for run in runs]
        accuracies = ("outside accuracy", "outside PGD-10", "clean", first, second)
        rows.append(
            [kind, *(spread_of(runs, key, form=".3f") for key in accuracies)]
            + [paper["AP"][place]]
            + [spread_of(runs, key, form=".2f") for key in ("frogs 1", "frogs 5")]
            + [paper["frogs"][place], spread(drop, "+.1f"), paper["LF"][place]]
            + [spread_of(runs, "cpu_s", form=".0f")]
        )
    print(f"\n{name}: frogs at {255 * setting.frogs:.0f}/255, C = {setting.c:g}")
    print_table(
        ["features", "outside accuracy", "outside PGD-10", "clean", f"{first}/255", f"{second}/255", "paper: AP",
         "frogs, 1", "frogs, 5", "paper: frogs", "LF 2 %, points", "paper: LF", "CPU s"],
        rows,
    )  # fmt: skip
    if name == "CIFAR":
        rows = [
            [kind, *(spread_of(found[kind], key, form=".3f") for key in ("ten classes", "ten classes, AP 3"))]
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
    parser = benchmark_parser(__doc__)
    parser.add_argument("--data", nargs="+", choices=list(SETTINGS), default=list(SETTINGS), help="default: both")
    args = parser.parse_args()
    logging.disable(logging.INFO)
    warnings.filterwarnings("ignore")
    start(args)
    results, found = Results(args.results), {}
    for name in args.data:
        found[name] = {
            kind: results.over_seeds(
                range(args.seeds),
                {"data": name, "features": kind},
                functools.partial(measure, args.data_root, SETTINGS[name], kind),
            )
            for kind in KINDS
        }
        print_results(name, found[name])
    print_goals(found)


if __name__ == "__main__":
    main()
