"""Adversarial training against poison: what it keeps out, and what it costs. MNIST, three seeds.

    python benchmarks/poison_immunity.py --data-root data --results poison_immunity.jsonl

Each defense is a recipe of `AdversarialTraining`, of one radius, 0.3, which is the attacker's too: none; FGSM with a
random start; PGD with five steps on half of each batch; and `PoisonImmunity` with its three attacks, five steps.

1. Backdoors, the network of Wong, Rice, Kolter 2020 (arXiv 2001.03994) trained from scratch on 4,000 images for eight
   epochs. BadNets: 5 % of all images with a 3 x 3 patch and the label 0. Clean-label backdoor: a half of the zeros,
   perturbed within .3 on one surrogate, with 5 x 5 squares in four corners: at full intensity, and at one of .5
   in training and test, which is below twice the radius.
2. Chosen test images: a network is trained with the defense on 4,000 clean images, then with the defense on 300 other
   images and ten poisons of each of five targets, within .3; four such victims a seed. Gradient matching attacks all
   weights in this second training, poison frogs and bullseye polytopes a new linear head on frozen features. The
   attacker has the victim's network as it is after the first training.

Attack success is the share of triggered test images of other digits that are read as 0; or the share of targets that
are read as wanted, among test images that are read rightly after the same training without poison. An attack that
succeeds in less than half against no defense proves nothing, and the table says so. Sizes, epochs and budgets were
chosen on images of the training set, against no defense. On networks that are trained from scratch, gradient matching
does too little on MNIST to tell anything.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from adversarial_mnist import BATCH, Digits, fit
from backdoors_mnist import GrayImages, columns_of
from common import Figures, Results, arguments, load_mnist, print_setting, print_table, spread
from robust_networks import accuracy_of
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from lightning_poison import AdversarialTraining, Poison, PoisonedDataset, Surrogate, Threat, craft
from lightning_poison.adversarial import FGSM, PGD, Adversary, Madry, PoisonImmunity, Recipe
from lightning_poison.attacks import Attack
from lightning_poison.randomness import derived_generator
from lightning_poison_backdoors import BadNets, CleanLabelBackdoor
from lightning_poison_collisions import BullseyePolytope, FrogAttack, GradientMatching

EPSILON, LOW, STEPS = 0.3, 128 / 255, 5
LAYER = "net.6"
SCRATCH, SCRATCH_EPOCHS = 4_000, 8
TUNED, TUNED_EPOCHS, HEAD_EPOCHS, VICTIMS, TARGETS, EACH = 300, 40, 80, 4, 5, 10
HELD = 2_000
PROVES = 0.5

PATIENT = PGD(EPSILON, steps=STEPS)
DEFENSES: dict[str, tuple[Adversary, Recipe] | None] = {
    "none": None,
    "FGSM": (FGSM(EPSILON), Madry()),
    "PGD-5 on half of each batch": (PATIENT, Madry(share=0.5)),
    "immunity, gradient matching": (PATIENT, PoisonImmunity()),
    "immunity, feature collision": (PATIENT, PoisonImmunity("feature-collision", layers=[LAYER])),
    "immunity, patches": (PATIENT, PoisonImmunity("patch")),
}
BACKDOORS: dict[str, tuple[Callable[[], Attack], float]] = {
    "BadNets": (functools.partial(BadNets, 0, pattern=[[255] * 3] * 3), 0.05),
    "clean-label": (functools.partial(CleanLabelBackdoor, 0), 0.05),
    "clean-label, amplitude .5": (functools.partial(CleanLabelBackdoor, 0, amplitude=LOW), 0.05),
}
MATCHING = "gradient matching, fine-tuned"
TRANSFERS = {
    MATCHING: functools.partial(
        GradientMatching, targets=VICTIMS * TARGETS, steps=100, candidates=TUNED, base_choice="nearest",
        placement="append",
    ),
    "poison frogs": functools.partial(FrogAttack, poisons_per_target=EACH),
    "bullseye": functools.partial(BullseyePolytope, poisons_per_target=EACH),
}  # fmt: skip
ATTACKS = (*BACKDOORS, *TRANSFERS)


class Tuned(Digits):
    """A trained network whose weights are trained on; or only a new linear head, on frozen features."""

    def __init__(self, trained: Digits, seed: int, *, head_only: bool) -> None:
        super().__init__(seed, 0)
        kept = slice(None, -1) if head_only else slice(None)
        self.net[kept].load_state_dict(trained.net[kept].state_dict())
        self.net[:-1].requires_grad_(not head_only)
        self.rate = 1e-2 if head_only else 1e-3

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.rate)


@dataclass(frozen=True)
class Data:
    """Images `(N, 1, 28, 28)` in [0, 1] and labels of a seed, in random order, and those of the test set."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    def part(self, start: int, count: int) -> tuple[Tensor, Tensor]:
        return self.images[start : start + count], self.labels[start : start + count]


def guarded(defense: str, seed: int, epochs: int) -> list[pl.Callback]:
    """Return the callback of a defense; its radius grows over an eighth of the training."""
    settings = DEFENSES[defense]
    if settings is None:
        return []
    return [AdversarialTraining(settings[0], recipe=settings[1], warm_up_epochs=epochs / 8, seed=seed)]


def trained(images: Tensor, labels: Tensor, defense: str, seed: int, epochs: int) -> tuple[Digits, float]:
    """Return a network that was trained from scratch, and the CPU seconds."""
    model = Digits(seed, epochs * (len(labels) // BATCH))
    seconds = fit(model, TensorDataset(images, labels), epochs, *guarded(defense, seed, epochs), seed=seed)
    return model.eval(), seconds


def tuned(
    body: Digits, images: Tensor, labels: Tensor, defense: str, seed: int, *, head_only: bool
) -> tuple[Digits, float]:
    """Return what a network becomes on other images, and the CPU seconds."""
    model, epochs = Tuned(body, seed, head_only=head_only), HEAD_EPOCHS if head_only else TUNED_EPOCHS
    seconds = fit(model, TensorDataset(images, labels), epochs, *guarded(defense, seed, epochs), seed=seed)
    return model.eval(), seconds


@torch.no_grad()
def read(model: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([model(part).argmax(1) for part in images.split(500)])


class Bench:
    """Poisons, trains and measures on the images of one seed."""

    def __init__(self, data: Data, seed: int) -> None:
        self.data, self.seed = data, seed
        self.crafted = functools.cache(self._crafted)

    def _crafted(self, name: str) -> Poison:
        """Return a backdoor: all defenses meet the same."""
        (make, share), (images, labels) = BACKDOORS[name], self.data.part(0, SCRATCH)
        clean, surrogates = self.gray(images, labels), []
        if name.startswith("clean-label"):
            surrogates = [Surrogate(trained(images, labels, "none", 50 + self.seed, SCRATCH_EPOCHS)[0], LAYER)]
        threat = Threat.of_fraction(clean, share)
        return craft(make(), clean, threat, surrogates=surrogates, generator=derived_generator(self.seed, name))

    def gray(self, images: Tensor, labels: Tensor) -> GrayImages:
        return GrayImages((255 * images).round().byte(), labels)

    def backdoor(self, name: str, defense: str) -> Figures:
        poison = self.crafted(name)
        inputs, labels = columns_of(PoisonedDataset(self.gray(*self.data.part(0, SCRATCH)), poison))
        model, seconds = trained(inputs, labels, defense, self.seed, SCRATCH_EPOCHS)
        goal = poison.objective
        triggered, true, wanted = columns_of(
            goal.evaluation_set(self.gray(self.data.test_images, self.data.test_labels))
        )
        return {
            "success": float(goal.success(read(model, triggered), true, wanted).double().mean()),
            "clean": accuracy_of(model, self.data.test_images, self.data.test_labels),
            "cpu": seconds,
        }

    def transfer(self, name: str, defense: str) -> Figures:
        body, seconds = self.first(defense)
        fit_on = functools.partial(tuned, defense=defense, seed=self.seed, head_only=name != MATCHING)
        images, labels = self.data.part(SCRATCH, TUNED)
        inputs, true = self.data.test_images[:HELD], self.data.test_labels[:HELD]
        right = read(fit_on(body, images, labels)[0], inputs) == true
        poison = craft(
            TRANSFERS[name](), TensorDataset(images, labels),
            Threat(VICTIMS * TARGETS * EACH, epsilon=EPSILON, clean_label=True), surrogates=[Surrogate(body, LAYER)],
            holdout=TensorDataset(inputs[right], true[right]), generator=derived_generator(self.seed, name),
        )  # fmt: skip
        won, accuracies, goal = [], [], poison.objective
        for number in range(VICTIMS):
            own = slice(number * TARGETS * EACH, (number + 1) * TARGETS * EACH)
            of = slice(number * TARGETS, (number + 1) * TARGETS)
            model, more = fit_on(body, torch.cat([images, poison.inputs[own]]), torch.cat([labels, poison.labels[own]]))
            won.append(goal.success(read(model, goal.inputs[of]), goal.labels[of], goal.wanted[of]))
            accuracies.append(accuracy_of(model, self.data.test_images, self.data.test_labels))
            seconds += more / VICTIMS
        return {
            "success": float(torch.cat(won).double().mean()),
            "clean": sum(accuracies) / VICTIMS,
            "cpu": seconds,
        }

    @functools.cache  # noqa: B019 (lives as long as the program)
    def first(self, defense: str) -> tuple[Digits, float]:
        return trained(*self.data.part(0, SCRATCH), defense, self.seed, SCRATCH_EPOCHS)

    def measure(self, attack: str, defense: str) -> Figures:
        return (self.backdoor if attack in BACKDOORS else self.transfer)(attack, defense)


def report(found: dict[tuple[str, str], list[Figures]]) -> None:
    def cell(attack: str, defense: str, figure: str, form: str) -> str:
        return spread([run[figure] for run in found[attack, defense]], form)

    for figure, form in (("success", ".2f"), ("clean", ".3f"), ("cpu", ".0f")):
        named = {"success": "attack success", "clean": "clean accuracy", "cpu": "training, CPU s"}[figure]
        rows = []
        for attack in ATTACKS:
            weak = sorted(run["success"] for run in found[attack, "none"])[len(found[attack, "none"]) // 2] < PROVES
            note = " (fails undefended: proves nothing)" if weak and figure == "success" else ""
            rows.append([attack + note, *(cell(attack, defense, figure, form) for defense in DEFENSES)])
        print_table([named, *DEFENSES], rows)


def main() -> None:
    args = arguments(__doc__).parse_args()
    torch.set_num_threads(1)
    print_setting("poison_immunity", args)
    (images, labels), test = load_mnist(args.data_root, train=True), load_mnist(args.data_root, train=False)
    results = Results(args.results)
    found: dict[tuple[str, str], list[Figures]] = {}
    for seed in range(args.seeds):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        mixed = torch.randperm(len(test[1]), generator=torch.Generator().manual_seed(seed))
        bench = Bench(Data(images[order], labels[order], test[0][mixed], test[1][mixed]), seed)
        for attack in ATTACKS:
            for defense in DEFENSES:
                key = {"attack": attack, "defense": defense, "seed": seed}
                run = results.get(key, functools.partial(bench.measure, attack, defense))
                found.setdefault((attack, defense), []).append(run)
    report(found)


if __name__ == "__main__":
    main()
