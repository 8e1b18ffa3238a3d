"""The cells of paper 003's tables: the poison, the training, and the paper's numbers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lightning_poison.adversarial import FGSM, PGD, Adversary

MNIST, FEW_ZEROS, CIFAR = "MNIST", "MNIST, few zeros", "CIFAR-10 (JPEG q75)"
ATTACKS = ("BadNets", "clean-label")
PARTS = {
    "mnist": True,
    "cifar": True,
    "mobilenet": True,
    "mnist-pgd": False,
    "mnist-80": False,
    "cifar-80": False,
    "mobilenet-40": False,
}
"""The parts of the tables. `True`: run with all seeds. `False`: run with one seed only, since it takes too long."""

CPU_PARTS = ("mnist", "cifar", "mobilenet", "mnist-pgd")
"""The parts that need no GPU."""

ADVERSARIES: dict[str, Adversary | None] = {
    "plain": None,
    "FGSM .35": FGSM(0.35, 0.75 * 0.35),
    "PGD-7 .3": PGD(0.3, 2.5 * 0.3 / 7, steps=7),
    "PGD-40 .3": PGD(0.3, 0.01, steps=40),
    "FGSM 8/255": FGSM(8 / 255),
    "PGD-7 8/255": PGD(8 / 255, 2 / 255, steps=7),
    "PGD-5 .3": PGD(0.3, 0.01, steps=5),
    "PGD-5 .3, no random start": PGD(0.3, 0.01, steps=5, random_start=False),
}


@dataclass(frozen=True)
class Cell:
    """One attack and one training.

    `amplitude` is how far the trigger moves its pixels; `whole` applies it to the whole image; the radius of
    adversarial training grows over the first `warm_up` epochs.
    """

    data: str
    attack: str
    training: str
    epochs: int
    images: int
    amplitude: float = 1.0
    whole: bool = False
    network: str = "small CNN"
    warm_up: int = 1
    batch: int = 128

    @property
    def is_photo(self) -> bool:
        return self.data == CIFAR

    @property
    def epsilon(self) -> float:
        """The radius at which robust accuracy is measured."""
        return 8 / 255 if self.is_photo else 0.3

    @property
    def layer(self) -> str:
        """The last hidden layer of the small CNN."""
        return "15" if self.is_photo else "6"


ON_GPU: dict[str, Any] = {"warm_up": 8, "batch": 2_000}
PAPERS_PGD = ("PGD-5 .3", "PGD-5 .3, no random start")
PAPER: dict[tuple[str, str, str, bool], tuple[str, str, str]] = {
    (MNIST, "small CNN", "none", True): ("93.2", "", "98.8"),
    (MNIST, "small CNN", "BadNets", False): ("1.17", "96.22", ""),
    (MNIST, "small CNN", "BadNets", True): ("91.71", ".99", ""),
    (MNIST, "small CNN", "clean-label", False): ("1.39; .16", "", "98.26"),
    (MNIST, "small CNN", "clean-label", True): ("90.68; 87", "", "96.34"),
    (CIFAR, "small CNN", "none", True): ("79.4", "", "92.7"),
    (CIFAR, "small CNN", "BadNets", False): ("8.64", "", "74.26"),
    (CIFAR, "small CNN", "BadNets", True): ("54.86", "5.32", "52.71"),
    (CIFAR, "small CNN", "clean-label", False): ("30.00 (Turner's)", "", ""),
    (CIFAR, "small CNN", "clean-label", True): ("51.90", "", "58.96"),
    (CIFAR, "MobileNet", "BadNets", False): ("5.22", "", ""),
    (CIFAR, "MobileNet", "BadNets", True): ("29.72", "10.18", ""),
}


def cells_of(part: str) -> list[Cell]:
    """Return the cells of a part of the tables."""
    if part == "mnist":
        return digit_cells((("plain", 4), ("FGSM .35", 6)))
    if part == "mnist-pgd":
        weak = (("clean-label", 0.5), ("BadNets", 0.5), ("BadNets", 1.0))
        return [Cell(MNIST, attack, "PGD-7 .3", 12, 20_000, size, warm_up=2) for attack, size in weak]
    if part == "mnist-80":
        cells = digit_cells((("plain", 80), ("PGD-40 .3", 80)))
        return [replace(cell, **ON_GPU) for cell in cells if cell.data == MNIST or cell.amplitude == 1]
    if part == "mobilenet":
        trainings = ("plain", "FGSM 8/255")
        return [Cell(CIFAR, "BadNets", training, 6, 10_000, network="MobileNet") for training in trainings]
    if part == "mobilenet-40":
        return [
            Cell(CIFAR, "BadNets", training, 40, 50_000, network="MobileNet", **ON_GPU)
            for training in ("plain", "PGD-7 8/255", PAPERS_PGD[1])
        ]
    full = [("none", 1.0, False), *((attack, 1.0, False) for attack in ATTACKS)]
    every = full + [(attack, 12 / 255, True) for attack in ATTACKS]
    if part == "cifar":
        trainings = ("plain", "FGSM 8/255")
        return [
            Cell(CIFAR, attack, training, 8, 20_000, size, whole)
            for attack, size, whole in every
            for training in trainings
        ]
    pairs = [(attack, training) for attack in every for training in ("plain", "PGD-7 8/255")]
    pairs += [(attack, training) for attack in full for training in PAPERS_PGD]
    return [
        Cell(CIFAR, attack, training, 80, 50_000, size, whole, **ON_GPU) for (attack, size, whole), training in pairs
    ]


def digit_cells(trainings: Sequence[tuple[str, int]]) -> list[Cell]:
    """Return the cells of MNIST, balanced and with few zeros, for each training and its epochs."""
    every = [("none", 1.0), *((attack, size) for size in (1.0, 0.5) for attack in ATTACKS)]
    cells = [Cell(MNIST, attack, *training, 60_000, size) for attack, size in every for training in trainings]
    rare = [("none", 1.0), ("clean-label", 1.0), ("clean-label", 0.5)]
    few = [Cell(FEW_ZEROS, attack, *training, 45_500, size) for attack, size in rare for training in trainings]
    return cells + [cell for cell in few if cell.attack != "none" or cell.training == "plain"]
