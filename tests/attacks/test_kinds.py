from typing import ClassVar

import pytest

from lightning_poison.attacks.kinds import KindRegistry


def named(kind, name="Thing", module="one"):
    return type(name, (), {"kind": kind, "__module__": module, "__qualname__": name})


def test_refuses_second_class_for_kind():
    registry = KindRegistry("thing")
    registry.register(named("a"))
    registry.register(named("a"))  # the same module, imported again
    for other in (named("a", name="Other"), named("a", module="two")):
        with pytest.raises(ValueError, match=r"Expected a new kind of thing, but `a` of[\s\S]*Give the class another"):
            registry.register(other)


def test_error_lists_known_kinds():
    class Thing:
        kind: ClassVar[str] = "known"

    registry = KindRegistry("thing")
    registry.register(Thing)
    with pytest.raises(ValueError, match=r"kind of thing \(known\), but got 'frog'[\s\S]*Import the plug-in"):
        registry.unpack({"kind": "frog"}, {})
    with pytest.raises(ValueError, match="but got 'None'"):
        registry.unpack({}, {})
