"""Every example runs offline, from any folder, and prints what its docstring describes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = pytest.mark.slow


@pytest.fixture
def run(tmp_path):
    """Return a function that runs an example in an empty folder and returns what it prints."""

    def run_example(script, *arguments):
        done = subprocess.run(
            [sys.executable, str(EXAMPLES / script), *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "Warning" not in done.stderr
        return done.stdout + done.stderr

    return run_example


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


def test_cli(run, tmp_path):
    config = EXAMPLES / "cli" / "config.yaml"
    shown = run("cli/train.py", "fit", "--config", str(config))
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
