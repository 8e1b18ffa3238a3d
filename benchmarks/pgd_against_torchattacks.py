"""Time and success of PGD-10 on 256 images, compared with torchattacks and with a bare loop: MNIST.

    python benchmarks/pgd_against_torchattacks.py --data-root data

All three attack the same images on the same network, with the same radius, step size and number of steps, each from its
own random start. They run in alternation, each turn in another order, so that other load on the machine affects all of
them alike. The time is CPU time of the process with one thread; the ratio of the medians is compared. "Bare" is
projected gradient descent alone: no checks, no evaluation mode, no state to restore.

Success is the share of correctly classified images that are misclassified after the attack, averaged over the turns.

Only this benchmark needs torchattacks: `pip install torchattacks`, in a separate environment, since it pins an old
`requests`.
"""

import argparse
import functools
import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from harness.datasets import load_mnist
from harness.networks import conv_network, fit_conv_network
from harness.runs import benchmark_parser, print_goal, print_table, share, spread, start, with_cpu_seconds
from torch import Tensor, nn

from lightning_poison.adversarial import perturb_against

IMAGES, STEPS, EPSILON = 256, 10, 0.1
STEP_SIZE = 2.5 * EPSILON / STEPS
MAX_RATIO, MAX_POINTS = 1.05, 1.0

Attack = Callable[[nn.Module, Tensor, Tensor, torch.Generator], Tensor]


def ours(net: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    return perturb_against(net, images, labels, epsilon=EPSILON, steps=STEPS, step_size=STEP_SIZE, generator=generator)


def bare(net: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    low, high = (images - EPSILON).clamp(min=0), (images + EPSILON).clamp(max=1)
    points = (images + EPSILON * (2 * torch.rand(images.shape, generator=generator) - 1)).clamp(low, high)
    for _ in range(STEPS):
        points.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(net(points), labels), points)
        points = (points.detach() + STEP_SIZE * gradient.sign()).clamp(low, high)
    return points


def torchattacks(net: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    try:
        from torchattacks import PGD
    except ImportError as error:
        raise SystemExit("This benchmark needs torchattacks: `pip install torchattacks`.") from error
    attack = PGD(net, eps=EPSILON, alpha=STEP_SIZE, steps=STEPS, random_start=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        perturbed: Tensor = attack(images, labels)
        return perturbed


CONTENDERS: dict[str, Attack] = {"ours": ours, "torchattacks": torchattacks, "bare": bare}


def measure(seed: int, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return, for each contender, the median seconds, the mean success in percent, and its standard error."""
    net = conv_network(seed)
    fit_conv_network(net, *load_mnist(args.data_root, train=True), torch.Generator().manual_seed(seed))
    images, labels = load_mnist(args.data_root, train=False)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        correct = (net(images).argmax(1) == labels).nonzero().flatten()
    chosen = correct[torch.randperm(len(correct), generator=generator)[:IMAGES]]
    images, labels = images[chosen], labels[chosen]
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    success: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for turn in range(-args.warm_up, args.turns):
        names = list(CONTENDERS)
        for name in names[turn % 3 :] + names[: turn % 3]:
            perturbed, cost = with_cpu_seconds(functools.partial(CONTENDERS[name], net, images, labels, generator))
            if turn >= 0:
                seconds[name].append(cost)
                with torch.no_grad():
                    success[name].append(100 * share(net(perturbed).argmax(1) != labels))
    return {
        name: {
            "seconds": statistics.median(seconds[name]),
            "success": statistics.mean(success[name]),
            "error": statistics.stdev(success[name]) / args.turns**0.5,
        }
        for name in CONTENDERS
    }


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--turns", type=int, default=30, help="timed runs of each attack; default: 30")
    parser.add_argument("--warm-up", type=int, default=3, help="additional runs before, not timed; default: 3")
    args = parser.parse_args()
    start(args)
    print(f"PGD-{STEPS}, epsilon {EPSILON:g}, {IMAGES} images, {args.turns} turns; CPU time of the process")
    runs = [measure(seed, args) for seed in range(args.seeds)]
    ratios = {
        name: [run["ours"]["seconds"] / run[name]["seconds"] for run in runs] for name in CONTENDERS if name != "ours"
    }
    gaps = {name: [run["ours"]["success"] - run[name]["success"] for run in runs] for name in ratios}
    rows = [
        [
            name,
            spread([1e3 * run[name]["seconds"] for run in runs], ".1f"),
            spread(ratios[name], ".3f") if name in ratios else "",
            spread([run[name]["success"] for run in runs], ".2f"),
            spread([run[name]["error"] for run in runs], ".2f"),
        ]
        for name in CONTENDERS
    ]
    print_table(["attack", "CPU ms", "ours ÷ it", "success, %", "standard error"], rows)
    for name in ratios:
        print_goal(f"ours ÷ {name} at most {MAX_RATIO}", [ratio <= MAX_RATIO for ratio in ratios[name]])
        print_goal(f"success within {MAX_POINTS:g} point of {name}", [abs(gap) <= MAX_POINTS for gap in gaps[name]])


if __name__ == "__main__":
    main()
