import pytest
import torch

from lightning_poison import checks


@pytest.mark.parametrize("value", [0, 1, -0.5, 1.5, float("nan"), True, "0.5", None])
def test_fraction_refuses(value):
    with pytest.raises(ValueError, match=r"Expected `rate` to be a number in \(0, 1\), but got"):
        checks.fraction("rate", value)


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
    assert checks.describe({"secret": 1}) == "dict"


def test_hint_is_on_its_own_line():
    assert checks.expected("x", "y", 3, "Do z.") == "Expected `x` to be y, but got 3.\nDo z."


def test_printable_escapes_and_shortens():
    assert checks.printable("a\x1b[31m\nb") == "a\\x1b[31m\\nb"
    assert len(checks.printable("x" * 500)) == 200
