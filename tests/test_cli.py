import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from lightning_poison import cli
from lightning_poison.entry_points import Source
from lightning_poison.registry.loading import BrokenPlugin


def test_attacks_are_listed_with_their_distribution(capsys):
    assert cli.main(["attacks"]) == 0
    lines = capsys.readouterr().out.splitlines()
    flip = next(line for line in lines if line.startswith("label-flip"))
    assert "lightning-poison-labels 0.1.0" in flip
    assert any(line.startswith("poison-frog") and "lightning-poison-collisions" in line for line in lines)


@pytest.mark.parametrize("option", [["--scorers"], ["--scorers", "true"], ["--scorers=true"]])
def test_scorers_are_listed(capsys, option):
    assert cli.main(["attacks", *option]) == 0
    shown = capsys.readouterr().out
    assert "likelihood" in shown
    assert "label-flip" not in shown


@pytest.mark.parametrize("option", [["--scorers", "false"], ["--scorers=false"]])
def test_scorers_are_not_listed(capsys, option):
    assert cli.main(["attacks", *option]) == 0
    assert "label-flip" in capsys.readouterr().out


def test_what_a_user_can_mend_is_a_message_and_not_a_traceback(capsys, tmp_path):
    assert cli.main(["demo", "--data", "mnist", "--data-root", str(tmp_path)]) == 2
    shown = capsys.readouterr().err
    assert "MNIST/raw" in shown
    assert "Traceback" not in shown
    assert not list(tmp_path.iterdir())


def test_a_broken_plugin_is_shown_with_its_way_out(capsys, monkeypatch):
    error = ImportError("no module \x1b[2J" + "x" * 300)
    broken = BrokenPlugin(Source("aaa", "fake-broken", "1.2"), "import", error)
    monkeypatch.setattr(cli, "load_plugins", lambda: SimpleNamespace(broken=[broken]))
    assert cli.main(["attacks"]) == 0
    shown = capsys.readouterr().out
    assert "broken: Expected the plug-in aaa (fake-broken 1.2) to load" in shown
    assert (
        "\nRepair or uninstall the distribution, or leave it out with LIGHTNING_POISON_DISABLED_PLUGINS=aaa.\n" in shown
    )
    assert "\x1b" not in shown


@pytest.mark.slow
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_stops_is_no_error_to_speak_of(unbuffered):
    program = "import sys; from lightning_poison.cli import main; sys.exit(main(['attacks']))"
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
        command = [sys.executable, "-c", program]
        ended = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, text=True, check=False, env=environment)
    assert (ended.returncode, ended.stderr) == (1, "")


def test_a_message_keeps_its_lines_and_no_control_characters(capsys, monkeypatch):
    def fail():
        raise ValueError("Expected this, but got \x1b[2J.\nDo that.")

    monkeypatch.setitem(cli._COMMANDS, "attacks", fail)
    assert cli.main(["attacks"]) == 2
    assert capsys.readouterr().err == "lightning-poison: Expected this, but got \\x1b[2J.\nDo that.\n"


def test_a_misspelled_option_is_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["demo", "--date", "digits"])
    assert stopped.value.code == 2
    assert "date" in capsys.readouterr().err


def test_the_command_is_installed():
    run = subprocess.run([sys.executable, "-m", "lightning_poison", "--help"], capture_output=True, text=True)
    assert run.returncode == 0
    assert "demo" in run.stdout
