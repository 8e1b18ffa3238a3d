"""Distributions as they lie on a disk: a module beside the metadata."""

import sys
import textwrap

import pytest
import torch

from lightning_poison.attacks.triggers import PatchTrigger, triggers
from lightning_poison.entry_points import (
    DISABLE_AUTOLOAD,
    DISABLED,
    declaring_distributions,
    distribution_of,
    import_plugins,
    is_switched_off,
)

GHOST = """
    from lightning_poison.attacks.triggers import triggers

    @triggers.register
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
def lay_down(tmp_path, monkeypatch):
    """Install the distribution Fake-Ghosts with one module."""
    monkeypatch.syspath_prepend(tmp_path)
    for name in (DISABLED, DISABLE_AUTOLOAD):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(triggers, "_classes", dict(triggers._classes))
    distribution_of.cache_clear()

    def install(source=GHOST, entry_points="[lightning_poison.plugins]\nghosts = fake_ghosts\n"):
        (tmp_path / "fake_ghosts.py").write_text(textwrap.dedent(source))
        folder = tmp_path / "fake_ghosts-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: Fake-Ghosts\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text(entry_points)

    yield install
    sys.modules.pop("fake_ghosts", None)
    distribution_of.cache_clear()


def test_whose_a_module_is(lay_down):
    lay_down()
    assert distribution_of("fake_ghosts.deep.inside") == "Fake-Ghosts"
    assert distribution_of("fake_ghostship") is None
    assert distribution_of("torch.nn") is None
    assert distribution_of("lightning_poison.attacks.triggers") is None


def test_metadata_that_cannot_be_read_are_nobodys(lay_down):
    lay_down(entry_points="[lightning_poison.plugins\nghosts")
    assert "Fake-Ghosts" in [each.metadata["Name"] for each in declaring_distributions()]
    assert distribution_of("fake_ghosts") is None


def test_a_thing_of_a_plugin_is_packed_with_its_distribution_and_found_again(lay_down):
    lay_down()
    ghost = triggers.unpack(PACKED, {})
    assert ghost.restored == {"pale": True}
    assert triggers.pack(ghost) == (PACKED, {})


def test_the_name_is_compared_as_installers_do(lay_down):
    lay_down()
    assert triggers.unpack({**PACKED, "distribution": "fake_ghosts"}, {}).kind == "fake-ghost"


def test_only_modules_that_are_declared_as_plugins_are_imported(lay_down):
    lay_down(entry_points="[lightning_poison.plugins]\n[console_scripts]\nghosts = fake_ghosts:main\n")
    import_plugins("Fake-Ghosts")
    import_plugins("torch")
    assert "fake_ghosts" not in sys.modules


@pytest.mark.parametrize("switch", [(DISABLED, "ghosts"), (DISABLED, "x, fake.ghosts"), (DISABLE_AUTOLOAD, "1")])
def test_one_that_is_switched_off_is_named_and_not_imported(lay_down, monkeypatch, switch):
    lay_down()
    monkeypatch.setenv(*switch)
    assert is_switched_off("ghosts", "Fake-Ghosts")
    with pytest.raises(
        ValueError, match=r"'fake-ghost' of the distribution `Fake-Ghosts`.\nInstall.*look in LIGHTNING"
    ):
        triggers.unpack(PACKED, {})
    assert "fake_ghosts" not in sys.modules


def test_one_that_is_not_installed_is_named(lay_down):
    with pytest.raises(
        ValueError, match=r"trigger \(.*patch.*\), but got 'fake-ghost' of the distribution `Fake-Ghosts`"
    ):
        triggers.unpack(PACKED, {})
    with pytest.raises(ValueError, match=r"of the distribution `\\x1b\[31m`"):
        triggers.unpack({**PACKED, "distribution": "\x1b[31m"}, {})


@pytest.mark.parametrize("fault", ["raise ZeroDivisionError('boo')", "raise SystemExit('boo')"])
def test_one_that_does_not_import_is_named(lay_down, fault):
    lay_down(source=fault)
    with pytest.raises(ValueError, match=r"`Fake-Ghosts` to load, since it defines the trigger 'fake-ghost', .*: boo"):
        triggers.unpack(PACKED, {})


def test_the_hosts_own_are_packed_without(lay_down):
    packed, _ = triggers.pack(PatchTrigger(torch.zeros(1, 1, 1, dtype=torch.uint8)))
    assert "distribution" not in packed
