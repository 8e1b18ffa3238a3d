import pytest

from lightning_poison import cli
from lightning_poison.shell.arguments import explained


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["scan", ".", "--image-size", "big"], "to be a number of pixels, as in `--image-size 32`, but got 'big'."),
        (["scan", ".", "--seed", "x"], "`--seed` to be an integer, as in `--seed 2`, but got 'x'."),
        (["scan", ".", "--false-positive-rate="], "as in `--false-positive-rate 0.01`, but got ''."),
        (["evaluate", "--executor", "foo"], "`--executor` to be `process` or `ray`, but got 'foo'."),
    ],
)
def test_wrong_value_is_one_line_with_an_example(capsys, arguments, line):
    assert cli.main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("lightning-poison: Expected `--")
    assert line in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("message", ["", "argument --seed: expected one argument", 'Parser key "config": no such file'])
def test_other_messages_are_left_alone(message):
    assert explained(message) is None
