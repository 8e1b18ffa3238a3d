"""The attacks that ART has too, each on what a poison of ours was made from, with the settings of that poison."""

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

from lightning_poison import Poison

LAYER = "6"  # of the network of `pgd_against_torchattacks.trained`: 64 features


@dataclass
class Scene:
    """A trained network, images `(N, 1, 28, 28)` in [0, 1] to poison, and others to aim at."""

    net: nn.Module
    images: Tensor
    labels: Tensor
    held: TensorDataset
    seed: int

    def classifier(self, kind: type[PyTorchClassifier] = PyTorchClassifier) -> Any:
        loss = nn.CrossEntropyLoss()
        return kind(self.net, loss, (1, 28, 28), 10, clip_values=(0.0, 1.0), device_type="cpu")

    def bases(self, poison: Poison) -> np.ndarray:
        return self.images[poison.indices if poison.base_indices is None else poison.base_indices].numpy()


Rival = Callable[[Scene, Poison, float], np.ndarray]  # the step length is for those that have one to choose


def parts(poison: Poison) -> list[tuple[slice, slice]]:
    """Return the poisons of each target, and the target."""
    count = len(poison.objective.inputs)
    size = len(poison) // count
    return [(slice(size * one, size * (one + 1)), slice(one, one + 1)) for one in range(count)]


def fast_gradient(scene: Scene, poison: Poison, _: float) -> np.ndarray:
    attack = FastGradientMethod(scene.classifier(), eps=poison.settings["epsilon"], batch_size=256)
    return attack.generate(scene.bases(poison), y=poison.labels.numpy())


def projected_gradients(scene: Scene, poison: Poison, _: float) -> np.ndarray:
    epsilon, step_size, steps = (poison.settings[name] for name in ("epsilon", "step_size", "steps"))
    attack = ProjectedGradientDescentPyTorch(
        scene.classifier(),
        eps=epsilon,
        eps_step=step_size * epsilon,
        max_iter=steps,
        num_random_init=1,
        batch_size=256,
        verbose=False,
    )
    return attack.generate(scene.bases(poison), y=poison.labels.numpy())


class Aimed(PyTorchClassifier):
    """Makes ART's bullseye polytope minimize ‖mean of φ(poisons) − φ(target)‖ / ‖φ(target)‖."""

    target: np.ndarray

    def get_activations(self, x: Any, *args: Any, **settings: Any) -> Any:
        if isinstance(x, Tensor):
            return super().get_activations(x, *args, **settings)[None]
        return super().get_activations(self.target, *args, **settings)


def bullseye(scene: Scene, poison: Poison, rate: float, *, repaired: bool) -> np.ndarray:
    bases, crafted = scene.bases(poison), []
    for group, one in parts(poison):
        classifier = scene.classifier(Aimed if repaired else PyTorchClassifier)
        classifier.target = poison.objective.inputs[one].numpy()
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


def without_workers(*args: Any, num_workers: int, **settings: Any) -> Any:  # noqa: ARG001 (left out)
    return DataLoader(*args, **settings)


def gradient_matching(scene: Scene, poison: Poison, rate: float, *, workers: bool) -> np.ndarray:
    steps, bases, goal, crafted = poison.settings["steps"], scene.bases(poison), poison.objective, []
    milestones = [steps * epoch // 250 for epoch in (100, 150, 200, 220)]
    for group, one in parts(poison):
        attack = poisoning.GradientMatchingAttack(
            scene.classifier(),
            percent_poison=1.0,
            epsilon=poison.settings["epsilon"],
            max_trials=1,
            max_epochs=steps,
            learning_rate_schedule=([rate, 0.1 * rate, 0.01 * rate, 0.001 * rate], milestones),
            verbose=0,
        )
        with mock.patch("torch.utils.data.DataLoader", DataLoader if workers else without_workers):
            found = attack.poison(
                goal.inputs[one].numpy(), goal.wanted[one].numpy(), bases[group], poison.labels[group].numpy()
            )
        crafted.append(found[0])
    return np.concatenate(crafted)


def corner(images: np.ndarray) -> np.ndarray:
    return add_pattern_bd(images, distance=1, channels_first=True)


def stamp(scene: Scene, poison: Poison, _: float, change: Any = corner) -> np.ndarray:
    attack = poisoning.PoisoningAttackBackdoor(change)
    return attack.poison(scene.bases(poison), np.eye(10)[poison.settings["target_class"]], broadcast=True)[0]


def blend(scene: Scene, poison: Poison, _: float) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "key.png"
        Image.fromarray(np.array(poison.settings["key"], dtype=np.uint8).squeeze()).save(path)
        settings = {"channels_first": True, "random": False, "blend": poison.settings["amplitude"]}
        return stamp(scene, poison, 0, functools.partial(insert_image, backdoor_path=path, **settings))


def clean_label(scene: Scene, poison: Poison, _: float) -> np.ndarray:
    """Return the poisons only, each once."""
    wanted, epsilon, steps = (poison.settings[name] for name in ("target_class", "epsilon", "steps"))
    images, target = scene.images[scene.labels == wanted].numpy(), np.eye(10)[wanted]
    attack = poisoning.PoisoningAttackCleanLabelBackdoor(
        poisoning.PoisoningAttackBackdoor(corner),
        scene.classifier(),
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
