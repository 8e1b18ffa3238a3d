"""The LGM head against a linear layer with cross-entropy: accuracy of three networks on three data sets.

    python benchmarks/lgm_against_cross_entropy.py --data-root data --results lgm_against_cross_entropy.jsonl

Each network is trained in a Trainer three times from the same start, on the same batches: with its linear layer, with
`LGMInjector` in place of that layer, and with `LGMMixin`. The heads have their defaults. Optimizer: AdamW with weight
decay .01 on all parameters, batches of 64, gradients not clipped. The learning rate is chosen for each network, data
set and head from three, by the accuracy on a fifth of the training images in the first seed; no figure is reported on
those images, and the final networks are trained on the other four fifths.

- Networks: `batch norm`, two convolutions with batch norm and Linear-ReLU-Dropout before the last layer; `plain`, the
  same without batch norm and dropout; `wide`, Linear-ReLU-Dropout twice, 256 wide.
- Data sets: MNIST, 3,000 training images, normalized; CIFAR-10 (JPEG q75), 5,000 training images, normalized;
  scikit-learn's digits, 1,200 training images, in [0, 1]. Test images: 5,000, 5,000 and 597.
"""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from harness.datasets import LabeledImages, TrainTestImages, load_cifar, load_mnist
from harness.networks import accuracy_of
from harness.runs import (
    Figures,
    Results,
    benchmark_parser,
    print_goal,
    print_table,
    silence_lightning,
    spread,
    start,
    values_of,
)
from lightning.pytorch import LightningModule, Trainer
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_poison import LGMInjector, LGMMixin
from lightning_poison.randomness import isolated_rng

CPU = torch.device("cpu")
NETWORKS = ("batch norm", "plain", "wide")
DATA = {"MNIST": 4, "CIFAR-10": 6, "digits": 10}
"""Data sets and the number of epochs on them."""
HEADS = ("cross-entropy", "injector", "mixin")
LEARNING_RATES = (5e-4, 1e-3, 3e-3)
GOAL = 0.01


def body_of(network: str, images: Tensor) -> tuple[nn.Module, int]:
    """Return a feature extractor for images of this shape, and the number of its features."""
    _, channels, side, _ = images.shape
    if network == "wide":
        first = [nn.Flatten(), nn.Linear(channels * side * side, 256), nn.ReLU(), nn.Dropout(0.3)]
        return nn.Sequential(*first, nn.Linear(256, 256), nn.ReLU(), nn.Dropout(0.3)), 256
    norm = network == "batch norm"
    layers: list[nn.Module] = []
    for inputs, outputs in ((channels, 16), (16, 32)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)]
        layers += [nn.BatchNorm2d(outputs), nn.ReLU()] if norm else [nn.ReLU()]
    side = (side + 3) // 4
    layers += [nn.Flatten(), nn.Linear(32 * side * side, 64), nn.ReLU()]
    return nn.Sequential(*layers, nn.Dropout(0.3 if norm else 0.0)), 64


class Classifier(LightningModule):
    """A network with a linear layer."""

    def __init__(self, body: nn.Module, feature_size: int, learning_rate: float) -> None:
        super().__init__()
        self.body, self.fc = body, nn.Linear(feature_size, 10)
        self.learning_rate = learning_rate

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.body(inputs))
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:  # noqa: ARG002 (Lightning's signature)
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=self.learning_rate)


class MixtureClassifier(LGMMixin, LightningModule):
    """The same network with `LGMMixin`."""

    def __init__(self, body: nn.Module, feature_size: int, learning_rate: float) -> None:
        super().__init__()
        self.body = body
        self.learning_rate = learning_rate
        self.add_lgm_head("body", feature_size, num_classes=10)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=self.learning_rate)


def train(network: str, head: str, data: LabeledImages, rate: float, epochs: int, seed: int) -> LightningModule:
    """Return a trained network, in evaluation mode."""
    with isolated_rng(seed, CPU):
        body, size = body_of(network, data[0])
        module = MixtureClassifier(body, size, rate) if head == "mixin" else Classifier(body, size, rate)
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=epochs,
            callbacks=[LGMInjector("fc")] if head == "injector" else [],
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
        )
        order = torch.Generator().manual_seed(seed)
        trainer.fit(module, DataLoader(TensorDataset(*data), batch_size=64, shuffle=True, generator=order))
    return module.eval()


@functools.cache
def images_of(root: Any, name: str, *, training: bool) -> LabeledImages:
    """Return all images of a data set, as uint8, and their labels."""
    images, labels = (load_mnist if name == "MNIST" else load_cifar)(root, train=training)
    return (255 * images).round().byte(), labels


def load(root: Any, name: str, seed: int) -> TrainTestImages:
    """Return training and test images; the seed draws which."""
    generator = torch.Generator().manual_seed(seed)
    if name == "digits":
        images = torch.tensor(load_digits().data / 16).float().view(-1, 1, 8, 8)
        labels = torch.tensor(load_digits().target)
        order = torch.randperm(len(labels), generator=generator)
        train_part, test_part = order[:1200], order[1200:]
        return TrainTestImages(images[train_part], labels[train_part], images[test_part], labels[test_part])
    count, mean, deviation = (3000, 0.1307, 0.3081) if name == "MNIST" else (5000, 0.47, 0.25)
    parts: list[Tensor] = []
    for training, size in ((True, count), (False, 5000)):
        images, labels = images_of(root, name, training=training)
        chosen = torch.randperm(len(labels), generator=generator)[:size]
        parts += [(images[chosen].float() / 255 - mean) / deviation, labels[chosen]]
    return TrainTestImages(*parts)


def choose(root: Any, name: str, network: str, head: str) -> Figures:
    """Return the learning rate with the best accuracy on held-out training images of the first seed."""
    data = load(root, name, 0)
    cut = len(data.labels) * 4 // 5
    accuracies = {
        rate: accuracy_of(
            train(network, head, data.part(0, cut), rate, DATA[name], 0), *data.part(cut, len(data.labels))
        )
        for rate in LEARNING_RATES
    }
    best = max(accuracies, key=lambda rate: accuracies[rate])
    return {"rate": best, "validation": {f"{rate:g}": accuracy for rate, accuracy in accuracies.items()}}


def measure(root: Any, name: str, network: str, head: str, rate: float, seed: int) -> Figures:
    data = load(root, name, seed)
    module = train(network, head, data.part(0, len(data.labels) * 4 // 5), rate, DATA[name], seed)
    return {"accuracy": accuracy_of(module, data.test_images, data.test_labels)}


def report(cells: dict[tuple[str, str], dict[str, list[Figures]]], rates: dict[tuple[str, str], list[str]]) -> None:
    rows, differences = [], {}
    for cell, runs in cells.items():
        accuracies = {head: values_of(runs[head], "accuracy") for head in HEADS}
        for head in HEADS[1:]:
            differences[cell, head] = [
                100 * (own - plain) for own, plain in zip(accuracies[head], accuracies["cross-entropy"], strict=True)
            ]
        gains = [spread(differences[cell, head], "+.1f") for head in HEADS[1:]]
        rows.append([*cell, *(spread(accuracies[head], ".3f") for head in HEADS), *gains, ", ".join(rates[cell])])
    columns = ["data", "network", *HEADS, "injector, points", "mixin, points", "learning rates"]
    print_table(columns, rows)
    for (cell, head), values in differences.items():
        print_goal(f"{', '.join(cell)}: {head} within 1 point", [value >= -100 * GOAL for value in values])


def main() -> None:
    args = benchmark_parser(__doc__).parse_args()
    silence_lightning()
    start(args)
    results = Results(args.results)
    cells: dict[tuple[str, str], dict[str, list[Figures]]] = {}
    rates: dict[tuple[str, str], list[str]] = {}
    for name in ("digits", "MNIST", "CIFAR-10"):
        for network in NETWORKS:
            runs: dict[str, list[Figures]] = {}
            for head in HEADS:
                cell = {"data": name, "network": network, "head": head}
                chosen = results.get(cell, functools.partial(choose, args.data_root, name, network, head))
                rate = chosen["rate"]
                work = functools.partial(measure, args.data_root, name, network, head, rate)
                runs[head] = results.over_seeds(range(args.seeds), {**cell, "rate": rate}, work)
                rates.setdefault((name, network), []).append(f"{rate:g}")
            cells[name, network] = runs
    report(cells, rates)


if __name__ == "__main__":
    main()
