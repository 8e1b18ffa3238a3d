"""Every example runs offline, from any folder, and prints what its docstring describes.

Importing Lightning takes longer than most examples, so they run in this process, and only one in a process of its own.
"""

import logging
import random
import re
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from lightning_poison.models import FitSettings
from lightning_poison.scorers import LikelihoodScorer

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = pytest.mark.slow


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """Return a function that runs an example as a script in an empty folder and returns what it prints.

    Any warning is an error. What an example changes globally is restored. Networks are trained for a third of the
    default steps, which suffices for small images.
    """
    monkeypatch.setitem(LikelihoodScorer.__init__.__kwdefaults__, "fit_settings", FitSettings(min_steps=100))
    disabled, threads = logging.root.manager.disable, torch.get_num_threads()
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 (Lightning seeds the global generator)

    def run_example(script, *arguments):
        path = EXAMPLES / script
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(path.parent)
        monkeypatch.setattr(sys, "argv", [str(path), *arguments])
        code = None
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.resetwarnings()
            warnings.simplefilter("error")
            try:
                runpy.run_path(str(path), run_name="__main__")
            except SystemExit as ended:
                code = ended.code
        assert not code
        shown = capfd.readouterr()
        return shown.out + shown.err

    yield run_example
    sys.modules.pop("project", None)
    logging.disable(disabled)
    torch.set_num_threads(threads)
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002


def numbers_after(start, text):
    """Return the number at the end of each line with this start."""
    return [float(re.search(r"[\d.]+$", line)[0]) for line in text.splitlines() if line.strip().startswith(start)]


def caught_of(text):
    """Return the caught and the lost share from the last two counts of the form `x of the y`."""
    counts = re.findall(r"(\d+) of the ([\d,]+) ", text)
    return [int(part) / int(whole.replace(",", "")) for part, whole in counts[-2:]]


def test_callback(run, tmp_path):
    shown = run("callback.py")
    poisoned, sanitized, clean = numbers_after("accuracy", shown)
    assert poisoned < sanitized < clean
    caught, lost = caught_of(shown)
    assert caught > 0.8
    assert lost < 0.03
    assert "\nevidence of poison: " in shown
    assert list(tmp_path.iterdir()) == []


def test_wrapper(run, tmp_path):
    shown = run("wrapper.py")
    undefended, defended = numbers_after("attack success rate", shown)
    assert undefended > defended + 0.05
    caught, lost = caught_of(shown)
    assert caught > 0.5
    assert lost < 0.02
    assert "labeled 8, looks like 5" in shown
    assert list(tmp_path.iterdir()) == []


def test_third_party_plugin(run):
    shown = run("third_party_plugin.py")
    assert "the attack follows all rules" in shown
    assert "Poison(noisy-copies: 42 samples, sample inputs (1, 8, 8)): 1,400 samples before, 1,442 after" in shown
    assert "labeled 9, looks like 4" in shown
    caught, right = (int(share) / 100 for share in re.findall(r"(\d+)%", shown))
    assert caught > 0.6
    assert right > 0.6


def test_cli(tmp_path):
    """In a process of its own, where the default filters show warnings."""
    script, config = EXAMPLES / "cli" / "train.py", EXAMPLES / "cli" / "config.yaml"
    command = [sys.executable, str(script), "fit", "--config", str(config)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    shown = done.stdout + done.stderr
    assert "sanitizer: 1,797 samples scored by likelihood" in shown
    assert "\nevidence of poison: " in shown
    assert (tmp_path / "sanitizer_reports" / "sanitizer" / "manifest.csv").is_file()


def test_cli_prints_its_configuration(run):
    config = EXAMPLES / "cli" / "config.yaml"
    printed = yaml.safe_load(run("cli/train.py", "fit", "--config", str(config), "--print_config"))
    arguments = printed["trainer"]["callbacks"][0]["init_args"]
    assert (arguments["max_removed"], arguments["scorer"]["init_args"]["feature_size"]) == (0.5, 32)


def test_frozen_features(run):
    naive, naive_poisoned, robust, robust_poisoned = numbers_after("accuracy", run("frozen_features.py"))
    assert min(naive, robust) > 0.85
    assert naive_poisoned < naive - 0.2
    assert robust - robust_poisoned < naive - naive_poisoned - 0.1
