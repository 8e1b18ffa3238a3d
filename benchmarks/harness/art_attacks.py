"""Attacks of ART, each applied to the base images and with the settings of a poison crafted by this project."""

import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from art.attacks import poisoning
from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescentPyTorch
from art.attacks.poisoning.perturbations import add_pattern_bd, insert_image
from art.estimators.classification import PyTorchClassifier
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from harness.datasets import targets_of
from lightning_poison import Poison

LAYER = "6"
"""The feature layer of `conv_network`: 64 features."""


@dataclass
class CraftingTask:
    """A trained network, images `(N, 1, 28, 28)` in [0, 1] to poison, and held-out images to draw targets from."""

    network: nn.Sequential
    images: Tensor
    labels: Tensor
    holdout: TensorDataset
    seed: int

    def classifier(self, kind: type[PyTorchClassifier] = PyTorchClassifier) -> Any:
        """Return the network as a classifier of ART."""
        loss = nn.CrossEntropyLoss()
        return kind(self.network, loss, (1, 28, 28), 10, clip_values=(0.0, 1.0), device_type="cpu")

    def bases(self, poison: Poison) -> np.ndarray:
        """Return the images that the poison was made from."""
        return self.images[poison.indices if poison.base_indices is None else poison.base_indices].numpy()


ArtAttack = Callable[[CraftingTask, Poison, float], Any]
"""Crafts images; the last argument is the step length of attacks that need one."""


def groups_by_target(poison: Poison) -> list[tuple[slice, slice]]:
    """Return the poison samples of each target, and the target."""
    count = len(targets_of(poison).inputs)
    size = len(poison) // count
    return [(slice(size * one, size * (one + 1)), slice(one, one + 1)) for one in range(count)]


def fast_gradient(task: CraftingTask, poison: Poison, _: float) -> Any:
    attack = FastGradientMethod(task.classifier(), eps=poison.settings["epsilon"], batch_size=256)
    return attack.generate(task.bases(poison), y=poison.labels.numpy())


def projected_gradients(task: CraftingTask, poison: Poison, _: float) -> Any:
    epsilon, step_size, steps = (poison.settings[name] for name in ("epsilon", "step_size", "steps"))
    attack = ProjectedGradientDescentPyTorch(
        task.classifier(),
        eps=epsilon,
        eps_step=step_size * epsilon,
        max_iter=steps,
        num_random_init=1,
        batch_size=256,
        verbose=False,
    )
    return attack.generate(task.bases(poison), y=poison.labels.numpy())


class TargetFeatureClassifier(PyTorchClassifier):  # type: ignore[misc]
    """Makes ART's bullseye polytope minimize ‖mean of φ(poisons) − φ(target)‖ / ‖φ(target)‖."""

    target: np.ndarray

    def get_activations(self, x: Any, *args: Any, **settings: Any) -> Any:
        if isinstance(x, Tensor):
            return super().get_activations(x, *args, **settings)[None]
        return super().get_activations(self.target, *args, **settings)


def bullseye(task: CraftingTask, poison: Poison, rate: float, *, repaired: bool) -> Any:
    bases, crafted = task.bases(poison), []
    for group, one in groups_by_target(poison):
        classifier = task.classifier(TargetFeatureClassifier if repaired else PyTorchClassifier)
        classifier.target = targets_of(poison).inputs[one].numpy()
        attack = poisoning.BullseyePolytopeAttackPyTorch(
            classifier,
            classifier.target,
            LAYER,
            max_iter=poison.settings["steps"],
            learning_rate=rate,
            epsilon=poison.settings["epsilon"],
            verbose=False,
        )
        crafted.append(attack.poison(bases[group], poison.labels[group].numpy())[0])
    return np.concatenate(crafted)


def without_workers(*args: Any, num_workers: int, **settings: Any) -> Any:  # noqa: ARG001 (dropped)
    return DataLoader(*args, **settings)


def gradient_matching(task: CraftingTask, poison: Poison, rate: float, *, workers: bool) -> Any:
    steps, bases, targets, crafted = poison.settings["steps"], task.bases(poison), targets_of(poison), []
    milestones = [steps * epoch // 250 for epoch in (100, 150, 200, 220)]
    for group, one in groups_by_target(poison):
        attack = poisoning.GradientMatchingAttack(
            task.classifier(),
            percent_poison=1.0,
            epsilon=poison.settings["epsilon"],
            max_trials=1,
            max_epochs=steps,
            learning_rate_schedule=([rate, 0.1 * rate, 0.01 * rate, 0.001 * rate], milestones),
            verbose=0,
        )
        with mock.patch("torch.utils.data.DataLoader", DataLoader if workers else without_workers):
            found = attack.poison(
                targets.inputs[one].numpy(), targets.wanted[one].numpy(), bases[group], poison.labels[group].numpy()
            )
        crafted.append(found[0])
    return np.concatenate(crafted)


def corner_pattern(images: np.ndarray) -> Any:
    return add_pattern_bd(images, distance=1, channels_first=True)


def badnets(task: CraftingTask, poison: Poison, _: float, trigger: Any = corner_pattern) -> Any:
    attack = poisoning.PoisoningAttackBackdoor(trigger)
    return attack.poison(task.bases(poison), np.eye(10)[poison.settings["target_class"]], broadcast=True)[0]


def blended(task: CraftingTask, poison: Poison, _: float) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "key.png"
        Image.fromarray(np.array(poison.settings["key"], dtype=np.uint8).squeeze()).save(path)
        settings = {"channels_first": True, "random": False, "blend": poison.settings["amplitude"]}
        return badnets(task, poison, 0, functools.partial(insert_image, backdoor_path=path, **settings))


def clean_label(task: CraftingTask, poison: Poison, _: float) -> Any:
    """Return the poisoned images only, each once."""
    wanted, epsilon, steps = (poison.settings[name] for name in ("target_class", "epsilon", "steps"))
    images, target = task.images[task.labels == wanted].numpy(), np.eye(10)[wanted]
    attack = poisoning.PoisoningAttackCleanLabelBackdoor(
        poisoning.PoisoningAttackBackdoor(corner_pattern),
        task.classifier(),
        target,
        pp_poison=(len(poison) + 0.5) / len(images),
        eps=epsilon,
        eps_step=2.5 * epsilon / steps,
        max_iter=steps,
        num_random_init=1,
    )
    attack.attack.set_params(batch_size=256, verbose=False)
    changed = attack.poison(images, np.tile(target, (len(images), 1)))[0]
    return changed[(changed != images).any((1, 2, 3))]
