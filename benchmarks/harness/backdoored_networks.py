"""Networks trained on backdoored images, plainly or adversarially, and their predictions on triggered images."""

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import silhouette_score
from torch import Tensor, nn
from torchvision.models import mobilenet_v2

from harness.backdoor_cells import ADVERSARIES, CIFAR, FEW_ZEROS, MNIST, Cell
from harness.datasets import RawDataset, columns_of, load_cifar, load_mnist
from harness.networks import accuracy_of, cross_entropy, digit_network, photo_network, predict, robust_accuracy
from harness.runs import Figures, share
from lightning_poison import Poison, PoisonedDataset, Surrogate, Threat, craft
from lightning_poison.adversarial import AdversarialLoss
from lightning_poison.attacks import TriggerObjective
from lightning_poison.contexts import evaluating, frozen
from lightning_poison.data import MemoryDataset
from lightning_poison.models import FeatureExtractor, FitSettings, fit_module
from lightning_poison.models.fitting import Loss
from lightning_poison.randomness import derived_generator, derived_seed, seeded_rng
from lightning_poison.runtime import LocalRuntime
from lightning_poison_backdoors import BadNets, CleanLabelBackdoor, checkerboard

POISON_FRACTION, CLASS_SHARE, TARGET, PLOTTED = 0.33, 0.5, 9, 8
ROBUST_IMAGES, MONITORED_IMAGES = 1_000, 1_000
CORNER = [[0, 0, 255], [0, 255, 0], [255, 0, 255]]


def new_network(cell: Cell, seed: int) -> nn.Module:
    with seeded_rng(seed):
        if cell.network == "MobileNet":
            return mobile_network()
        return (photo_network if cell.is_photo else digit_network)(10)


def mobile_network() -> nn.Module:
    """Return torchvision's MobileNetV2 for 32x32 images: a quarter of the channels, and a first stride of 1."""
    network = mobilenet_v2(num_classes=10, width_mult=0.25)
    network.features[0][0].stride = (1, 1)
    return cast("nn.Module", network)


class MonitoredLoss:
    """A loss that also evaluates the network after each epoch but the last.

    Args:
        loss: The loss that is minimized.
        steps: Steps per epoch.
        evaluate: Returns the measurements of a network.
        clock: Returns seconds; the time spent in `evaluate` is summed up in `spent`.
    """

    def __init__(
        self, loss: Loss, steps: int, evaluate: Callable[[nn.Module], Figures], clock: Callable[[], float]
    ) -> None:
        self.loss, self.steps, self.evaluate, self.clock = loss, steps, evaluate, clock
        self.done, self.spent, self.history = 0, 0.0, list[Figures]()

    def __call__(self, module: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        if self.done and self.done % self.steps == 0:
            start = self.clock()
            with evaluating(module), frozen(module):
                self.history.append(self.evaluate(module))
            self.spent += self.clock() - start
        self.done += 1
        return self.loss(module, inputs, labels)


def train(
    cell: Cell,
    images: Tensor,
    labels: Tensor,
    seed: int,
    evaluate: Callable[[nn.Module], Figures] = lambda _: {},
    device: str = "cpu",
) -> tuple[nn.Module, Figures]:
    """Return a trained network, its measurements after each epoch but the last, and the training time.

    Photos are shifted by up to two pixels, digits are not. Training runs in float32 for MobileNet, whose depthwise
    convolutions are faster that way, and on a GPU. Seconds are CPU seconds of one thread; on a GPU, wall-clock seconds.
    """
    adversary, generator = ADVERSARIES[cell.training], derived_generator(seed, "training")
    rate, shift = (3e-3, 2) if cell.is_photo else (5e-3, 0)
    settings = FitSettings(epochs=cell.epochs, batch_size=cell.batch, learning_rate=rate, min_steps=0, shift=shift)
    steps = settings.steps_per_epoch(len(labels))
    loss = (
        cross_entropy
        if adversary is None
        else AdversarialLoss(adversary, warm_up=cell.warm_up * steps, generator=generator)
    )
    clock = time.process_time if device == "cpu" else time.perf_counter
    monitored = MonitoredLoss(loss, steps, evaluate, clock)
    full = cell.network == "MobileNet" or device != "cpu"
    runtime = LocalRuntime(device, threads=1, precision="32" if full else "auto")
    network, data = new_network(cell, seed), MemoryDataset(images, labels)
    start = clock()
    fit_module(network, data, monitored, settings=settings, runtime=runtime, generator=generator)
    return network, {"history": monitored.history, "fit_s": clock() - start - monitored.spent}


class Bench:
    """Trains and measures the cells of one seed, and caches what several cells share."""

    def __init__(self, root: Path, seed: int, device: str = "cpu") -> None:
        self.root, self.seed, self.device = root, seed, device
        self.trained = functools.cache(self._trained)
        self.from_disk = functools.cache(self._from_disk)
        self.training_set = functools.cache(self._training_set)
        self.poison = functools.cache(self._poison)
        self.surrogate = functools.cache(self._surrogate)

    def _from_disk(self, is_photo: bool, train_part: bool) -> RawDataset:
        images, labels = (
            load_cifar(self.root, train=train_part) if is_photo else load_mnist(self.root, train=train_part)
        )
        return RawDataset.from_floats(images, labels)

    def _training_set(self, data: str, images: int) -> RawDataset:
        """Return that many images; with few zeros, 500 zeros and 5,000 of each other digit."""
        every = self.from_disk(data == CIFAR, True)
        order = torch.randperm(len(every), generator=derived_generator(self.seed, "images"))
        if data == FEW_ZEROS:
            of_digit = [order[every.targets[order] == digit] for digit in range(10)]
            order = torch.cat([each[: 5_000 if digit else 500] for digit, each in enumerate(of_digit)])
        return RawDataset(every.data[order[:images]], every.targets[order[:images]])

    def _surrogate(self, cell: Cell) -> Surrogate:
        """Return the attacker's network, trained on the same clean images with another seed."""
        clean = self.training_set(cell.data, cell.images)
        seed = derived_seed(self.seed, "surrogate")
        network, _ = train(cell, clean.data.float() / 255, clean.targets, seed, device=self.device)
        return Surrogate(network.cpu(), cell.layer)

    def _poison(self, data: str, attack: str, images: int, amplitude: float, whole: bool) -> Poison:
        clean, generator = self.training_set(data, images), derived_generator(self.seed, "poison")
        is_photo = data == CIFAR
        if attack == "BadNets":
            where: Figures = {"pattern": checkerboard(32)} if whole else {"pattern": CORNER, "row": -2, "column": -2}
            badnets = BadNets("next", amplitude=amplitude, **where)
            return craft(badnets, clean, Threat.of_fraction(clean, POISON_FRACTION), generator=generator)
        pattern = checkerboard(16) if whole else None
        epsilon, epochs = (16 / 255, 8) if is_photo else (0.3, 4)
        return craft(
            CleanLabelBackdoor(TARGET, epsilon=epsilon, pattern=pattern, amplitude=amplitude),
            clean,
            Threat(round(CLASS_SHARE * int((clean.targets == TARGET).sum()))),
            surrogates=[self.surrogate(Cell(data, "none", "plain", epochs, images))],
            generator=generator,
        )

    def _trained(self, cell: Cell) -> tuple[nn.Module, Figures, Poison | None]:
        """Return a network trained on the cell's poison, the measurements of `train`, and the poison."""
        clean = self.training_set(cell.data, cell.images)
        if cell.attack == "none":
            return *train(cell, clean.data.float() / 255, clean.targets, self.seed, device=self.device), None
        poison = self.poison(cell.data, cell.attack, cell.images, cell.amplitude, cell.whole)
        inputs, labels = columns_of(PoisonedDataset(clean, poison))
        columns = columns_of(poison.objective.evaluation_set(self.from_disk(cell.is_photo, False)))
        chosen = torch.randperm(len(columns[1]), generator=derived_generator(self.seed, "watched"))[:MONITORED_IMAGES]
        triggered, true, wanted = (column[chosen].to(self.device) for column in columns)
        evaluate = functools.partial(triggered_predictions, triggered, true, wanted)
        return *train(cell, inputs, labels, self.seed, evaluate, self.device), poison

    def measure(self, cell: Cell) -> Figures:
        network, history, poison = self.trained(cell)
        test = self.from_disk(cell.is_photo, False)
        images, labels = (test.data.float() / 255).to(self.device), test.targets.to(self.device)
        figures = dict(history)
        figures["clean"] = accuracy_of(network, images, labels)
        figures["clean zeros"] = accuracy_of(network, images[labels == 0], labels[labels == 0])
        some = torch.randperm(len(labels), generator=derived_generator(self.seed, "probed"))[:ROBUST_IMAGES]
        figures["robust"] = robust_accuracy(network, images[some], labels[some], cell.epsilon)
        if poison is None:
            return figures
        triggered, true, wanted = (part.to(self.device) for part in columns_of(poison.objective.evaluation_set(test)))
        zeros = true == 0
        figures |= {"poison": len(poison), **triggered_predictions(triggered, true, wanted, network)}
        figures["zeros"] = triggered_predictions(triggered[zeros], true[zeros], wanted[zeros], network)
        if cell.data == MNIST and cell.attack == "BadNets":
            clean, same, before = self.features(cell)
            figures["true class"], figures["label"] = separation(clean, same), separation(clean, before)
        return figures

    def features(self, cell: Cell) -> list[Tensor]:
        """Return the last hidden layer's output for test images: clean 8s, triggered 8s and triggered 7s."""
        network, _, poison = self.trained(cell)
        assert poison is not None
        assert isinstance(poison.objective, TriggerObjective)
        test, trigger = self.from_disk(cell.is_photo, False), poison.objective.trigger
        own, other = (test.data[test.targets == digit] for digit in (PLOTTED, PLOTTED - 1))
        parts = [own, *(torch.stack([trigger(image) for image in each]) for each in (own, other))]
        with torch.no_grad():
            inputs = [(part.float() / 255).to(self.device) for part in parts]
            return [FeatureExtractor(network, cell.layer)(part).cpu() for part in inputs]


def triggered_predictions(triggered: Tensor, true: Tensor, wanted: Tensor, network: nn.Module) -> Figures:
    """Return the share of triggered images predicted as their true label, and as the attacker wants."""
    predicted = predict(network, triggered)
    return {"correct": share(predicted == true), "asr": share(predicted == wanted)}


def separation(clean: Tensor, triggered: Tensor) -> Figures:
    """Measure the separation of clean and triggered images in feature space.

    Returns:
        The silhouette, 0 if they are mixed; and the balanced accuracy of a linear probe, fitted on the first half of
        each and tested on the second, .5 if they are mixed.
    """
    halves = [part.tensor_split(2) for part in (clean, triggered)]
    first, second = (torch.cat([half[number] for half in halves]).numpy() for number in (0, 1))
    fitted_on, truth = (
        torch.arange(2).repeat_interleave(torch.tensor([len(half[n]) for half in halves])) for n in (0, 1)
    )
    probe = LogisticRegression(max_iter=2_000, class_weight="balanced").fit(first, fitted_on)
    correct = torch.as_tensor(probe.predict(second)) == truth
    both = torch.arange(2).repeat_interleave(torch.tensor([len(clean), len(triggered)]))
    return {
        "silhouette": float(silhouette_score(torch.cat([clean, triggered]).numpy(), both)),
        "probe": sum(share(correct[truth == group]) for group in (0, 1)) / 2,
    }
