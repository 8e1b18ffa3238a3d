"""CPU time to compile the default's network with `torch.compile`, beside the training that it would speed up.

    python benchmarks/compile_time.py --data-root data --results compile.jsonl

The network is `DetailConvNet` with a linear layer for ten classes, on MNIST and CIFAR-10. Its training by `fit_module`
with the default settings is timed as it is. Compiling is what the first step of the compiled network, forward and
backward, takes longer than a later one, without stored results of earlier compilations, with the time of the C++
compiler, and after a linear layer has been compiled. The first network in a process takes longest even so. Steps of
both are timed in alternation. The gain is what the training would save if all its steps were as fast as the compiled
ones.
"""

import functools
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # in this process, so that its CPU time is counted

import torch
import torch.nn.functional as F
from harness.datasets import LabeledImages, cifar_files, load_mnist, read_images
from harness.runs import Figures, Results, benchmark_parser, print_table, spread_of, start
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from lightning_poison.models import FitSettings, fit_module
from lightning_poison.models.detail_network import DetailConvNet
from lightning_poison.models.fitting import to_channels_last
from lightning_poison.runtime import LocalRuntime

SIZES = (2_000, 10_000)
BATCH, TURNS, STEPS = 128, 9, 4


def cross_entropy(module: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(module(inputs), labels)


def cpu_seconds() -> float:
    """Return the CPU time of this process and of the compilers that it has started."""
    children = os.times()
    return time.process_time() + children.children_user + children.children_system


def new_network(images: Tensor, seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(DetailConvNet(tuple(images.shape[1:])), nn.Linear(64, 10))


def measure_training(images: Tensor, labels: Tensor, seed: int) -> Figures:
    network, begin = new_network(images, seed), cpu_seconds()
    generator = torch.Generator().manual_seed(seed)
    data, runtime = TensorDataset(images, labels), LocalRuntime(quiet=True)
    fit_module(network, data, cross_entropy, settings=FitSettings(), runtime=runtime, generator=generator)
    return {"seconds": cpu_seconds() - begin, "steps": FitSettings().total_steps(len(images))}


def measure_compiling(images: Tensor, labels: Tensor, seed: int) -> Figures:
    inputs = images[:BATCH].contiguous(memory_format=torch.channels_last)
    network = to_channels_last(new_network(images, seed)).train()

    def seconds(module: nn.Module, steps: int) -> float:
        begin = cpu_seconds()
        for _ in range(steps):
            cross_entropy(module, inputs, labels[:BATCH]).backward()  # type: ignore[no-untyped-call]
        return (cpu_seconds() - begin) / steps

    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        torch.compiler.reset()
        torch.compile(nn.Linear(2, 2))(torch.zeros(3, 2)).sum().backward()
        compiled: nn.Module = torch.compile(network)  # type: ignore[assignment]
        first = seconds(compiled, 1)
        pairs = [(seconds(network, STEPS), seconds(compiled, STEPS)) for _ in range(TURNS)]
    plain, fast = (statistics.median(times) for times in zip(*pairs, strict=True))
    return {"compiling": first - fast, "step": plain, "compiled_step": fast}


def load(name: str, root: Path, count: int, seed: int) -> LabeledImages:
    generator = torch.Generator().manual_seed(seed)
    if name == "MNIST":
        images, labels = load_mnist(root, train=True)
        chosen = torch.randperm(len(labels), generator=generator)[:count]
        return images[chosen], labels[chosen]
    paths, labels = cifar_files(root, train=True, classes=range(10))
    chosen = torch.randperm(len(paths), generator=generator)[:count]
    return read_images([paths[index] for index in chosen.tolist()]), labels[chosen]


def main() -> None:
    args = benchmark_parser(__doc__).parse_args()
    start(args)
    results, lines = Results(args.results), []
    for name in ("MNIST", "CIFAR-10"):
        compiling: list[Figures] = []
        trainings: dict[int, list[Figures]] = {size: [] for size in SIZES}
        for seed in range(args.seeds):
            images, labels = load(name, args.data_root, max(SIZES), seed)
            key = {"data": name, "seed": seed}
            compiling.append(
                results.get({**key, "what": "compiling"}, functools.partial(measure_compiling, images, labels, seed))
            )
            for size, runs in trainings.items():
                work = functools.partial(measure_training, images[:size], labels[:size], seed)
                runs.append(results.get({**key, "what": "training", "size": size}, work))
        for size, runs in trainings.items():
            gains = [
                {"gain": run["steps"] * (own["step"] - own["compiled_step"])}
                for run, own in zip(runs, compiling, strict=True)
            ]
            figures = [spread_of(runs, "seconds", form=".1f"), spread_of(compiling, "compiling", form=".1f")]
            figures += [spread_of(compiling, step, form=".1f", scale=1000) for step in ("step", "compiled_step")]
            lines.append([name, f"{size:,}", *figures, spread_of(gains, "gain", form=".1f")])
    units = ["training, CPU s", "compiling, CPU s", "step, CPU ms", "compiled step, CPU ms", "gain, CPU s"]
    print_table(["data", "images", *units], lines)


if __name__ == "__main__":
    main()
