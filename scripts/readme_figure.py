"""Draws docs/figures/caught.png: the most suspicious image that looks like each digit, among those that were removed.

Run `lightning-poison demo --data mnist --data-root DIR` first, then
`python scripts/readme_figure.py DIR lightning_poison_demo/label-flip/verdict.safetensors docs/figures/caught.png`.
"""

import sys
from pathlib import Path

from lightning_poison import Verdict
from lightning_poison.report import plot_caught, save_figure
from lightning_poison.shell.demo_data import load_demo_data

root, verdict_path, figure_path = map(Path, sys.argv[1:])
data, verdict = load_demo_data("mnist", root), Verdict.load(verdict_path)
removed = verdict.ranking[~verdict.keep[verdict.ranking]]
looks_like = verdict.suggested_labels[removed].tolist()
chosen = {int(removed[looks_like.index(digit)]) for digit in set(looks_like)}
others = [index for index in removed.tolist() if index not in chosen]
figure = plot_caught(data.part(0, data.trained), verdict.with_kept(removed.new_tensor(others)), columns=10)
figure.suptitle(f"10 of {len(removed):,} images that were removed from {len(verdict):,}", fontsize=10)
save_figure(figure, figure_path)
