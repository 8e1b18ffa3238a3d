"""Argument checks with uniform error messages: expected, received, and how to fix it."""

import inspect
import os
import re
import sys
from collections.abc import Collection, Mapping
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:  # the command line formats messages without torch, whose import takes seconds
    from torch import Tensor

ObjectT = TypeVar("ObjectT")

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
"""Start of an address such as `s3://bucket`, of which `Path` leaves one slash. Drive letters are no addresses."""


def fraction(name: str, value: float, *, hint: str = "") -> float:
    """Return `value` as a float if it is strictly between 0 and 1.

    Example:
        >>> fraction("false_positive_rate", 0.01)
        0.01
        >>> fraction("false_positive_rate", 1, hint="For 1 % write `false_positive_rate=0.01`.")
        Traceback (most recent call last):
        ValueError: Expected `false_positive_rate` to be a number in (0, 1), but got 1.
        For 1 % write `false_positive_rate=0.01`.
    """
    if not _is_number(value) or not 0 < value < 1:
        raise ValueError(expected(name, "a number in (0, 1)", _quoted(value), hint))
    return float(value)


def share(name: str, value: float, *, hint: str = "") -> float:
    """Return `value` as a float if it is between 0 and 1, inclusive.

    Example:
        >>> share("natural_error_rate", 0)
        0.0
    """
    if not _is_number(value) or not 0 <= value <= 1:
        raise ValueError(expected(name, "a number in [0, 1]", _quoted(value), hint))
    return float(value)


def positive_share(name: str, value: float, *, hint: str = "") -> float:
    """Return `value` as a float if it is above 0 and at most 1.

    Example:
        >>> positive_share("max_removed", 0)
        Traceback (most recent call last):
        ValueError: Expected `max_removed` to be a number in (0, 1], but got 0.
    """
    if not _is_number(value) or not 0 < value <= 1:
        raise ValueError(expected(name, "a number in (0, 1]", _quoted(value), hint))
    return float(value)


def positive_int(name: str, value: int, *, minimum: int = 1, hint: str = "") -> int:
    """Return `value` as an int if it is an integer of at least `minimum` and below 2⁶³.

    Example:
        >>> positive_int("folds", 1, minimum=2)
        Traceback (most recent call last):
        ValueError: Expected `folds` to be an integer of at least 2, but got 1.
    """
    if not _is_number(value, Integral) or value < minimum:
        raise ValueError(expected(name, f"an integer of at least {minimum}", _quoted(value), hint))
    if value >= 2**63:
        raise ValueError(expected(name, "an integer below 2**63", f"{int(value):.3g}", hint))
    return int(value)


def boolean(name: str, value: Any, *, hint: str = "") -> bool:
    """Return `value` as a bool if it is `True` or `False`.

    Example:
        >>> boolean("remove_without_evidence", "no")
        Traceback (most recent call last):
        ValueError: Expected `remove_without_evidence` to be True or False, but got 'no'.
    """
    if isinstance(value, bool) or (type(value).__module__ == "numpy" and type(value).__name__ in ("bool", "bool_")):
        return bool(value)
    raise ValueError(expected(name, "True or False", _quoted(value), hint))


def positive(name: str, value: float, *, hint: str = "") -> float:
    """Return `value` as a float if it is a finite number above 0.

    Example:
        >>> positive("learning_rate", 0)
        Traceback (most recent call last):
        ValueError: Expected `learning_rate` to be a finite number above 0, but got 0.
        >>> positive("learning_rate", "1/10")
        Traceback (most recent call last):
        ValueError: Expected `learning_rate` to be a finite number above 0, but got '1/10'.
    """
    if not _is_number(value) or not 0 < value < float("inf"):
        raise ValueError(expected(name, "a finite number above 0", _quoted(value), hint))
    return float(value)


def not_negative(name: str, value: float, *, hint: str = "") -> float:
    """Return `value` as a float if it is a finite number of at least 0.

    Example:
        >>> not_negative("margin", 0)
        0.0
    """
    if not _is_number(value) or not 0 <= value < float("inf"):
        raise ValueError(expected(name, "a finite number of at least 0", _quoted(value), hint))
    return float(value)


def one_of(name: str, value: Any, choices: Collection[Any], *, hint: str = "") -> Any:
    """Return `value` if it is one of `choices`.

    Example:
        >>> one_of("norm", "l1", ("linf", "l2"))
        Traceback (most recent call last):
        ValueError: Expected `norm` to be one of 'linf', 'l2', but got l1.
    """
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(expected(name, f"one of {listed}", value, hint))
    return value


def epsilon(value: float, *, name: str = "epsilon") -> float:
    """Return a radius or step size in units of the raw [0, 1] image; reject one given in gray levels.

    Example:
        >>> epsilon(4)
        Traceback (most recent call last):
        ValueError: Expected `epsilon` to be in (0, 1], the range of the images, but got 4.
        For a budget of 4 gray levels write `epsilon=4 / 255`.
    """
    if not _is_number(value) or not 0 < value <= 1:
        levels = f"{float(value):g}" if _is_number(value) and value > 1 else "8"
        what = "budget" if name == "epsilon" else "step"
        hint = f"For a {what} of {levels} gray levels write `{name}={levels} / 255`."
        raise ValueError(expected(name, "in (0, 1], the range of the images", _quoted(value), hint))
    return float(value)


def index_vector(name: str, value: "Tensor") -> "Tensor":
    """Return `value` if it is a one-dimensional int64 tensor.

    Example:
        >>> import torch
        >>> index_vector("indices", torch.tensor([0.0, 2.0]))
        Traceback (most recent call last):
        ValueError: Expected `indices` to be a one-dimensional int64 tensor, but got a float32 tensor of shape (2,).
    """
    if not _is_tensor(value) or str(value.dtype) != "torch.int64" or value.ndim != 1:
        raise ValueError(expected(name, "a one-dimensional int64 tensor", describe(value)))
    return value


def every(name: str, values: "Tensor", valid: "Tensor", what: str, *, hint: str = "") -> "Tensor":
    """Return `values` if `valid`, a boolean mask of the same shape, is `True` everywhere.

    Example:
        >>> import torch
        >>> p_values = torch.tensor([0.5, 2.0])
        >>> every("p_values", p_values, p_values <= 1, "in (0, 1]")
        Traceback (most recent call last):
        ValueError: Expected `p_values` to be in (0, 1], but got 2.0 at position 1.
    """
    if not bool(valid.all()):
        place = tuple((~valid).nonzero()[0].tolist())
        position = "" if not place else f" at position {place[0] if len(place) == 1 else place}"
        raise ValueError(expected(name, what, f"{values[place].item()!r}{position}", hint))
    return values


def instance(name: str, value: Any, kind: type, *, hint: str = "") -> Any:
    """Return `value` if it is an instance of `kind`.

    Example:
        >>> import torch
        >>> instance("model", 3, torch.nn.Module, hint="Pass a network.")
        Traceback (most recent call last):
        TypeError: Expected `model` to be a `Module`, but got the int 3.
        Pass a network.
    """
    if not isinstance(value, kind):
        raise TypeError(expected(name, f"a `{kind.__name__}`", _describe_type(value), hint))
    return value


def with_method(name: str, value: Any, method: str, *, what: str = "", hint: str = "") -> Any:
    """Return `value` if it is an object, not a class, with a method of this name. `what` names such objects.

    Example:
        >>> with_method("adversary", 0.03, "perturb", hint="Write `adversary=FGSM(0.3)`.")
        Traceback (most recent call last):
        TypeError: Expected `adversary` to be an object with the method `perturb`, but got the float 0.03.
        Write `adversary=FGSM(0.3)`.
    """
    if isinstance(value, type) or not callable(getattr(value, method, None)):
        raise TypeError(expected(name, what or f"an object with the method `{method}`", _describe_type(value), hint))
    return value


def local_path(name: str, value: Any, *, hint: str = "") -> Any:
    """Return `value` if it is a path of the local file system, as `str` or `Path`.

    Example:
        >>> local_path("cache", "s3://bucket/work", hint="Copy the files after training.")
        Traceback (most recent call last):
        ValueError: Expected `cache` to be a folder of a local file system, but got 's3://bucket/work'.
        Copy the files after training.
    """
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str):
        raise TypeError(expected(name, "a path, as `str` or `Path`", describe(value), hint))
    try:
        is_usable = str(value) != "" and b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        is_usable = False
    shown = repr(printable(os.fspath(value)))
    if not is_usable:
        raise ValueError(expected(name, "a path of the file system", shown, hint))
    if _URL.match(os.fspath(value)):
        raise ValueError(expected(name, "a folder of a local file system", shown, hint))
    return value


def describe(value: Any) -> str:
    """Describe a value by type and shape, with its content only if it is a number, a string or `None`.

    Example:
        >>> import torch
        >>> describe(torch.zeros(2, 3)), describe([1, 2]), describe("cat")
        ('a float32 tensor of shape (2, 3)', 'list', "'cat'")
    """
    if _is_tensor(value):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    if type(value).__module__ == "numpy" and type(value).__name__ == "ndarray":
        return f"a {value.dtype} array of shape {value.shape}"
    return type(value).__name__ if not isinstance(value, int | float | str | None) else repr(value)[:80]


def expected(name: str, what: str, value: Any, hint: str = "") -> str:
    """Format an error message: what was expected, what was received, and how to fix it.

    Example:
        >>> print(expected("budget", "at least 1", 0, "For a share of the data set use `Threat.of_fraction`."))
        Expected `budget` to be at least 1, but got 0.
        For a share of the data set use `Threat.of_fraction`.
    """
    received = value if isinstance(value, str) else repr(value)[:200]
    return f"Expected `{name}` to be {what}, but got {received}." + (f"\n{hint}" if hint else "")


def printable(text: object, *, limit: int = 200) -> str:
    r"""Escape control characters in untrusted text and limit its length, for terminals and logs.

    Example:
        >>> print(printable("cat" + chr(27) + "[2J"))
        cat\x1b[2J
        >>> printable("a long name", limit=6)
        'a lon…'
    """
    cut = safe_text(text)[: limit + 1]
    shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in cut)
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def safe_text(value: object) -> str:
    """Return `str(value)` of an untrusted object, or a note if that fails.

    Example:
        >>> class Evil(Exception):
        ...     def __str__(self):
        ...         raise SystemExit
        >>> safe_text(Evil()), safe_text(3)
        ('<Evil whose text cannot be read>', '3')
    """
    try:
        return "".join([str(value)])  # an exact `str`, also where `__str__` returns a subclass
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 (the object is not ours, and may raise anything)
        return f"<{type_name(value)} whose text cannot be read>"


def type_name(value: object) -> str:
    """Return the name of an object's class, whatever its metaclass says.

    Example:
        >>> type_name(ValueError("odd"))
        'ValueError'
    """
    return str(type.__dict__["__name__"].__get__(type(value)))


def describe_error(error: BaseException, *, limit: int = 500) -> str:
    """Describe an error of untrusted code in one line: its class and its message, printable.

    Example:
        >>> describe_error(KeyError("gone")), describe_error(AssertionError())
        ("KeyError: 'gone'", 'AssertionError')
    """
    message = " ".join(safe_text(error)[: 4 * limit].split()).rstrip(".")
    return printable(f"{type_name(error)}: {message}" if message else type_name(error), limit=limit)


def plain_numbers(settings: Any) -> None:
    """Replace NumPy numbers among the fields of a frozen dataclass by Python numbers, which are JSON values.

    Example:
        >>> import dataclasses, numpy
        >>> @dataclasses.dataclass(frozen=True)
        ... class Settings:
        ...     epochs: int
        ...     def __post_init__(self):
        ...         plain_numbers(self)
        >>> Settings(numpy.int64(3))
        Settings(epochs=3)
    """
    for name, value in list(vars(settings).items()):
        if type(value).__module__ == "numpy" and not getattr(value, "shape", None):
            object.__setattr__(settings, name, value.item())


def is_integer(value: Any) -> bool:
    """Return whether a value is an integer, of Python or NumPy, and no truth value.

    Example:
        >>> is_integer(3), is_integer(True), is_integer(3.0)
        (True, False, False)
    """
    return _is_number(value, Integral)


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")  # without torch there are no tensors
    return torch is not None and isinstance(value, torch.Tensor)


def _is_number(value: Any, kind: type = Real) -> bool:
    """Whether a value is a number, of Python or NumPy, and no truth value."""
    return isinstance(value, kind) and not isinstance(value, bool)


def _quoted(value: Any) -> Any:
    return repr(value)[:200] if isinstance(value, str) else value


def _describe_type(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}"
    is_simple = isinstance(value, int | float | str)
    return f"the {type(value).__name__} {describe(value)}" if is_simple else describe(value)


def from_json(cls: type[ObjectT], value: Any, name: str) -> ObjectT:
    """Build an object from a JSON object with the arguments of its class, and no others.

    Args:
        cls: The class.
        value: The JSON object, possibly with tensors among its values.
        name: Name of the value, for errors.

    Raises:
        ValueError: If it is no JSON object, or an argument is missing or unknown.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Point:
        ...     x: int
        ...     y: int = 0
        >>> from_json(Point, {"x": 1}, "point")
        Point(x=1, y=0)
        >>> from_json(Point, {"z": 1}, "point")
        Traceback (most recent call last):
        ValueError: Expected `point` to be an object with the fields x, y, but got one without `x`.
    """
    if not isinstance(value, Mapping):
        raise ValueError(expected(name, "a JSON object", describe(value)))
    own = inspect.signature(cls).parameters
    missing = [each for each in own if own[each].default is inspect.Parameter.empty and each not in value]
    unknown = [each for each in value if each not in own]
    if missing or unknown:
        fault = f"one without `{missing[0]}`" if missing else f"one with `{printable(unknown[0], limit=80)}`"
        known = f"the fields {', '.join(own)}" if own else "no fields"
        raise ValueError(expected(name, f"an object with {known}", fault))
    return cls(**value)
