"""What `lightning-poison scan FOLDER` finds, and how long it takes: image files, nothing trusted, no option set.

    python benchmarks/scan_folder.py --data-root data --results scan_folder.jsonl --seeds 1

10,000 training images of MNIST, drawn anew in each seed, as PNG files in a folder for each class. Of them, 1 % are
BadNets with the label 0, and 5 % have flipped labels; 1 % of poison frogs are added, 20 for each of five targets,
crafted on a network that was trained on other images. File names do not tell. The command runs in a process of its own,
and what it removes is read from its manifest.
"""

import functools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from harness.datasets import RawDataset, inputs_of, load_mnist
from harness.runs import Figures, Results, benchmark_parser, print_goal, print_table, spread_of, start
from PIL import Image
from recommended_scorer import network_for

from lightning_poison import Surrogate, Threat, craft, get_attack
from lightning_poison.manifest import read_manifest

COUNT, TARGETS, FROGS = 10_000, 5, 100
KINDS = ("BadNets", "flips", "frogs")
GOALS = {"BadNets": 0.9, "flips": 0.9, "frogs": 0.8}
MINUTES, LOST = 8, 0.01


def poisoned(root: Path, seed: int) -> tuple[RawDataset, dict[str, torch.Tensor]]:
    """Return images with three kinds of poison, and the positions of each."""
    images, labels = load_mnist(root, train=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1000 + seed))
    train, rest = (
        RawDataset.from_floats(images[part], labels[part]) for part in (order[:COUNT], order[COUNT:][:COUNT])
    )
    others = images[order[COUNT:][:COUNT]], labels[order[COUNT:][:COUNT]]
    surrogates = [Surrogate(network_for(images, others, seed + 500), "backbone")]
    attacks = {"BadNets": ("badnets", COUNT // 100), "flips": ("label-flip", COUNT // 20)}
    positions: dict[str, torch.Tensor] = {}
    inputs, own = train.data.clone(), train.targets.clone()
    taken = torch.zeros(COUNT, dtype=torch.bool)
    for number, (kind, (attack, count)) in enumerate(attacks.items()):
        free = (~taken).nonzero().flatten()
        part = RawDataset(inputs[free], own[free])
        generator = torch.Generator().manual_seed(10 * seed + number)
        poison = craft(get_attack(attack), part, Threat(count), generator=generator)
        own[free[poison.indices]] = poison.labels
        if poison.inputs is not None:
            inputs[free[poison.indices]] = poison.inputs
        positions[kind] = free[poison.indices]
        taken[positions[kind]] = True
    frogs = craft(
        get_attack("poison-frog", poisons_per_target=FROGS // TARGETS),
        train,
        Threat(FROGS),
        surrogates=surrogates,
        holdout=rest,
        generator=torch.Generator().manual_seed(10 * seed + len(attacks)),
    )
    data = RawDataset(torch.cat([inputs, inputs_of(frogs)]), torch.cat([own, frogs.labels]))
    return data, positions | {"frogs": frogs.indices}


def write_files(data: RawDataset, folder: Path) -> None:
    for index in range(len(data)):
        image, label = data[index]
        path = folder / str(label) / f"{index:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((255 * image).round().byte().squeeze(0).numpy()).save(path)


def measure(root: Path, seed: int) -> Figures:
    data, positions = poisoned(root, seed)
    with tempfile.TemporaryDirectory() as name:
        folder, output = Path(name) / "images", Path(name) / "scan"
        write_files(data, folder)
        begin = time.monotonic()
        command = [sys.executable, "-m", "lightning_poison", "scan", str(folder), "--output", str(output), "--json"]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 (our own command)
        seconds = time.monotonic() - begin
        if ended.returncode not in (0, 3):
            raise RuntimeError(ended.stderr)
        removed = torch.zeros(len(data), dtype=torch.bool)
        removed[[int(Path(row.path).stem) for row in read_manifest(output / "manifest.csv").rows]] = True
        summary = json.loads(ended.stdout)
    clean = torch.ones(len(data), dtype=torch.bool)
    for each in positions.values():
        clean[each] = False
    figures: Figures = {kind: float(removed[positions[kind]].double().mean()) for kind in KINDS}
    figures |= {"clean lost": float(removed[clean].double().mean()), "minutes": seconds / 60}
    return figures | {"status": ended.returncode, "estimate": summary["estimate"], "findings": summary["findings"]}


def main() -> None:
    parser = benchmark_parser(__doc__)
    args = parser.parse_args()
    start(args)
    runs = Results(args.results).over_seeds(range(args.seeds), {}, functools.partial(measure, args.data_root))
    rows = [[kind, spread_of(runs, kind, form=".3f")] for kind in KINDS]
    rows += [
        ["clean lost", spread_of(runs, "clean lost", form=".4f")],
        ["minutes", spread_of(runs, "minutes", form=".1f")],
    ]
    print_table(["", "median (range)"], rows)
    for kind, goal in GOALS.items():
        print_goal(f"{kind}: at least {goal} removed", [run[kind] >= goal for run in runs])
    print_goal(f"at most {LOST} of the clean images removed", [run["clean lost"] <= LOST for run in runs])
    print_goal(f"at most {MINUTES} minutes", [run["minutes"] <= MINUTES for run in runs])


if __name__ == "__main__":
    main()
