"""The demo: poison real digits in two ways, and see what each filter keeps out and what that is worth."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.utils.data import Dataset

from lightning_poison.attacks.crafting import craft
from lightning_poison.attacks.poison import Poison
from lightning_poison.attacks.poisoned_dataset import PoisonedDataset
from lightning_poison.attacks.threat import Surrogate, Threat
from lightning_poison.callbacks.sanitizer import Sanitizer
from lightning_poison.demo.data import DemoData, load_demo_data
from lightning_poison.demo.training import Classifier, LGMClassifier, fit_quietly, predict_with
from lightning_poison.errors import UnknownNameError
from lightning_poison.evaluation.matrix import Cell, Predict, evaluate, render_table
from lightning_poison.models.backbones import default_backbone
from lightning_poison.models.fitting import FitSettings
from lightning_poison.randomness import derived_generator, seeded_rng
from lightning_poison.registry.registry import get_attack
from lightning_poison.report.samples import plot_caught
from lightning_poison.report.style import save_figure
from lightning_poison.sanitization.verdict import Verdict
from lightning_poison.scorers.likelihood import LikelihoodScorer
from lightning_poison.scorers.pixel_counting import PixelCountingScorer

Say = Callable[[str], None]

FEATURES = 32

TARGETS, FROGS_PER_TARGET, BETA, FINE_TUNING_EPOCHS = 10, 15, 1e-3, 60
"""Enough for the attack to work where nothing is done against it."""

MOST_REMOVED = 0.9
"""Above the sanitizer's own limit: the frogs may outnumber the clean images of a class."""


def run_demo(
    *, data: str = "digits", data_root: Path | None = None, output: Path, seed: int = 0, say: Say
) -> dict[str, list[Cell]]:
    """Run both halves of the demo and return their cells.

    Args:
        data: `"digits"` or `"mnist"`.
        data_root: where MNIST is.
        output: where manifests, verdicts and pictures are written.
        seed: seeds everything.
        say: gets what is printed.

    Raises:
        UnknownNameError: where an attack is not installed; it names the extra that brings it.
    """
    try:
        get_attack("label-flip"), get_attack("poison-frog")
    except UnknownNameError as error:
        raise UnknownNameError(
            f"{error}\nThe demo attacks with plug-ins: `pip install 'lightning-poison[demo]'`."
        ) from error
    known = load_demo_data(data, data_root, seed=seed)
    return {
        "label-flip": _flipped_labels(known, output / "label-flip", seed, say),
        "poison-frog": _frogs(known, output / "poison-frog", seed, say),
    }


def _flipped_labels(data: DemoData, output: Path, seed: int, say: Say) -> list[Cell]:
    clean, test = data.part(0, data.trained), data.part(data.trained)
    threat = Threat.of_fraction(clean, 0.15, pixels=data.pixels)
    poison = craft(get_attack("label-flip"), clean, threat, generator=derived_generator(seed, "label flip"))
    say(
        f"\n1. Flipped labels: {len(poison)} of {len(clean):,} labels of {data.name} are wrong; a perceptron is "
        "trained from scratch; nothing is trusted, and the scorer is fitted on each fold for 200 steps."
    )
    shape, batch = data.images.shape[1:], 64

    def train(dataset: Any, number: int) -> Predict:
        network = Classifier(_perceptron(shape.numel(), seed=number))
        return predict_with(fit_quietly(network, dataset, epochs=data.epochs, batch_size=batch, seed=number))

    scorer = LikelihoodScorer(fit_settings=FitSettings(min_steps=200))
    return _half(data, clean, poison, test, train, scorer, output, seed, say)


def _frogs(data: DemoData, output: Path, seed: int, say: Say) -> list[Cell]:
    first, second = data.pretrained, data.pretrained + data.fine_tuned
    base = LGMClassifier(default_backbone(data.images.shape[1:], FEATURES, seed=seed), FEATURES, 10)
    fit_quietly(base, data.part(0, first), epochs=data.pretraining_epochs, seed=seed)
    clean, test = data.part(first, second), data.part(second)
    attack = get_attack("poison-frog", poisons_per_target=FROGS_PER_TARGET, beta=BETA)
    threat = Threat(budget=TARGETS * FROGS_PER_TARGET, clean_label=True, pixels=data.pixels)
    poison = craft(
        attack,
        clean,
        threat,
        surrogates=[Surrogate(base, "extractor")],
        holdout=test,
        generator=derived_generator(seed, "frogs"),
    )
    say(
        f"\n2. Poison frogs: {len(poison)} images appended to {len(clean):,} collide in feature space with "
        f"{TARGETS} targets; labels look right; a new head is trained on the frozen "
        f"features of a network with an LGM head, pretrained on {first:,} clean images, which is the scorer too; up to "
        f"{100 * MOST_REMOVED:g} % may be removed."
    )

    def train(dataset: Any, number: int) -> Predict:
        tuned = fit_quietly(_fine_tuned(base, number), dataset, epochs=FINE_TUNING_EPOCHS, batch_size=64, seed=number)
        return predict_with(tuned)

    return _half(data, clean, poison, test, train, LikelihoodScorer.from_module(base), output, seed, say)


def _half(
    data: DemoData,
    clean: Dataset[Any],
    poison: Poison,
    test: Dataset[Any],
    train: Callable[[Any, int], Predict],
    scorer: LikelihoodScorer,
    output: Path,
    seed: int,
    say: Say,
) -> list[Cell]:
    """Sanitize through a Trainer as a user would, compare with the controls, and say what was found."""
    poisoned = PoisonedDataset(clean, poison)
    verdict = _sanitized(poisoned, scorer, output, seed)
    counted = PixelCountingScorer(data.pixels).fit(poisoned)
    counts = counted.score_batch(*_stacked(poisoned))
    removed = int((~verdict.keep).sum())
    by_counting = torch.ones(len(poisoned), dtype=torch.bool)
    by_counting[counts.argsort(descending=True)[:removed]] = False
    cells = evaluate(
        clean,
        poison,
        test,
        defenses={"sanitizer": lambda _: verdict.keep, "pixel counting, as many": lambda _: by_counting},
        train=train,
        seed=seed,
    )
    say(render_table(cells))
    truth = poisoned.is_poison
    ranks = [roc_auc_score(truth, values) for values in (verdict.suspicion, counts)]
    say(f"Ranking poison above clean samples (AUROC): sanitizer {ranks[0]:.3f}, pixel counting {ranks[1]:.3f}.")
    say(str(verdict.evidence).capitalize() + f"; the truth is {100 * float(truth.double().mean()):.2f} %.")
    _picture(poisoned, verdict, output / "caught.png")
    say(f"Written: {output / 'manifest.csv'}, {output / 'caught.png'}")
    return cells


def _sanitized(poisoned: PoisonedDataset, scorer: LikelihoodScorer, output: Path, seed: int) -> Verdict:
    sanitizer = Sanitizer(scorer, max_removed=MOST_REMOVED, dirpath=str(output), seed=seed)
    inputs, _ = _stacked(poisoned)
    probe = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(inputs[0].numel(), 10)))
    fit_quietly(probe, poisoned, epochs=1, batch_size=64, callbacks=[sanitizer], seed=seed)
    return sanitizer.verdict


def _picture(poisoned: PoisonedDataset, verdict: Verdict, path: Path) -> None:
    save_figure(plot_caught(poisoned, verdict), path)


def _stacked(dataset: Any) -> tuple[Tensor, Tensor]:
    samples = [dataset[index] for index in range(len(dataset))]
    return torch.stack([image for image, _ in samples]), torch.tensor([int(label) for _, label in samples])


def _perceptron(inputs: int, *, seed: int) -> nn.Module:
    body = default_backbone((inputs,), 64, seed=seed)
    with seeded_rng(seed, 1):
        return nn.Sequential(nn.Flatten(), body, nn.ReLU(), nn.Linear(64, 10))


class _Frozen(nn.Module):
    """The features of a pretrained network, in evaluation mode whatever is asked for."""

    def __init__(self, base: LGMClassifier) -> None:
        super().__init__()
        self.extractor = base.extractor.requires_grad_(False)

    def train(self, mode: bool = True) -> "_Frozen":  # noqa: ARG002 (frozen is frozen)
        return super().train(False)

    def forward(self, inputs: Tensor) -> Tensor:
        features: Tensor = self.extractor(inputs)
        return features


def _fine_tuned(base: LGMClassifier, seed: int) -> Classifier:
    generator = torch.Generator().manual_seed(seed)
    head = nn.Linear(FEATURES, 10)
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape, generator=generator) / FEATURES**0.5)
        head.bias.zero_()
    return Classifier(nn.Sequential(_Frozen(base), head), learning_rate=2e-2)
