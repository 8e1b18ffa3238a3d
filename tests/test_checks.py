import json
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_poison import checks
from lightning_poison.adversarial.adversaries import FGSM, PGD
from lightning_poison.attacks.threat import Threat
from lightning_poison.data.pixel_range import PixelRange
from lightning_poison.models.fitting import FitSettings


@pytest.mark.parametrize("value", [0, 1, -0.5, 1.5, float("nan"), True, "0.5", None])
def test_fraction_refuses(value):
    with pytest.raises(ValueError, match=r"Expected `rate` to be a number in \(0, 1\), but got"):
        checks.fraction("rate", value)


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16, Fraction])
def test_numbers_of_numpy_are_numbers(kind):
    for check in (checks.fraction, checks.share, checks.positive, checks.not_negative):
        assert check("x", kind(0.5)) == 0.5
        assert type(check("x", kind(0.5))) is float
    assert checks.epsilon(kind(0.5)) == 0.5


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.int8])
def test_integers_of_numpy_are_integers(kind):
    assert checks.positive_int("x", kind(3)) == 3
    assert type(checks.positive_int("x", kind(3))) is int
    assert checks.share("x", kind(1)) == 1.0


@pytest.mark.parametrize("check", ["fraction", "share", "positive_int", "positive", "not_negative"])
@pytest.mark.parametrize("value", [True, np.True_, np.array(0.5), torch.tensor(0.5), 1j, Decimal("0.5"), "0.5", None])
def test_refuses_other_values_than_numbers(check, value):
    with pytest.raises(ValueError, match=r"Expected `x` to be an? "):
        getattr(checks, check)("x", value)


@pytest.mark.parametrize("value", [2**63, 2**70, np.uint64(2**63)])
def test_refuses_integers_beyond_int64(value):
    with pytest.raises(ValueError, match=r"`seed` to be an integer below 2\*\*63, but got (9\.22e\+18|1\.18e\+21)\."):
        checks.positive_int("seed", value, minimum=0)
    assert checks.positive_int("seed", 2**63 - 1) == 2**63 - 1


@pytest.mark.parametrize("value", ["no", "True", 0, 1, None, np.int64(1), torch.tensor(True)])
def test_boolean_refuses(value):
    with pytest.raises(ValueError, match="Expected `flag` to be True or False, but got "):
        checks.boolean("flag", value, hint="Say so.")
    assert checks.boolean("flag", np.False_) is False
    assert checks.boolean("flag", True) is True


def test_share_includes_both_ends():
    assert (checks.share("s", 0), checks.share("s", 1)) == (0.0, 1.0)
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        checks.share("s", 1.01)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -1, True])
def test_refuses_infinite_numbers(value):
    with pytest.raises(ValueError, match="finite number above 0"):
        checks.positive("x", value)
    with pytest.raises(ValueError, match="finite number of at least 0"):
        checks.not_negative("x", value)
    assert checks.not_negative("x", 0) == 0.0


@pytest.mark.parametrize("check", ["fraction", "share", "positive_int", "positive", "not_negative"])
def test_quotes_text_that_looks_like_a_number(check):
    with pytest.raises(ValueError, match=r"Expected `x` to be .*, but got '8/255'\.$"):
        getattr(checks, check)("x", "8/255")
    with pytest.raises(ValueError, match=r"but got '8/255'\.\nFor a budget"):
        checks.epsilon("8/255")


def test_one_of_lists_the_choices():
    with pytest.raises(ValueError, match="one of 'a', 'b', but got c"):
        checks.one_of("x", "c", ("a", "b"))


@pytest.mark.parametrize("value", [torch.zeros(2), torch.zeros(2, 2, dtype=torch.int64), [0, 1]])
def test_index_vector_refuses(value):
    with pytest.raises(ValueError, match="one-dimensional int64 tensor"):
        checks.index_vector("i", value)


class Cat:
    def meow(self):
        return "meow"


@pytest.mark.parametrize(
    ("value", "received"),
    [
        (3, "the int 3"),
        ("cat", "the str 'cat'"),
        (Cat, "the class Cat"),
        ([Cat()], "list"),
        (torch.zeros(2), "a float"),
    ],
)
def test_error_describes_type_of_value(value, received):
    with pytest.raises(TypeError, match=rf"Expected `pet` to be a `Cat`, but got {received}.*\nAdopt one\.$"):
        checks.instance("pet", value, Cat, hint="Adopt one.")
    with pytest.raises(TypeError, match=rf"an object with the method `meow`, but got {received}.*\nAdopt one\.$"):
        checks.with_method("pet", value, "meow", hint="Adopt one.")


def test_returns_valid_value():
    cat = Cat()
    assert checks.instance("pet", cat, Cat) is cat
    assert checks.with_method("pet", cat, "meow") is cat


def test_describe_does_not_print_content():
    assert checks.describe(torch.zeros(2, 3)) == "a float32 tensor of shape (2, 3)"
    assert checks.describe(np.zeros((2, 3))) == "a float64 array of shape (2, 3)"
    assert checks.describe({"secret": 1}) == "dict"


def test_hint_is_on_its_own_line():
    assert checks.expected("x", "y", 3, "Do z.") == "Expected `x` to be y, but got 3.\nDo z."


def test_printable_escapes_and_shortens():
    assert checks.printable("a\x1b[31m\nb") == "a\\x1b[31m\\nb"
    assert len(checks.printable("x" * 500)) == 200


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        ("", ValueError, "a path of the file system, but got ''"),
        ("a\0b", ValueError, "a path of the file system"),
        ("s3://bucket/x", ValueError, "a folder of a local file system, but got 's3://bucket/x'"),
        (Path("gs://bucket/x"), ValueError, "a folder of a local file system"),
        (5, TypeError, "a path, as `str` or `Path`, but got 5"),
        (b"here", TypeError, "but got bytes"),
        (True, TypeError, "but got True"),
    ],
)
def test_local_path(value, kind, message):
    with pytest.raises(kind, match=f"`cache` to be {message}" if kind is ValueError else message):
        checks.local_path("cache", value)


@pytest.mark.parametrize("value", ["here", Path("here"), "C:/here", "a b/ä"])
def test_local_path_accepts_folders(value):
    assert checks.local_path("cache", value) is value


@pytest.mark.parametrize(
    "settings",
    [
        lambda: FitSettings(epochs=np.int64(3), learning_rate=np.float32(0.5), shift=np.int32(1)),
        lambda: PGD(np.float32(0.25), np.float64(0.125), steps=np.int64(2)),
        lambda: FGSM(np.float32(0.25)),
        lambda: Threat(budget=np.int64(3), epsilon=np.float32(0.5)),
        lambda: PixelRange(levels=np.int64(17)),
    ],
)
def test_numpy_numbers_are_stored_as_python_numbers(settings):
    found = vars(settings())
    assert not [name for name, value in found.items() if type(value).__module__ == "numpy"]
    json.dumps({name: value for name, value in found.items() if isinstance(value, int | float)})


@dataclass
class Point:
    x: int
    y: int = 0


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1], "`point` to be a JSON object, but got list"),
        ({}, "with the fields x, y, but got one without `x`"),
        ({"x": 1, "odd\x1b": 2}, r"but got one with `odd\\x1b`"),
    ],
)
def test_other_fields_are_refused(value, message):
    with pytest.raises(ValueError, match=message):
        checks.from_json(Point, value, "point")
