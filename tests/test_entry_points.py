"""Tests with distributions on disk: a module next to its metadata."""

import signal
import sys
import textwrap

import pytest
import torch

from lightning_poison.attacks.triggers import PatchTrigger, trigger_kinds
from lightning_poison.entry_points import (
    DISABLE_AUTOLOAD,
    DISABLED,
    call_plugin,
    distribution_of,
    import_plugins,
    is_disabled,
    plugin_distributions,
)
from lightning_poison.errors import NotFittedError, PluginError, RankFailedError

GHOST = """
    from lightning_poison.attacks.triggers import trigger_kinds

    @trigger_kinds.register
    class Ghost:
        kind = "fake-ghost"

        def __call__(self, image):
            return image

        def settings(self):
            return {"pale": True}

        def tensors(self):
            return {}

        @classmethod
        def from_saved(cls, settings, tensors):
            ghost = cls()
            ghost.restored = settings
            return ghost
"""
PACKED = {"kind": "fake-ghost", "distribution": "Fake-Ghosts", "pale": True}


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install the distribution Fake-Ghosts with one module."""
    monkeypatch.syspath_prepend(tmp_path)
    for name in (DISABLED, DISABLE_AUTOLOAD):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(trigger_kinds, "_classes", dict(trigger_kinds._classes))
    distribution_of.cache_clear()

    def write(source=GHOST, entry_points="[lightning_poison.plugins]\nghosts = fake_ghosts\n"):
        (tmp_path / "fake_ghosts.py").write_text(textwrap.dedent(source))
        folder = tmp_path / "fake_ghosts-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: Fake-Ghosts\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text(entry_points)

    yield write
    sys.modules.pop("fake_ghosts", None)
    distribution_of.cache_clear()


def test_distribution_of_module(install):
    install()
    assert distribution_of("fake_ghosts.deep.inside") == "Fake-Ghosts"
    assert distribution_of("fake_ghostship") is None
    assert distribution_of("torch.nn") is None
    assert distribution_of("lightning_poison.attacks.triggers") is None


def test_unreadable_metadata_matches_no_module(install):
    install(entry_points="[lightning_poison.plugins\nghosts")
    assert "Fake-Ghosts" in [each.metadata["Name"] for each in plugin_distributions()]
    assert distribution_of("fake_ghosts") is None


def test_object_of_plugin_is_packed_with_distribution_and_restored(install):
    install()
    ghost = trigger_kinds.unpack(PACKED, {})
    assert ghost.restored == {"pale": True}
    assert trigger_kinds.pack(ghost) == (PACKED, {})


def test_distribution_name_is_normalized(install):
    install()
    assert trigger_kinds.unpack({**PACKED, "distribution": "fake_ghosts"}, {}).kind == "fake-ghost"


def test_imports_only_declared_plugin_modules(install):
    install(entry_points="[lightning_poison.plugins]\n[console_scripts]\nghosts = fake_ghosts:main\n")
    import_plugins("Fake-Ghosts")
    import_plugins("torch")
    assert "fake_ghosts" not in sys.modules


@pytest.mark.parametrize("switch", [(DISABLED, "ghosts"), (DISABLED, "x, fake.ghosts"), (DISABLE_AUTOLOAD, "1")])
def test_disabled_plugin_is_not_imported(install, monkeypatch, switch):
    install()
    monkeypatch.setenv(*switch)
    assert is_disabled("ghosts", "Fake-Ghosts")
    with pytest.raises(
        ValueError, match=r"'fake-ghost' of the distribution `Fake-Ghosts`.\nInstall or update.*LIGHTNING"
    ):
        trigger_kinds.unpack(PACKED, {})
    assert "fake_ghosts" not in sys.modules


def test_error_names_missing_distribution(install):
    with pytest.raises(
        ValueError, match=r"trigger \(.*patch.*\), but got 'fake-ghost' of the distribution `Fake-Ghosts`"
    ):
        trigger_kinds.unpack(PACKED, {})
    with pytest.raises(ValueError, match=r"of the distribution `\\x1b\[31m`"):
        trigger_kinds.unpack({**PACKED, "distribution": "\x1b[31m"}, {})


@pytest.mark.parametrize(
    "fault",
    [
        "raise ZeroDivisionError('boo')",
        "raise SystemExit('boo')",
        "raise GeneratorExit('boo')",
        "raise KeyboardInterrupt('boo')",
    ],
)
def test_error_names_distribution_that_fails_to_import(install, fault):
    install(source=fault)
    with pytest.raises(ValueError, match=r"`Fake-Ghosts` to load, since it defines the trigger 'fake-ghost', .*: boo"):
        trigger_kinds.unpack(PACKED, {})


def test_own_objects_are_packed_without_distribution(install):
    packed, _ = trigger_kinds.pack(PatchTrigger(torch.zeros(1, 1, 1, dtype=torch.uint8)))
    assert "distribution" not in packed


def test_import_of_plugins_restores_process(install):
    install(source="import torch, os\ntorch.set_grad_enabled(False)\nos.environ['EVIL'] = '1'\n")
    import_plugins("Fake-Ghosts")
    assert torch.is_grad_enabled()


def test_damaged_metadata_of_a_distribution_is_reported(install, tmp_path, caplog):
    install()
    folder = tmp_path / "fake_broken-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_bytes(b"Name: \xff\xfe")
    (folder / "entry_points.txt").write_text("[lightning_poison.plugins]\nx = y\n")
    assert "Fake-Ghosts" in [each.metadata["Name"] for each in plugin_distributions()]
    assert "Skipped a distribution whose metadata cannot be read" in caplog.text


def raising(error):
    def call():
        raise error

    return call


class MuteError(Exception):
    def __str__(self):
        raise SystemExit


class InterruptingError(Exception):
    def __str__(self):
        raise KeyboardInterrupt


class OddValueError(ValueError):
    def __init__(self, one, two):
        super().__init__(one, two)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ZeroDivisionError("boo"), "ZeroDivisionError: boo"),
        (RecursionError("deep"), "RecursionError: deep"),
        (StopIteration(3), "StopIteration: 3"),
        (SystemExit(3), "SystemExit: 3"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (GeneratorExit(), "GeneratorExit"),
        (MuteError(), "MuteError: <MuteError whose text cannot be read>"),
        (InterruptingError(), "InterruptingError"),
        (RuntimeError("\x1b[2J\nnext"), r"RuntimeError: \\x1b\[2J next"),
    ],
)
def test_errors_of_plugin_name_it(error, message):
    with pytest.raises(PluginError, match=f"^Expected `craft` to succeed, but it raised {message}.\nCorrect") as caught:
        call_plugin(raising(error), "`craft`")
    assert caught.value.__cause__ is error


def test_errors_for_the_user_keep_their_type():
    for error in (ValueError("too many"), NotFittedError("too many")):
        with pytest.raises(type(error), match=r"^In `craft`: too many$") as caught:
            call_plugin(raising(error), "`craft`")
        assert caught.value is error
        with pytest.raises(type(error), match=r"^In `craft`: too many$"):
            call_plugin(raising(error), "`craft`")
    with pytest.raises(ValueError, match=r"^In `craft`: OddValueError: \('a', 'b'\)\.$"):
        call_plugin(raising(OddValueError("a", "b")), "`craft`")
    with pytest.raises(PluginError, match="ValueError"):
        call_plugin(raising(ValueError("too many")), "`craft`", passed=())
    with pytest.raises(PluginError, match=r"^as it is$"):
        call_plugin(raising(PluginError("as it is")), "`craft`")


def test_interrupt_of_the_user_passes():
    with pytest.raises(KeyboardInterrupt):
        call_plugin(lambda: signal.raise_signal(signal.SIGINT), "`craft`")


def test_exit_by_a_signal_handler_passes():
    def leave(number, frame):
        raise SystemExit(7)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        with pytest.raises(SystemExit, match="7"):
            call_plugin(lambda: signal.raise_signal(signal.SIGTERM), "`craft`")
    finally:
        signal.signal(signal.SIGTERM, before)


def test_exit_of_lightning_passes():
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    with pytest.raises(SIGTERMException):
        call_plugin(raising(SIGTERMException()), "`craft`")


def test_failure_of_another_rank_is_not_attributed_to_the_plugin():
    with pytest.raises(RankFailedError, match="rank 1 failed: OSError: full") as caught:
        call_plugin(raising(RankFailedError(1, "OSError: full")), "`fit`")
    assert "In `fit`" not in str(caught.value)
