"""Adversarial training against poison: attack success, clean accuracy and training time of each recipe. MNIST.

    python benchmarks/poison_immunity_mnist.py --data-root data --results poison_immunity.jsonl

Each defense is a recipe of `AdversarialTraining` with radius 0.3, which is also the attacker's: none; FGSM with a
random start; PGD with five steps on half of each batch; and `PoisonImmunity` with its three attacks, five steps.

1. Backdoors. The network of Wong, Rice, Kolter 2020 (arXiv 2001.03994) is trained from scratch on 4,000 images for
   eight epochs. BadNets: 5 % of all images with a 3 x 3 patch and the label 0. Clean-label backdoor: half of the zeros,
   perturbed within .3 on one surrogate, with 5 x 5 squares in the four corners: at full intensity, and at an amplitude
   of .5 in training and test, which is below twice the radius.
2. Targeted attacks. A network is trained with the defense on 4,000 clean images, then with the defense on 300 other
   images and ten poisons for each of five targets, within .3; four such victims per seed. Gradient matching attacks all
   weights in this second training, poison frogs and bullseye polytopes attack a new linear head on frozen features. The
   attacker has the victim's network after the first training.

Attack success is the share of triggered test images of other digits that are predicted as 0; or the share of targets
predicted as wanted, among test images that are classified correctly after the same training without poison. An attack
that succeeds in less than half without defense proves nothing; the table notes it. Sizes, epochs and budgets were
chosen on training images, without defense. On networks trained from scratch on MNIST, gradient matching has too little
effect to compare defenses.
"""

import functools
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from harness.datasets import RawDataset, TrainTestImages, columns_of, inputs_of, load_mnist, targets_of
from harness.lightning_digits import BATCH, DigitClassifier, fit
from harness.networks import accuracy_of, predict
from harness.runs import Figures, Results, benchmark_parser, print_table, share, spread_of, start
from torch import Tensor
from torch.utils.data import TensorDataset

from lightning_poison import AdversarialTraining, Poison, PoisonedDataset, Surrogate, Threat, craft
from lightning_poison.adversarial import FGSM, PGD, Adversary, Madry, PoisonImmunity, Recipe
from lightning_poison.attacks import Attack
from lightning_poison.randomness import derived_generator
from lightning_poison_backdoors import BadNets, CleanLabelBackdoor
from lightning_poison_collisions import BullseyePolytope, FrogAttack, GradientMatching

EPSILON, LOW_AMPLITUDE, STEPS = 0.3, 128 / 255, 5
LAYER = "net.6"
SCRATCH, SCRATCH_EPOCHS = 4_000, 8
TUNED, TUNED_EPOCHS, HEAD_EPOCHS, VICTIMS, TARGETS, POISONS_PER_TARGET = 300, 40, 80, 4, 5, 10
HOLDOUT = 2_000
MIN_SUCCESS = 0.5

PGD_5 = PGD(EPSILON, steps=STEPS)
DEFENSES: dict[str, tuple[Adversary, Recipe] | None] = {
    "none": None,
    "FGSM": (FGSM(EPSILON), Madry()),
    "PGD-5 on half of each batch": (PGD_5, Madry(share=0.5)),
    "immunity, gradient matching": (PGD_5, PoisonImmunity()),
    "immunity, feature collision": (PGD_5, PoisonImmunity("feature-collision", layers=[LAYER])),
    "immunity, patches": (PGD_5, PoisonImmunity("patch")),
}
BACKDOORS: dict[str, tuple[Callable[[], Attack], float]] = {
    "BadNets": (functools.partial(BadNets, 0, pattern=[[255] * 3] * 3), 0.05),
    "clean-label": (functools.partial(CleanLabelBackdoor, 0), 0.05),
    "clean-label, amplitude .5": (functools.partial(CleanLabelBackdoor, 0, amplitude=LOW_AMPLITUDE), 0.05),
}
MATCHING = "gradient matching, fine-tuned"
TARGETED: dict[str, Callable[[], Attack]] = {
    MATCHING: functools.partial(
        GradientMatching, targets=VICTIMS * TARGETS, steps=100, candidates=TUNED, base_choice="nearest",
        placement="append",
    ),
    "poison frogs": functools.partial(FrogAttack, poisons_per_target=POISONS_PER_TARGET),
    "bullseye": functools.partial(BullseyePolytope, poisons_per_target=POISONS_PER_TARGET),
}  # fmt: skip
ATTACKS = (*BACKDOORS, *TARGETED)


class FineTuned(DigitClassifier):
    """A trained network for fine-tuning: all weights, or only a new linear head on frozen features."""

    def __init__(self, trained: DigitClassifier, seed: int, *, head_only: bool) -> None:
        super().__init__(seed, 0)
        kept = slice(None, -1) if head_only else slice(None)
        self.net[kept].load_state_dict(trained.net[kept].state_dict())
        self.net[:-1].requires_grad_(not head_only)
        self.rate = 1e-2 if head_only else 1e-3

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.rate)


def callbacks_of(defense: str, seed: int, epochs: int) -> list[pl.Callback]:
    """Return the callbacks of a defense; its radius grows over the first eighth of the training."""
    settings = DEFENSES[defense]
    if settings is None:
        return []
    return [AdversarialTraining(settings[0], recipe=settings[1], warm_up_epochs=epochs / 8, seed=seed)]


def train(images: Tensor, labels: Tensor, defense: str, seed: int, epochs: int) -> tuple[DigitClassifier, float]:
    """Return a network trained from scratch, and the CPU seconds."""
    model = DigitClassifier(seed, epochs * (len(labels) // BATCH))
    seconds = fit(model, TensorDataset(images, labels), epochs, *callbacks_of(defense, seed, epochs), seed=seed)
    return model.eval(), seconds


def fine_tune(
    body: DigitClassifier, images: Tensor, labels: Tensor, defense: str, seed: int, *, head_only: bool
) -> tuple[DigitClassifier, float]:
    """Return a network fine-tuned on other images, and the CPU seconds."""
    model, epochs = FineTuned(body, seed, head_only=head_only), HEAD_EPOCHS if head_only else TUNED_EPOCHS
    seconds = fit(model, TensorDataset(images, labels), epochs, *callbacks_of(defense, seed, epochs), seed=seed)
    return model.eval(), seconds


class Bench:
    """Poisons, trains and measures on the images of one seed."""

    def __init__(self, data: TrainTestImages, seed: int) -> None:
        self.data, self.seed = data, seed
        self.craft_backdoor = functools.cache(self._craft_backdoor)
        self.pretrain = functools.cache(self._pretrain)

    def _craft_backdoor(self, name: str) -> Poison:
        """Return the poison of a backdoor, the same for all defenses."""
        (make, fraction), (images, labels) = BACKDOORS[name], self.data.part(0, SCRATCH)
        clean, surrogates = RawDataset.from_floats(images, labels), []
        if name.startswith("clean-label"):
            surrogates = [Surrogate(train(images, labels, "none", 50 + self.seed, SCRATCH_EPOCHS)[0], LAYER)]
        threat = Threat.of_fraction(clean, fraction)
        return craft(make(), clean, threat, surrogates=surrogates, generator=derived_generator(self.seed, name))

    def measure_backdoor(self, name: str, defense: str) -> Figures:
        poison = self.craft_backdoor(name)
        inputs, labels = columns_of(PoisonedDataset(RawDataset.from_floats(*self.data.part(0, SCRATCH)), poison))
        model, seconds = train(inputs, labels, defense, self.seed, SCRATCH_EPOCHS)
        objective = poison.objective
        test = RawDataset.from_floats(self.data.test_images, self.data.test_labels)
        triggered, true, wanted = columns_of(objective.evaluation_set(test))
        return {
            "success": share(objective.success(predict(model, triggered), true, wanted)),
            "clean": accuracy_of(model, self.data.test_images, self.data.test_labels),
            "cpu": seconds,
        }

    def measure_targeted(self, name: str, defense: str) -> Figures:
        body, seconds = self.pretrain(defense)
        fit_on = functools.partial(fine_tune, defense=defense, seed=self.seed, head_only=name != MATCHING)
        images, labels = self.data.part(SCRATCH, TUNED)
        inputs, true = self.data.test_images[:HOLDOUT], self.data.test_labels[:HOLDOUT]
        correct = predict(fit_on(body, images, labels)[0], inputs) == true
        poisons = TARGETS * POISONS_PER_TARGET
        poison = craft(
            TARGETED[name](), TensorDataset(images, labels),
            Threat(VICTIMS * poisons, epsilon=EPSILON, clean_label=True), surrogates=[Surrogate(body, LAYER)],
            holdout=TensorDataset(inputs[correct], true[correct]), generator=derived_generator(self.seed, name),
        )  # fmt: skip
        successes, accuracies, targets = [], [], targets_of(poison)
        for number in range(VICTIMS):
            own = slice(number * poisons, (number + 1) * poisons)
            of = slice(number * TARGETS, (number + 1) * TARGETS)
            victim_images = torch.cat([images, inputs_of(poison)[own]])
            model, more = fit_on(body, victim_images, torch.cat([labels, poison.labels[own]]))
            predicted = predict(model, targets.inputs[of])
            successes.append(targets.success(predicted, targets.labels[of], targets.wanted[of]))
            accuracies.append(accuracy_of(model, self.data.test_images, self.data.test_labels))
            seconds += more / VICTIMS
        return {"success": share(torch.cat(successes)), "clean": sum(accuracies) / VICTIMS, "cpu": seconds}

    def _pretrain(self, defense: str) -> tuple[DigitClassifier, float]:
        return train(*self.data.part(0, SCRATCH), defense, self.seed, SCRATCH_EPOCHS)

    def measure(self, attack: str, defense: str) -> Figures:
        return (self.measure_backdoor if attack in BACKDOORS else self.measure_targeted)(attack, defense)


def report(found: dict[tuple[str, str], list[Figures]]) -> None:
    measures = {"success": ("attack success", ".2f"), "clean": ("clean accuracy", ".3f")}
    measures["cpu"] = ("training, CPU s", ".0f")
    for figure, (name, form) in measures.items():
        rows = []
        for attack in ATTACKS:
            undefended = sorted(run["success"] for run in found[attack, "none"])
            weak = undefended[len(undefended) // 2] < MIN_SUCCESS
            note = " (fails without defense: proves nothing)" if weak and figure == "success" else ""
            cells = [spread_of(found[attack, defense], figure, form=form) for defense in DEFENSES]
            rows.append([attack + note, *cells])
        print_table([name, *DEFENSES], rows)


def main() -> None:
    args = benchmark_parser(__doc__).parse_args()
    start(args)
    (images, labels), test = load_mnist(args.data_root, train=True), load_mnist(args.data_root, train=False)
    results = Results(args.results)
    found: dict[tuple[str, str], list[Figures]] = {}
    for seed in range(args.seeds):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        test_order = torch.randperm(len(test[1]), generator=torch.Generator().manual_seed(seed))
        bench = Bench(TrainTestImages(images[order], labels[order], test[0][test_order], test[1][test_order]), seed)
        for attack in ATTACKS:
            for defense in DEFENSES:
                key = {"attack": attack, "defense": defense, "seed": seed}
                run = results.get(key, functools.partial(bench.measure, attack, defense))
                found.setdefault((attack, defense), []).append(run)
    report(found)


if __name__ == "__main__":
    main()
