"""Adversarial training of MNIST in a Trainer: what the callback costs, and what each recipe reaches.

    python benchmarks/adversarial_mnist.py --data-root data --results adversarial_mnist.jsonl

1. Overhead: an epoch of 20,000 images with `AdversarialTraining`, divided by the same epoch with the attack written by
   hand in `training_step` of the same module, and by one of a bare loop without a Trainer; PGD with three steps and
   FGSM with a random start, epsilon .3. CPU time of one thread, in turns, the median of three turns.
2. Recipes on all 60,000 images: equal epochs, learning rate and batches for FGSM, PGD-7 and `Free`, and TRADES beside.
   Clean accuracy on the test set, and accuracy under PGD-20 at epsilon .3 on its first 2,000 images; CPU seconds of the
   fit. Learning rates and epochs were chosen on the last 5,000 training images of seed 100.

The network is that of Wong, Rice, Kolter 2020 (arXiv 2001.03994) for MNIST, with Adam and a one-cycle schedule.
"""

import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from common import Figures, Results, arguments, load_mnist, print_goal, print_setting, print_table, spread
from robust_networks import accuracy_of, digit_network
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_poison.adversarial.free import Free
from lightning_poison.adversarial.recipes import Madry, Recipe
from lightning_poison.adversarial.trades import TRADES
from lightning_poison.adversaries import FGSM, PGD, Adversary
from lightning_poison.callbacks.adversarial_training import AdversarialTraining
from lightning_poison.functional.pgd_against import perturb_against
from lightning_poison.scopes import evaluating

EPSILON, BATCH, EPOCHS, JUDGED, TURNS, FEW = 0.3, 128, 6, 2_000, 3, 20_000
OVERHEAD: dict[str, tuple[Adversary, int, float]] = {
    "PGD-3": (PGD(EPSILON, EPSILON / 3, steps=3), 3, EPSILON / 3),
    "FGSM": (FGSM(EPSILON), 1, 1.25 * EPSILON),
}
RECIPES: dict[str, tuple[Adversary, Recipe]] = {
    "FGSM": (FGSM(EPSILON), Madry()),
    "PGD-7": (PGD(EPSILON, 2.5 * EPSILON / 7, steps=7), Madry()),
    "free, 4 replays": (FGSM(EPSILON), Free(replays=4)),
    "TRADES, PGD-3": (PGD(EPSILON, EPSILON / 2, steps=3), TRADES(beta=6)),
}


class Digits(pl.LightningModule):
    """A user's module, which knows of no attack."""

    def __init__(self, seed: int, steps: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.net, self.steps = digit_network(10), steps

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=2e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=self.steps, pct_start=0.2)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class ByHand(Digits):
    """The same with the attack in its step, as one writes it by hand."""

    def __init__(self, seed: int, steps: int, attack_steps: int, length: float) -> None:
        super().__init__(seed, steps)
        self.attack_steps, self.length = attack_steps, length

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return super().training_step((by_hand(self, *batch, self.attack_steps, self.length), batch[1]))


def by_hand(model: nn.Module, images: Tensor, labels: Tensor, steps: int, length: float) -> Tensor:
    """Return images changed by PGD from a random start, in evaluation mode."""
    with evaluating(model):
        changed = (images + EPSILON * (2 * torch.rand_like(images) - 1)).clamp(0, 1)
        for _ in range(steps):
            changed.requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(model(changed), labels), changed)
            changed = changed.detach() + length * gradient.sign()
            changed = torch.minimum(torch.maximum(changed, images - EPSILON), images + EPSILON).clamp(0, 1)
    return changed.detach()


def fit(model: Digits, data: TensorDataset, epochs: int, *callbacks: pl.Callback, seed: int) -> float:
    """Train in a Trainer and return the CPU seconds."""
    loader = DataLoader(data, BATCH, shuffle=True, drop_last=True, generator=torch.Generator().manual_seed(seed))
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=epochs, callbacks=list(callbacks), logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    start = time.process_time()
    trainer.fit(model, loader)
    return time.process_time() - start


def bare(model: Digits, data: TensorDataset, steps: int, length: float, *, seed: int) -> float:
    """Train for an epoch without a Trainer and return the CPU seconds."""
    loader = DataLoader(data, BATCH, shuffle=True, drop_last=True, generator=torch.Generator().manual_seed(seed))
    made = model.configure_optimizers()
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    model.train()
    start = time.process_time()
    for images, labels in loader:
        optimizer.zero_grad()
        F.cross_entropy(model(by_hand(model, images, labels, steps, length)), labels).backward()
        optimizer.step()
        schedule.step()
    return time.process_time() - start


def measure_overhead(images: Tensor, labels: Tensor, name: str, seed: int) -> Figures:
    data = TensorDataset(images[:FEW], labels[:FEW])
    adversary, steps, length = OVERHEAD[name]
    total = FEW // BATCH
    ways: dict[str, Callable[[], float]] = {
        "callback": lambda: fit(Digits(seed, total), data, 1, AdversarialTraining(adversary, seed=seed), seed=seed),
        "by hand": lambda: fit(ByHand(seed, total, steps, length), data, 1, seed=seed),
        "bare loop": lambda: bare(Digits(seed, total), data, steps, length, seed=seed),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(TURNS):
        order = list(ways)[turn:] + list(ways)[:turn]
        for way in order:
            seconds[way].append(ways[way]())
    return {way: statistics.median(each) for way, each in seconds.items()}


def measure_recipe(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], name: str, seed: int) -> Figures:
    adversary, recipe = RECIPES[name]
    model = Digits(seed, EPOCHS * (len(train[1]) // BATCH))
    callback = AdversarialTraining(adversary, recipe=recipe, warm_up_epochs=1.0, seed=seed)
    seconds = fit(model, TensorDataset(*train), EPOCHS, callback, seed=seed)
    model.eval()
    images, labels = (part[:JUDGED] for part in test)
    changed = torch.cat(
        [
            perturb_against(
                model, part, own, epsilon=EPSILON, steps=20, step_size=0.03,
                generator=torch.Generator().manual_seed(seed),
            )
            for part, own in zip(images.split(500), labels.split(500), strict=True)
        ]
    )  # fmt: skip
    clean, robust = accuracy_of(model, *test), accuracy_of(model, changed, labels)
    return {"clean": clean, "robust": robust, "cpu": seconds, "collapsed": float(callback.state_dict()["collapsed"])}


def report(overhead: dict[str, list[Figures]], recipes: dict[str, list[Figures]]) -> None:
    rows, ratios = [], {}
    for name, runs in overhead.items():
        ratios[name] = [run["callback"] / run["by hand"] for run in runs]
        beside = [run["callback"] / run["bare loop"] for run in runs]
        cells = [spread([run[way] for run in runs], ".1f") for way in ("callback", "by hand", "bare loop")]
        rows.append([name, *cells, spread(ratios[name], ".3f"), spread(beside, ".3f")])
    print_table(["adversary", "callback, CPU s", "by hand", "bare loop", "÷ by hand", "÷ bare loop"], rows)
    for name, each in ratios.items():
        print_goal(f"{name}: an epoch with the callback ÷ by hand at most 1.05", [ratio <= 1.05 for ratio in each])
    columns = {"clean": ".4f", "robust": ".3f", "cpu": ".0f", "collapsed": ".0f"}
    reached = [
        [name, *(spread([run[key] for run in runs], form) for key, form in columns.items())]
        for name, runs in recipes.items()
    ]
    print_table(["recipe", "clean", "PGD-20", "CPU s", "collapsed"], reached)
    fast, slow = recipes["FGSM"], recipes["PGD-7"]
    quicker = [one["cpu"] / other["cpu"] for one, other in zip(fast, slow, strict=True)]
    print_goal(f"FGSM ÷ PGD-7, time {spread(quicker, '.2f')}, at most .35", [ratio <= 0.35 for ratio in quicker])
    better = [one["robust"] >= other["robust"] for one, other in zip(fast, slow, strict=True)]
    print_goal("FGSM's PGD-20 accuracy at least PGD-7's", better)
    for name in ("FGSM", "free, 4 replays"):
        runs = recipes[name]
        print_goal(f"{name}: clean at least .98", [run["clean"] >= 0.98 for run in runs])
        print_goal(f"{name}: PGD-20 at least .88", [run["robust"] >= 0.88 for run in runs])
        print_goal(f"{name}: at most 180 s", [run["cpu"] <= 180 for run in runs])


def main() -> None:
    args = arguments(__doc__).parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print_setting("adversarial_mnist", args)
    train, test = load_mnist(args.data_root, train=True), load_mnist(args.data_root, train=False)
    results = Results(args.results)
    overhead: dict[str, list[Figures]] = {name: [] for name in OVERHEAD}
    recipes: dict[str, list[Figures]] = {name: [] for name in RECIPES}
    for seed in range(args.seeds):
        for name, runs in overhead.items():
            key = {"overhead": name, "seed": seed}
            runs.append(results.get(key, lambda key=key: measure_overhead(*train, key["overhead"], key["seed"])))
        for name, runs in recipes.items():
            key = {"recipe": name, "seed": seed}
            runs.append(results.get(key, lambda key=key: measure_recipe(train, test, key["recipe"], key["seed"])))
    report(overhead, recipes)


if __name__ == "__main__":
    main()
