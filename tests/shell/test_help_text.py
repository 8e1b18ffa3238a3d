import pytest

from lightning_poison import cli


def help_of(capsys, *command):
    with pytest.raises(SystemExit):
        cli.main([*command, "--help"])
    return capsys.readouterr().out


@pytest.mark.parametrize("command", list(cli._COMMANDS))
def test_help_has_nothing_of_the_parser(capsys, command):
    shown = help_of(capsys, command)
    assert shown.startswith(f"usage: lightning-poison {command} [options]")
    for each in ("type:", "null)", "<class", "{true,false}", "required", "skip_default", "+ "):
        assert each not in shown
    options = [line.split()[0].rstrip(",") for line in shown.splitlines() if line.startswith("  -")]
    assert "-h" in options
    assert not [option for option in options if "_" in option]


def test_flags_have_no_value_and_defaults_are_said_once(capsys):
    shown = " ".join(help_of(capsys, "scan").split())
    assert "--json Print the summary" in shown
    assert "--seed SEED Seed of all randomness. Default: 0." in shown
    assert shown.count("Default: cache in the output folder.") == 1
    assert "Default: None" not in shown


@pytest.mark.parametrize(
    ("command", "taken"),
    [("scan", "SOURCE"), ("apply", "MANIFEST"), ("report", "RUN [RUN ...]"), ("cache", "[list|clear] [FOLDER]")],
)
def test_usage_names_what_a_command_takes(capsys, command, taken):
    assert help_of(capsys, command).splitlines()[0] == f"usage: lightning-poison {command} [options] {taken}"


@pytest.mark.parametrize(("command", "example"), [("scan", "photos/"), ("report", "lightning_poison_scan/")])
def test_missing_argument_is_named_with_an_example(capsys, command, example):
    assert cli.main([command]) == 2
    assert f"as in `lightning-poison {command} {example}`, but got none.\n" in capsys.readouterr().err
