"""What is said about one attack or scorer."""

from types import SimpleNamespace

import pytest

from lightning_poison.entry_points import Source
from lightning_poison.errors import UnknownNameError
from lightning_poison.registry import registry
from lightning_poison.registry.loading import Entry
from lightning_poison.shell.plugin_details import plugin_details


class Documented:
    """Shifts labels.\x1b[2J

    Args:
        by: Number of classes.

    Raises:
        ValueError: If it is out of range.
    """

    def __init__(self, by, *, table=tuple(range(100)), kind=SimpleNamespace, name="a"):
        pass


def details_of(factory, monkeypatch):
    source = Source("own", "lightning-poison-own", "0.1.0")
    monkeypatch.setattr(registry, "available_attacks", lambda: (Entry("shift", source, "", factory),))
    return plugin_details("shift")


def test_settings_and_documentation(monkeypatch):
    assert details_of(Documented, monkeypatch) == [
        "shift, an attack of own (lightning-poison-own 0.1.0)",
        "",
        "    get_attack(\"shift\", by=..., table=..., kind=..., name='a')",
        "",
        r"Shifts labels.\x1b[2J",
        "",
        "Args:",
        "    by: Number of classes.",
    ]


def test_factory_without_signature_and_documentation(monkeypatch):
    class Bare(type):
        __signature__ = 3

    assert details_of(Bare("Bare", (), {}), monkeypatch)[2:] == [
        '    get_attack("shift")',
        "",
        "It has no documentation.",
    ]


def test_scorers_are_found_without_the_option():
    assert plugin_details("deep-knn")[0].startswith("deep-knn, a scorer of lightning-poison")
    assert plugin_details("deep-knn") == plugin_details("deep-knn", scorers=True)
    with pytest.raises(UnknownNameError, match="installed scorer"):
        plugin_details("label-flip", scorers=True)
