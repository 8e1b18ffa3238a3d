import csv
from dataclasses import replace

import pytest
import torch

from lightning_poison.errors import UnknownNameError
from lightning_poison.shell import demo
from lightning_poison.shell.demo import run_demo
from lightning_poison.shell.demo_data import load_demo_data


def test_digits_are_on_their_pixel_grid():
    data = load_demo_data("digits")
    assert data.images.shape == (1797, 1, 8, 8)
    assert torch.equal(data.pixels.round(data.images), data.images)
    assert torch.equal(load_demo_data("digits").labels, data.labels)
    assert not torch.equal(load_demo_data("digits", seed=1).labels, data.labels)


def test_refuses_missing_mnist(tmp_path):
    with pytest.raises(FileNotFoundError, match="--data digits"):
        load_demo_data("mnist", tmp_path)


def test_error_for_missing_attacks_says_how_to_install_them(monkeypatch, tmp_path):
    def missing(name):
        raise UnknownNameError(f"no {name}")

    monkeypatch.setattr(demo, "get_attack", missing)
    with pytest.raises(UnknownNameError, match=r"from a clone of the repository: `pip install \./plugins/\*/`"):
        run_demo(output=tmp_path, write=print)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_sanitizer_outperforms_controls_on_both_attacks(tmp_path, monkeypatch):
    """With about half of the training, which is enough."""
    monkeypatch.setattr(demo, "FINE_TUNING_EPOCHS", 35)
    monkeypatch.setattr(demo, "load_demo_data", lambda *where, **how: replace(load_demo_data(*where, **how), epochs=10))
    lines = []
    cells = run_demo(output=tmp_path, write=lines.append)
    for attack, least in (("label-flip", 0.05), ("poison-frog", 0.5)):
        by_name = {row.defense: row for row in cells[attack]}
        assert by_name["no defense"].attack_success_rate >= least
        assert by_name["sanitizer"].attack_success_rate < by_name["no defense"].attack_success_rate / 2
        assert by_name["sanitizer"].poison_caught > 0.6
        assert by_name["sanitizer"].clean_lost < 0.02
        assert by_name["random filter"].poison_caught < 0.4
        assert by_name["pixel counting, same number"].poison_caught < by_name["sanitizer"].poison_caught - 0.2
        with (tmp_path / attack / "manifest.csv").open(newline="") as file:
            assert len(list(csv.DictReader(file))) == by_name["sanitizer"].removed
        assert (tmp_path / attack / "caught.png").stat().st_size > 1000
    assert "pixel counting" in "\n".join(lines)


def test_parts_do_not_overlap():
    data = replace(load_demo_data("digits"), pretrained=5)
    first, second = data.part(0, 5), data.part(5, 9)
    assert len(first) == 5
    assert torch.equal(torch.cat([first.tensors[1], second.tensors[1]]), data.labels[:9])


def test_same_seed_gives_same_perceptron():
    first, again, other = (demo._perceptron(16, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if first[name].ndim > 1)
