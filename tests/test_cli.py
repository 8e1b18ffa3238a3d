import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from lightning_poison import cli
from lightning_poison.entry_points import Source
from lightning_poison.registry import registry
from lightning_poison.registry.loading import BrokenPlugin


def test_lists_attacks_with_distribution(capsys):
    assert cli.main(["attacks"]) == 0
    lines = capsys.readouterr().out.splitlines()
    flip = next(line for line in lines if line.startswith("label-flip"))
    assert "lightning-poison-labels 0.1.0" in flip
    assert any(line.startswith("poison-frog") and "lightning-poison-collisions" in line for line in lines)


@pytest.mark.parametrize("option", [["--scorers"], ["--scorers", "true"], ["--scorers=true"]])
def test_lists_scorers(capsys, option):
    assert cli.main(["attacks", *option]) == 0
    shown = capsys.readouterr().out
    assert "likelihood" in shown
    assert "label-flip" not in shown


@pytest.mark.parametrize("option", [["--scorers", "false"], ["--scorers=false"]])
def test_lists_attacks_without_scorers_option(capsys, option):
    assert cli.main(["attacks", *option]) == 0
    assert "label-flip" in capsys.readouterr().out


def test_describes_one_attack(capsys):
    assert cli.main(["attacks", "label-flip"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("label-flip, an attack of labels (lightning-poison-labels 0.1.0)\n")
    assert 'get_attack("label-flip", source_class=None, target_class=None' in shown
    assert "    source_class: " in shown
    assert cli.main(["attacks", "label-flop"]) == 2
    assert "Did you mean `label-flip`?" in capsys.readouterr().err


def test_without_command_shows_help_and_fails(capsys):
    assert cli.main([]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("usage: lightning-poison")
    assert "attacks" in shown.err


@pytest.mark.parametrize(("option", "shown"), [("--version", "lightning-poison 0.1.0\n"), ("--help", "usage:")])
def test_shows_version_and_help(capsys, option, shown):
    with pytest.raises(SystemExit) as stopped:
        cli.main([option])
    assert stopped.value.code in (0, None)
    assert capsys.readouterr().out.startswith(shown)


WITHOUT_TORCH = [
    [],
    ["--help"],
    ["--version"],
    ["demo", "--help"],
    ["scan", "--help"],
    ["scan"],
    ["nothing"],
    ["demo", "--x=1"],
]


@pytest.fixture(scope="module")
def loaded():
    """Whether torch or NumPy is loaded after each of these command lines, one after the other in a new process."""
    program = (
        "import json, sys\nfrom lightning_poison.cli import main\nloaded = []\n"
        f"for arguments in {WITHOUT_TORCH}:\n"
        "    try: main(arguments)\n    except SystemExit: pass\n"
        "    loaded.append('torch' in sys.modules or 'numpy' in sys.modules)\n"
        "print('', json.dumps(loaded), sep='\\n')"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.mark.parametrize("number", range(len(WITHOUT_TORCH)), ids=lambda number: " ".join(WITHOUT_TORCH[number]))
def test_help_version_and_usage_errors_do_not_import_torch(loaded, number):
    assert not loaded[number]


def test_user_error_is_a_message_without_traceback(capsys, tmp_path):
    assert cli.main(["demo", "--data", "mnist", "--data-root", str(tmp_path)]) == 2
    shown = capsys.readouterr().err
    assert "MNIST/raw" in shown
    assert "Traceback" not in shown
    assert not list(tmp_path.iterdir())


def test_lists_broken_plugin_with_fix(capsys, monkeypatch):
    error = ImportError("no module \x1b[2J" + "x" * 300)
    broken = BrokenPlugin(Source("aaa", "fake-broken", "1.2"), "import", error)
    monkeypatch.setattr(registry, "load_plugins", lambda: SimpleNamespace(broken=[broken], attacks=[], scorers=[]))
    assert cli.main(["attacks"]) == 0
    shown = capsys.readouterr().out
    assert "broken: Expected the plug-in aaa (fake-broken 1.2) to load" in shown
    assert "\nFix or uninstall the distribution, or disable it with LIGHTNING_POISON_DISABLED_PLUGINS=aaa.\n" in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_closed_pipe_is_silent(unbuffered):
    program = (
        "import sys\nfrom lightning_poison import cli\n"
        "def attacks():\n    print('an attack')\n"
        "cli._COMMANDS['attacks'] = attacks  # without torch\n"
        "sys.exit(cli.main(['attacks']))"
    )
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
        command = [sys.executable, "-c", program]
        ended = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, text=True, check=False, env=environment)
    assert (ended.returncode, ended.stderr) == (1, "")


def test_error_message_keeps_lines_and_escapes_control_characters(capsys, monkeypatch):
    def fail():
        raise ValueError("Expected this, but got \x1b[2J.\nDo that.")

    monkeypatch.setitem(cli._COMMANDS, "attacks", fail)
    assert cli.main(["attacks"]) == 2
    assert capsys.readouterr().err == "lightning-poison: Expected this, but got \\x1b[2J.\nDo that.\n"


@pytest.mark.parametrize(
    ("arguments", "unknown", "meant"),
    [
        (["demo", "--date", "digits"], "--date", "Did you mean data? `lightning-poison demo --help` lists"),
        (["scan", "x", "--imagesize=3"], "--imagesize", "Did you mean image-size? `lightning-poison scan --help`"),
        (["scann", "x"], "'scann'", "Did you mean scan? `lightning-poison --help` lists"),
        (["scan", "x", "--seed"], "seed", "`lightning-poison scan --help` lists"),
    ],
)
def test_misspelled_options_are_named_with_the_nearest(capsys, arguments, unknown, meant):
    assert cli.main(arguments) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("lightning-poison: ")
    assert unknown in shown
    assert meant in shown


@pytest.mark.parametrize("options", [[], ["--copy-to", "a", "--list-to", "b"]])
def test_apply_needs_one_place_to_write_to(capsys, options):
    assert cli.main(["apply", "manifest.csv", *options]) == 2
    assert "one of `--copy-to FOLDER` and `--list-to FILE`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "runs", "source"),
    [
        (["a"], ["a"], None),
        (["a b", 'c"', "--source", "d"], ["a b", 'c"'], "d"),
        (["--source=d", "a"], ["a"], "d"),
        (["--source", "d", "a", "b"], ["a", "b"], "d"),
    ],
)
def test_report_takes_several_runs(monkeypatch, arguments, runs, source):
    calls = []
    monkeypatch.setattr(
        "lightning_poison.shell.report.write_reports", lambda runs, **options: calls.append((runs, options))
    )
    assert cli.main(["report", *arguments]) == 0
    ((found, options),) = calls
    assert [str(run) for run in found] == runs
    assert options["source"] == source


@pytest.mark.slow
def test_command_is_installed():
    run = subprocess.run([sys.executable, "-m", "lightning_poison", "--help"], capture_output=True, text=True)
    assert run.returncode == 0
    assert "demo" in run.stdout


def test_no_attacks_installed(capsys, monkeypatch):
    monkeypatch.setattr(registry, "available_attacks", tuple)
    assert cli.main(["attacks"]) == 0
    assert (
        "No attacks are installed. Install the bundled ones from a clone: pip install ./plugins/*/"
        in capsys.readouterr().out
    )
