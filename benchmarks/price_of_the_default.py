"""What `sanitize(data)` costs: its CPU time divided by that of a training, for each preset, on clean images.

    python benchmarks/price_of_the_default.py --data-root data --results price.jsonl
    python benchmarks/price_of_the_default.py --data cifar --data-root data --results price.jsonl

10,000 images of MNIST or CIFAR-10. Two trainings on the same images serve as units, measured in the same run:

- that of the preset's own network, with the settings of the preset: the network of the groups, which is the largest
  one; for `"fast"` on MNIST, the classifier for wrong labels. `"fast"` on color images trains no network, only linear
  classifiers on features of the encoder, and is divided by the former, too;
- the user's: torchvision's ResNet-18, its first convolution 3 x 3 with a stride of 1 and no pooling after it, for 30
  epochs by SGD with batches of 128, mirrored and cropped images. On a CPU it takes hours, so the time of `--steps`
  steps is multiplied by the number of steps in 30 epochs. The same for a small residual network, our
  `ResidualConvNet`.

A training is longer with more images by the same factor as the default, whose time is proportional to their number.
"""

import functools
from typing import Any

import torch
import torchvision
from harness.datasets import LabeledImages, load_cifar, load_mnist
from harness.runs import Figures, Results, benchmark_parser, print_table, spread_of, start, with_cpu_seconds
from recommended_scorer import network_for
from torch import nn
from torch.utils.data import TensorDataset
from torchvision.transforms import v2

from lightning_poison import sanitize
from lightning_poison.models import ResidualConvNet
from lightning_poison.randomness import seeded_rng
from lightning_poison.runtime import LocalRuntime
from lightning_poison.scorers import FeatureModel

COUNT, BATCH, EPOCHS, CLASSES, FIRST_SEED = 10_000, 128, 30, 10, 20
GOALS = {"fast": 1.3, "balanced": 3.0, "thorough": 6.0}
MAX_OF_TRAINING = 0.25


def resnet18(channels: int) -> nn.Module:
    network: nn.Module = torchvision.models.resnet18(num_classes=CLASSES)
    network.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network


def small_residual(shape: tuple[int, ...]) -> nn.Module:
    return nn.Sequential(ResidualConvNet(shape, 64), nn.Linear(64, CLASSES))


def train(network: nn.Module, data: LabeledImages, steps: int) -> None:
    """Take the first steps of an ordinary training."""
    images, labels = data
    augment = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomCrop(images.shape[-1], padding=4)])
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    network.train()
    order = torch.randperm(len(labels))
    for step in range(steps):
        batch = order[step * BATCH : (step + 1) * BATCH]
        optimizer.zero_grad()
        inputs = torch.stack([augment(image) for image in images[batch]])
        torch.autograd.backward(nn.functional.cross_entropy(network(inputs), labels[batch]))
        optimizer.step()


def seconds_of_training(network: nn.Module, data: LabeledImages, steps: int) -> float:
    """Return the CPU seconds of 30 epochs, from those of some steps."""
    train(network, data, 1)
    _, seconds = with_cpu_seconds(functools.partial(train, network, data, steps))
    return seconds / steps * EPOCHS * len(data[1]) / BATCH


def own_network(data: LabeledImages, preset: str, seed: int) -> None:
    if preset == "fast" and data[0].shape[1] == 1:
        FeatureModel().fit(TensorDataset(*data), generator=torch.Generator().manual_seed(seed))
    else:
        network_for(data[0], data, seed)


def measure(load: Any, preset: Any, steps: int, seed: int) -> Figures:
    images, labels = load()
    chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1000 + seed))[:COUNT]
    data = images[chosen], labels[chosen]
    _, own = with_cpu_seconds(functools.partial(own_network, data, preset, seed))
    runtime = LocalRuntime(threads=1)
    _, seconds = with_cpu_seconds(lambda: sanitize(TensorDataset(*data), preset, seed=seed, runtime=runtime))
    figures = {"seconds": seconds, "own": own, "of own": seconds / own}
    with seeded_rng(seed):
        for name, network in (
            ("ResNet-18", resnet18(images.shape[1])),
            ("small", small_residual(tuple(images.shape[1:]))),
        ):
            figures[name] = seconds_of_training(network, data, steps if name == "ResNet-18" else 10 * steps)
            figures[f"of {name}"] = seconds / figures[name]
    return figures


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--data", choices=["mnist", "cifar"], default="mnist")
    parser.add_argument("--preset", action="append", choices=list(GOALS), help="measure only these; may be repeated")
    parser.add_argument("--steps", type=int, default=3, help="steps of the ResNet-18 that are measured; default: 3")
    args = parser.parse_args()
    start(args, setting=args.data)
    load = functools.partial(load_mnist if args.data == "mnist" else load_cifar, args.data_root, train=True)
    results, rows = Results(args.results), []
    for preset in args.preset or GOALS:
        run = functools.partial(measure, load, preset, args.steps)
        key = {"data": args.data, "preset": preset, "steps": args.steps}
        runs = results.over_seeds(range(FIRST_SEED, FIRST_SEED + args.seeds), key, run)
        cells = [spread_of(runs, name, form=".0f") for name in ("seconds", "own", "ResNet-18", "small")]
        ratios = [spread_of(runs, f"of {name}", form=".3g") for name in ("own", "ResNet-18", "small")]
        rows.append([preset, *cells, ratios[0], f"{GOALS[preset]:g}", *ratios[1:]])
    of_user = [f"÷ {name} (goal {MAX_OF_TRAINING:g})" for name in ("ResNet-18", "small network")]
    columns = ["preset", "CPU s", "its network", "ResNet-18, 30 epochs", "small network, 30 epochs"]
    print_table([*columns, "÷ its network", "goal", *of_user], rows)


if __name__ == "__main__":
    main()
