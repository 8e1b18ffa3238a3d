"""Time and success of PGD-10 on 256 MNIST images, against torchattacks and against a bare loop.

    python benchmarks/pgd_against_torchattacks.py --data-root data

All three attack the same images on the same net, with the same radius, step and number of steps, from random starts of
their own. They take turns, each turn in another order, so that what else the machine does falls on all alike; the time
is that of the process's CPU with one thread, and what is compared is the ratio of the medians. "Bare" is projected
gradient descent written down with nothing around it: no check, no evaluation mode, nothing put back.

Success is the share of the images that the net reads rightly and misreads after the attack, a mean over the turns.

torchattacks is needed by this benchmark only: `pip install torchattacks`, in an environment of its own, since it pins
an old `requests`.
"""

import argparse
import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from common import arguments, load_mnist, print_goal, print_setting, print_table, spread, timed
from torch import Tensor, nn

from lightning_poison.adversarial import perturb_against

IMAGES, STEPS, EPSILON = 256, 10, 0.1
STEP_SIZE = 2.5 * EPSILON / STEPS
TRAINING_IMAGES, EPOCHS, BATCH = 20_000, 2, 64
MOST_TIME, MOST_POINTS = 1.05, 1.0

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
        return attack(images, labels)


CONTENDERS: dict[str, Attack] = {"ours": ours, "torchattacks": torchattacks, "bare": bare}


def trained(images: Tensor, labels: Tensor, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        convolutions = [nn.Conv2d(1, 16, 5, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 5, stride=2), nn.ReLU()]
        net = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10))
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(images), generator=generator)[:TRAINING_IMAGES].split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(net(images[batch]), labels[batch]).backward()
            optimizer.step()
    return net.eval()


def measure(seed: int, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return, for each contender, the median seconds, the mean success in per cent, and its standard error."""
    net = trained(*load_mnist(args.data_root, train=True), seed)
    images, labels = load_mnist(args.data_root, train=False)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        right = (net(images).argmax(1) == labels).nonzero().flatten()
    chosen = right[torch.randperm(len(right), generator=generator)[:IMAGES]]
    images, labels = images[chosen], labels[chosen]
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    success: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for turn in range(-args.warm_up, args.turns):
        names = list(CONTENDERS)
        for name in names[turn % 3 :] + names[: turn % 3]:
            found: list[Tensor] = []
            cost = timed(
                lambda name=name, found=found: found.append(CONTENDERS[name](net, images, labels, generator)) or {}
            )
            if turn >= 0:
                seconds[name].append(cost["cpu_s"])
                with torch.no_grad():
                    success[name].append(100 * float((net(found[0]).argmax(1) != labels).double().mean()))
    return {
        name: {
            "seconds": statistics.median(seconds[name]),
            "success": statistics.mean(success[name]),
            "error": statistics.stdev(success[name]) / args.turns**0.5,
        }
        for name in CONTENDERS
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--turns", type=int, default=30, help="how often each attack is timed")
    parser.add_argument("--warm-up", type=int, default=3, help="turns that do not count")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print_setting("pgd_against_torchattacks", args)
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
    print_table(["attack", "CPU ms", "ours ÷ it", "success, %", "its standard error"], rows)
    for name in ratios:
        print_goal(f"ours ÷ {name} at most {MOST_TIME}", [ratio <= MOST_TIME for ratio in ratios[name]])
        print_goal(f"success within {MOST_POINTS:g} point of {name}", [abs(gap) <= MOST_POINTS for gap in gaps[name]])


if __name__ == "__main__":
    main()
