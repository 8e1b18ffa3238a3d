"""Many classes and many samples: time and memory of `sanitize` on feature vectors without trusted data.

    python benchmarks/many_classes.py --data-root data --results many_classes.jsonl

Feature vectors with `SIZE` elements are drawn from one normal distribution per class. Classes come in groups of ten
whose means are close, so that about a tenth of the samples look like another class of their group; groups hardly
overlap. The overlap is therefore the same for any number of classes, and the number of samples per class is not. 5 % of
the labels are replaced by random other ones. Nothing is trusted.

Every row is the public call in a process of its own:

- default: `sanitize(data)`, which trains a small network for each of three folds,
- linear probe: `sanitize(data, LinearProbeScorer())`, linear classifiers on the vectors,
- Mahalanobis, posterior: `MahalanobisScorer(FeatureModel("auto"), score="posterior")`, a normal distribution for each
  class, which is how these vectors are drawn,
- probabilities: `sanitize(labels=..., pred_probs=...)` with the float32 probabilities of the true distributions, which
  is the decision alone. These probabilities are the data.

Beforehand, each process makes a decision about 600 vectors, so that imports are not measured. "Memory" is the peak of
the resident memory during the call minus the resident memory before it, which includes the data, sampled every 10 ms
and by the kernel's own peak. Files that are mapped into memory count.

Part one compares 10, 100 and 1,000 classes at 50,000 samples. Part two is the slope of the logarithm of the time over
that of the number of samples, at 100 classes, by least squares; times are CPU seconds. Part three is imbalance: the
sizes of 50 classes decrease geometrically from 2,000 to 20 samples, and further classes have 1 to 30. "Rare" are those
of at most 30 samples. Wrong labels are spread evenly over the classes, so that they are most of what carries the label
of a rare class, which the call then keeps and names.

Part four is the other scorers of whole data sets at 100 classes, whose `score_features` alone is called: without
trusted data, they are members of a union or rank samples. Deep k-NN compares each sample with each, so its time grows
with the square of their number; it is measured on at most 100,000.

No data set is read; `--data-root` is accepted as in every benchmark.
"""

import json
import math
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness.runs import Figures, Results, benchmark_parser, print_goal, print_table, share, spread_of, start
from torch import Tensor
from torch.utils.data import TensorDataset

from lightning_poison import Verdict, sanitize
from lightning_poison.errors import InconclusiveError
from lightning_poison.randomness import seeded_rng
from lightning_poison.runtime import LocalRuntime
from lightning_poison.scorers import (
    ActivationClusteringScorer,
    DeepKNNScorer,
    FeatureModel,
    LinearProbeScorer,
    MahalanobisScorer,
    QuantumEntropyScorer,
    SpectralSignatureScorer,
)
from lightning_poison.scorers.protocol import SetScorer

SIZE, FLIPPED, GROUP = 128, 0.05, 10
SAMPLES, CLASSES = 50_000, (10, 100, 1_000)
LENGTHS, AT_CLASSES = (10_000, 30_000, 100_000, 300_000, 1_000_000), 100
LARGE, RARE, SMALL = 50, (1, 2, 3, 5, 8, 12, 20, 30), 30
NEAR, APART = 0.27, 0.6
"""Standard deviations of the means of classes within a group, and of groups, in units of the noise."""
GIB = 1024**3
MAX_RATIO, MAX_GIB, MAX_GIB_OF_LENGTHS, MAX_OFF_SLOPE = 2.0, 1.0, 1.5, 0.05
SCORERS: dict[str, Callable[[], Any] | None] = {
    "default": None,
    "linear probe": LinearProbeScorer,
    "Mahalanobis, posterior": lambda: MahalanobisScorer(FeatureModel("auto"), score="posterior"),
    "probabilities": None,
}
SETS: dict[str, type[SetScorer]] = {
    "spectral signatures": SpectralSignatureScorer,
    "activation clustering": ActivationClusteringScorer,
    "quantum entropy": QuantumEntropyScorer,
    "deep k-NN": DeepKNNScorer,
}
MOST_COMPARED = 100_000


def means_of(classes: int, generator: torch.Generator) -> Tensor:
    """Return the mean of each class, `(C, SIZE)`."""
    groups = APART * torch.randn(math.ceil(classes / GROUP), SIZE, generator=generator)
    return groups.repeat_interleave(GROUP, 0)[:classes] + NEAR * torch.randn(classes, SIZE, generator=generator)


def draw(truth: Tensor, classes: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return float32 features, labels of which some are wrong, and the means of the classes."""
    generator = torch.Generator().manual_seed(seed)
    means = means_of(classes, generator)
    features = torch.empty(len(truth), SIZE)
    for block, own in zip(torch.split(features, 10_000), torch.split(truth, 10_000), strict=True):
        block.normal_(generator=generator)
        block += means[own]
    labels = truth.clone()
    chosen = torch.randperm(len(truth), generator=generator)[: round(FLIPPED * len(truth))]
    steps = torch.randint(1, classes, (len(chosen),), generator=generator)
    labels[chosen] = (labels[chosen] + steps) % classes
    return features, labels, means


def probabilities(features: Tensor, means: Tensor) -> Tensor:
    """Return the probability of each class, float32 `(N, C)`."""
    found = torch.empty(len(features), len(means))
    for rows, block in zip(torch.split(found, 10_000), torch.split(features, 10_000), strict=True):
        rows[:] = (block @ means.T - means.square().sum(1) / 2).softmax(1)
    return found


def resident(name: str = "VmRSS") -> int:
    """Return the resident memory of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def with_memory(work: Callable[[], Any]) -> tuple[Any, int]:
    """Return the result of a call, and how much resident memory it takes at most, in bytes."""
    before, peaks, ended = resident(), [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.01):
            peaks[0] = max(peaks[0], resident())

    at_start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        result = work()
    finally:
        ended.set()
        watcher.join()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return result, max(peaks[0], peak if peak > at_start else 0) - before


def call(name: str, features: Tensor, labels: Tensor, means: Tensor, seed: int) -> Callable[[], Verdict]:
    """Return the public call; what it takes as data is computed here."""
    if name == "probabilities":
        return partial(sanitize, labels=labels, pred_probs=probabilities(features, means))
    build = SCORERS[name]
    scorer = {} if build is None else {"scorer": build()}
    return partial(sanitize, TensorDataset(features, labels), runtime=LocalRuntime(threads=1), seed=seed, **scorer)


def decide(name: str, truth: list[int] | None, classes: int, count: int, seed: int) -> Figures:
    """Return time, memory and detection of a decision."""
    true = torch.arange(count) % classes if truth is None else torch.tensor(truth)
    features, labels, means = draw(true, classes, seed)
    warm = draw(torch.arange(600) % 3, 3, seed)
    call(name, *warm, seed)()
    work = call(name, features, labels, means, seed)
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        found, memory = with_memory(work)
    except InconclusiveError as error:
        return {"refused": str(error).splitlines()[0]}
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    is_wrong, evidence = labels != true, found.evidence
    judged = torch.ones_like(is_wrong) if found.judged is None else found.judged
    rare = torch.isin(true, (torch.bincount(true) <= SMALL).nonzero().flatten())
    return {
        "call_wall_s": wall,
        "call_cpu_s": cpu,
        "gib": memory / GIB,
        "tpr": share(~found.keep[is_wrong & judged]),
        "fpr": share(~found.keep[~is_wrong & judged]),
        "fpr_rare": share(~found.keep[~is_wrong & judged & rare]) if bool(rare.any()) else None,
        "power": evidence.power,
        "correct": share(found.suggested_labels[judged] == true[judged]),
        "wrong": share(is_wrong[judged]),
        "estimate": evidence.contamination,
        "low": evidence.low,
        "high": evidence.high,
        "not judged": int((~judged).sum()),
        "notes": list(found.notes),
    }


def score_set(name: str, classes: int, count: int, seed: int) -> Figures:
    """Return time and memory of the scores of a whole data set."""
    features, labels, _ = draw(torch.arange(count) % classes, classes, seed)
    warm = draw(torch.arange(600) % 3, 3, seed)
    SETS[name]().score_features(*warm[:2])
    wall, cpu = time.perf_counter(), time.process_time()
    _, memory = with_memory(lambda: SETS[name]().score_features(features, labels))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"call_wall_s": wall, "call_cpu_s": cpu, "gib": memory / GIB}


def imbalanced() -> list[int]:
    """Return the true class of each sample."""
    sizes = np.geomspace(2_000, 20, LARGE).round().astype(int).tolist() + list(RARE)
    return [number for number, size in enumerate(sizes) for _ in range(size)]


def in_process(name: str, *arguments: Any) -> Figures:
    """Make a decision, or score a data set, in a process of its own."""
    command = [sys.executable, __file__, "--data-root", ".", "--child", json.dumps([name, *arguments])]
    printed = subprocess.run(command, capture_output=True, text=True)  # noqa: S603 (this script)
    if printed.returncode:
        raise RuntimeError(printed.stderr[-2000:])
    figures: Figures = json.loads(printed.stdout.splitlines()[-1])
    return figures


def row_of(first: Sequence[str], runs: list[Figures]) -> list[str]:
    """Return a row of a table."""
    if any("refused" in run for run in runs):
        return [*first, *[""] * 7, "refused"]
    inside = sum(run["low"] <= run["wrong"] <= run["high"] for run in runs)
    forms = {"call_cpu_s": ".1f", "gib": ".2f", "correct": ".3f", "tpr": ".3f", "fpr": ".4f", "estimate": ".4f"}
    interval = f"{spread_of(runs, 'low')} to {spread_of(runs, 'high')}"
    return [*first, *[spread_of(runs, name, form=form) for name, form in forms.items()], interval, f"{inside}"]


PARTS = ("classes", "samples", "rare", "sets")
COLUMNS = ("CPU s", "memory, GiB", "predicted correctly", "TPR", "FPR", "estimate", "interval", "seeds in interval")


def report(
    by_classes: dict[tuple[str, int], list[Figures]],
    by_length: dict[tuple[str, int], list[Figures]],
    rare: dict[str, list[Figures]],
) -> None:
    """Print the tables, and which goals are met."""
    print_table(
        ("scorer", "classes", *COLUMNS), [row_of([key[0], f"{key[1]:,}"], by_classes[key]) for key in by_classes]
    )
    print_table(("scorer", "samples", *COLUMNS), [row_of([key[0], f"{key[1]:,}"], by_length[key]) for key in by_length])
    rows = [
        [*row_of([name], runs), spread_of(runs, "fpr_rare", form=".4f"), " ".join(runs[0]["notes"])]
        for name, runs in rare.items()
    ]
    print_table(("scorer", *COLUMNS, "FPR of rare classes", "notes"), rows)
    print()
    for name in dict.fromkeys(key[0] for key in by_classes):
        few, many = (by_classes.get((name, count), []) for count in (CLASSES[0], CLASSES[-1]))
        pairs = [(a, b) for a, b in zip(few, many, strict=True) if "gib" in a and "gib" in b]
        if pairs:
            ratios = [b["call_cpu_s"] / a["call_cpu_s"] for a, b in pairs]
            print(f"{name}: {CLASSES[-1]:,} classes take {min(ratios):.2f} to {max(ratios):.2f} times as long")
            print_goal(f"{name}: at most {MAX_RATIO:g} times", [ratio <= MAX_RATIO for ratio in ratios])
            print_goal(f"{name}: at most {MAX_GIB:g} GiB", [b["gib"] <= MAX_GIB for _, b in pairs])
    for name in dict.fromkeys(key[0] for key in by_length):
        lengths = [length for each, length in by_length if each == name]
        slopes, memory = [], []
        for runs in zip(*(by_length[name, length] for length in lengths), strict=True):
            times = np.log([run["call_cpu_s"] for run in runs])
            slopes.append(float(np.polyfit(np.log(lengths), times, 1)[0]))
            memory.append(max(run["gib"] for run in runs))
        span = f"{lengths[0]:,} to {lengths[-1]:,} samples"
        print(f"{name}: slope {min(slopes):.3f} to {max(slopes):.3f} over {span}, at most {max(memory):.2f} GiB")
        print_goal(f"{name}: slope of 1 within {MAX_OFF_SLOPE:g}", [abs(each - 1) <= MAX_OFF_SLOPE for each in slopes])
        print_goal(f"{name}: at most {MAX_GIB_OF_LENGTHS:g} GiB", [each <= MAX_GIB_OF_LENGTHS for each in memory])


def report_sets(sets: dict[tuple[str, int], list[Figures]]) -> None:
    """Print time and memory of the scorers of whole data sets, and their slopes."""
    print()
    rows = [
        [name, f"{length:,}", spread_of(runs, "call_cpu_s", form=".1f"), spread_of(runs, "gib", form=".2f")]
        for (name, length), runs in sets.items()
    ]
    print_table(("scorer", "samples", *COLUMNS[:2]), rows)
    for name in dict.fromkeys(name for name, _ in sets):
        lengths = [length for each, length in sets if each == name]
        for runs in zip(*(sets[name, length] for length in lengths), strict=True):
            times = np.log([run["call_cpu_s"] for run in runs])
            slope = float(np.polyfit(np.log(lengths), times, 1)[0])
            print(f"{name}: slope {slope:.3f} over {lengths[0]:,} to {lengths[-1]:,} samples")


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--scorers", nargs="+", choices=list(SCORERS), default=list(SCORERS), help="default: all")
    parser.add_argument("--samples", type=int, default=SAMPLES, help=f"samples of part one; default: {SAMPLES:,}")
    parser.add_argument("--most-samples", type=int, default=LENGTHS[-1], help="largest number of samples of part two")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument("--child", type=json.loads, help="internal: the measurement of a child process")
    args = parser.parse_args()
    if args.child:
        torch.set_num_threads(1)
        with seeded_rng(0):
            print(json.dumps((score_set if args.child[0] in SETS else decide)(*args.child)))
        return
    start(args)
    results, seeds = Results(args.results), range(args.seeds)

    def runs(name: str, classes: int, count: int, truth: list[int] | None = None) -> list[Figures]:
        key = {"scorer": name, "classes": classes, "samples": count, "rare": truth is not None}
        return results.over_seeds(seeds, key, partial(in_process, name, truth, classes, count))

    by_classes: dict[tuple[str, int], list[Figures]] = {}
    by_length: dict[tuple[str, int], list[Figures]] = {}
    rare: dict[str, list[Figures]] = {}
    for name in args.scorers:
        if "classes" in args.parts:
            by_classes |= {(name, count): runs(name, count, args.samples) for count in CLASSES}
        if "samples" in args.parts:
            lengths = [length for length in LENGTHS if length <= args.most_samples]
            by_length |= {(name, length): runs(name, AT_CLASSES, length) for length in lengths}
        if "rare" in args.parts:
            truth = imbalanced()
            rare[name] = runs(name, LARGE + len(RARE), len(truth), truth)
    report(by_classes, by_length, rare)
    if "sets" in args.parts:
        sets: dict[tuple[str, int], list[Figures]] = {}
        for name in SETS:
            most = min(args.most_samples, MOST_COMPARED if name == "deep k-NN" else LENGTHS[-1])
            for length in (length for length in LENGTHS if length <= most):
                key = {"scorer": name, "classes": AT_CLASSES, "samples": length}
                work = partial(in_process, name, AT_CLASSES, length)
                sets[name, length] = results.over_seeds(seeds, key, work)
        report_sets(sets)


if __name__ == "__main__":
    main()
