"""The demo: poison digits with two attacks, and compare a sanitizer with control filters."""

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
from lightning_poison.errors import UnknownNameError
from lightning_poison.evaluation.cells import Cell
from lightning_poison.evaluation.matrix import evaluate
from lightning_poison.evaluation.measurement import Predict
from lightning_poison.evaluation.tables import render_table
from lightning_poison.models.backbones import default_backbone
from lightning_poison.models.fitting import FitSettings
from lightning_poison.randomness import derived_generator, seeded_rng
from lightning_poison.registry.registry import get_attack
from lightning_poison.report.samples import plot_caught
from lightning_poison.report.style import save_figure
from lightning_poison.sanitization.verdict import Verdict
from lightning_poison.scorers.likelihood import LikelihoodScorer
from lightning_poison.scorers.pixel_counting import PixelCountingScorer
from lightning_poison.shell.demo_data import DemoData, load_demo_data
from lightning_poison.shell.demo_training import Classifier, LGMClassifier, fit_quietly, predict_with
from lightning_poison.shell.output import Write

FEATURES = 32

TARGETS, FROGS_PER_TARGET, BETA, FINE_TUNING_EPOCHS = 10, 15, 1e-3, 60
"""Settings with which the attack succeeds without a defense."""

MAX_REMOVED = 0.9
"""More than the sanitizer's default, because there may be more poison frogs than clean images in a class."""


def run_demo(
    *, data: str = "digits", data_root: Path | None = None, output: Path, seed: int = 0, write: Write
) -> dict[str, list[Cell]]:
    """Run both attacks of the demo and return the cells of each.

    Args:
        data: `"digits"` or `"mnist"`.
        data_root: Folder that contains `MNIST/raw`; required for MNIST.
        output: Folder for manifests, verdicts and figures.
        seed: Seed of all randomness. Default: 0.
        write: Called with each line of output.

    Raises:
        UnknownNameError: If an attack is not installed. The message says how to install it.
    """
    try:
        get_attack("label-flip"), get_attack("poison-frog")
    except UnknownNameError as error:
        raise UnknownNameError(
            f"{error}\nThe demo needs the attack plug-ins. Install them from a clone of the repository: "
            "`pip install ./plugins/*/`."
        ) from error
    loaded = load_demo_data(data, data_root, seed=seed)
    return {
        "label-flip": _evaluate_flipped_labels(loaded, output / "label-flip", seed, write),
        "poison-frog": _evaluate_frogs(loaded, output / "poison-frog", seed, write),
    }


def _evaluate_flipped_labels(data: DemoData, output: Path, seed: int, write: Write) -> list[Cell]:
    clean, test = data.part(0, data.trained), data.part(data.trained)
    threat = Threat.of_fraction(clean, 0.15, pixels=data.pixels)
    poison = craft(get_attack("label-flip"), clean, threat, generator=derived_generator(seed, "label flip"))
    write(
        f"\n1. Flipped labels: {len(poison)} of the {len(clean):,} labels of {data.name} are wrong. A multilayer "
        "perceptron is trained from scratch. There are no trusted data; the scorer is fitted for 200 steps per fold."
    )
    shape, batch = data.images.shape[1:], 64

    def train(dataset: Any, number: int) -> Predict:
        network = Classifier(_perceptron(shape.numel(), seed=number))
        return predict_with(fit_quietly(network, dataset, epochs=data.epochs, batch_size=batch, seed=number))

    scorer = LikelihoodScorer(fit_settings=FitSettings(min_steps=200))
    return _evaluate_sanitizer(data, clean, poison, test, train, scorer, output, seed, write)


def _evaluate_frogs(data: DemoData, output: Path, seed: int, write: Write) -> list[Cell]:
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
    write(
        f"\n2. Poison frogs: {len(poison)} images with correct labels, appended to {len(clean):,}, collide with "
        f"{TARGETS} targets in feature space. A network with an LGM head is pretrained on {first:,} clean images; a "
        "new head is trained on its frozen features. The same network is the scorer. At most "
        f"{100 * MAX_REMOVED:g} % of the samples may be removed."
    )

    def train(dataset: Any, number: int) -> Predict:
        network = _with_new_head(base, number)
        return predict_with(fit_quietly(network, dataset, epochs=FINE_TUNING_EPOCHS, batch_size=64, seed=number))

    scorer = LikelihoodScorer.from_module(base)
    return _evaluate_sanitizer(data, clean, poison, test, train, scorer, output, seed, write)


def _evaluate_sanitizer(
    data: DemoData,
    clean: Dataset[Any],
    poison: Poison,
    test: Dataset[Any],
    train: Callable[[Any, int], Predict],
    scorer: LikelihoodScorer,
    output: Path,
    seed: int,
    write: Write,
) -> list[Cell]:
    """Sanitize with a Trainer, compare with the controls, and write the results."""
    poisoned = PoisonedDataset(clean, poison)
    verdict = _sanitize(poisoned, scorer, output, seed)
    counts = PixelCountingScorer(data.pixels).fit(poisoned).score_batch(*_stack(poisoned))
    removed = int((~verdict.keep).sum())
    by_counting = torch.ones(len(poisoned), dtype=torch.bool)
    by_counting[counts.argsort(descending=True)[:removed]] = False
    cells = evaluate(
        clean,
        poison,
        test,
        defenses={"sanitizer": lambda _: verdict.keep, "pixel counting, same number": lambda _: by_counting},
        train=train,
        seed=seed,
    )
    write(render_table(cells))
    truth = poisoned.is_poison
    auroc = [roc_auc_score(truth, values) for values in (verdict.suspicion, counts)]
    write(f"Ranking of poison above clean samples (AUROC): sanitizer {auroc[0]:.3f}, pixel counting {auroc[1]:.3f}.")
    actual = f"{100 * float(truth.double().mean()):.2f} %"
    write(f"{verdict.statement[:1].upper()}{verdict.statement[1:]}; actual: {actual}.")
    save_figure(plot_caught(poisoned, verdict), output / "caught.png")
    write(f"Files: {output / 'manifest.csv'}, {output / 'caught.png'}")
    return cells


def _sanitize(poisoned: PoisonedDataset, scorer: LikelihoodScorer, output: Path, seed: int) -> Verdict:
    sanitizer = Sanitizer(scorer, max_removed=MAX_REMOVED, dirpath=str(output), seed=seed)
    inputs, _ = _stack(poisoned)
    probe = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(inputs[0].numel(), 10)))
    fit_quietly(probe, poisoned, epochs=1, batch_size=64, callbacks=[sanitizer], seed=seed)
    return sanitizer.verdict


def _stack(dataset: Any) -> tuple[Tensor, Tensor]:
    samples = [dataset[index] for index in range(len(dataset))]
    return torch.stack([image for image, _ in samples]), torch.tensor([int(label) for _, label in samples])


def _perceptron(inputs: int, *, seed: int) -> nn.Module:
    body = default_backbone((inputs,), 64, seed=seed)
    with seeded_rng(seed, 1):
        return nn.Sequential(nn.Flatten(), body, nn.ReLU(), nn.Linear(64, 10))


class _FrozenFeatures(nn.Module):
    """Frozen feature extractor of a pretrained network, always in evaluation mode."""

    def __init__(self, base: LGMClassifier) -> None:
        super().__init__()
        self.extractor = base.extractor.requires_grad_(False)

    def train(self, mode: bool = True) -> "_FrozenFeatures":  # noqa: ARG002 (always in evaluation mode)
        return super().train(False)

    def forward(self, inputs: Tensor) -> Tensor:
        features: Tensor = self.extractor(inputs)
        return features


def _with_new_head(base: LGMClassifier, seed: int) -> Classifier:
    generator = torch.Generator().manual_seed(seed)
    head = nn.Linear(FEATURES, 10)
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape, generator=generator) / FEATURES**0.5)
        head.bias.zero_()
    return Classifier(nn.Sequential(_FrozenFeatures(base), head), learning_rate=2e-2)
