import warnings

import pytest

from lightning_poison.entry_points import Source
from lightning_poison.errors import PluginError, UnknownNameError
from lightning_poison.registry import registry
from lightning_poison.registry.loading import BrokenPlugin, Entry, Plugins
from lightning_poison.registry.registry import (
    available_attacks,
    available_scorers,
    get_attack,
    get_scorer,
    load_plugins,
)
from lightning_poison.scorers.protocol import SetScorer


class Frog:
    """Makes frogs."""

    name, clean_label = "frog", True

    def __init__(self, *, steps: int = 3):
        self.steps = steps

    def craft(self, dataset, threat, *, surrogates, holdout, generator):
        raise NotImplementedError


class Bright(SetScorer):
    name, is_control = "bright", False

    def score_features(self, features, labels):
        return features.sum(1)


POND, SWAMP = Source("pond", "dist-pond", "1.0"), Source("swamp", "dist-swamp", "2.0")
IMPORT_FAILED = BrokenPlugin(SWAMP, "import", ImportError("no reeds"))


@pytest.fixture
def installed(monkeypatch):
    """Replace the installed plug-ins."""
    loads = []

    def install(attacks=(), scorers=(), broken=()):
        def load_all():
            loads.append(1)
            return Plugins(tuple(attacks), tuple(scorers), tuple(broken))

        monkeypatch.setattr(registry, "load_all", load_all)
        registry._load_once.cache_clear()
        registry._reported.clear()
        return loads

    yield install
    registry._load_once.cache_clear()
    registry._reported.clear()


def entry(name="frog", source=POND, factory=Frog):
    return Entry(name, source, "", factory)


def test_attacks_are_sorted_by_name(installed):
    installed([entry("toad"), entry("frog", SWAMP), entry("frog", POND)])
    assert [(each.name, each.source.plugin) for each in available_attacks()] == [
        ("frog", "pond"),
        ("frog", "swamp"),
        ("toad", "pond"),
    ]


def test_settings_are_passed_to_factory(installed):
    installed([entry()])
    assert get_attack("frog", steps=7).steps == 7
    assert get_attack("pond:frog").steps == 3


def test_builds_scorer(installed):
    installed(scorers=[entry("bright", factory=Bright)])
    assert get_scorer("bright").name == "bright"
    assert [each.name for each in available_scorers()] == ["bright"]


def test_unknown_name_lists_names_and_closest(installed):
    installed([entry("frog"), entry("label-flip")])
    with pytest.raises(UnknownNameError, match=r"(?s)\(frog, label-flip\), but got 'labelflip'.*mean `label-flip`"):
        get_attack("labelflip")
    with pytest.raises(UnknownNameError, match="Install the distribution"):
        get_attack("zzz")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("frog", "mean `poison-frog`"),
        ("pond:Frog", "mean `poison-frog`"),
        ("shielding", "mean `class-shielding` or `class-shielding-generator`"),
        ("label", "mean `label-flip` or `clean-label`"),
        ("badnet", "mean `badnets`"),
        ("toadstool", "mean `toad`"),
        ("", "Install the distribution"),
    ],
)
def test_closest_names_contain_or_resemble_name(installed, name, message):
    shielding = ("class-shielding-generator", "class-shielding")
    installed([entry(each) for each in (*shielding, "poison-frog", "label-flip", "clean-label", "badnets", "toad")])
    with pytest.raises(UnknownNameError, match=message):
        get_attack(name)


def test_unknown_name_is_escaped(installed):
    installed()
    with pytest.raises(UnknownNameError) as caught:
        get_attack("\x1b[31m")
    assert "\x1b" not in str(caught.value)


def test_ambiguous_name_lists_plugins(installed):
    installed([entry(), entry(source=SWAMP)])
    with pytest.raises(PluginError, match=r"(?s)dist-pond 1\.0.*dist-swamp 2\.0.*`pond:frog` or `swamp:frog`"):
        get_attack("frog")
    assert get_attack("swamp:frog").name == "frog"


def test_wrong_setting_shows_signature(installed):
    installed([entry()])
    with pytest.raises(TypeError, match=r"(?s)stepz=3.*frog\(\*, steps: int = 3\)"):
        get_attack("frog", stepz=3)


def test_refuses_factory_with_wrong_result(installed):
    installed([entry(factory=dict)], [entry("bright", factory=dict)])
    with pytest.raises(PluginError, match=r"dict\.name"):
        get_attack("frog")
    with pytest.raises(PluginError, match=r"bright.*pond \(dist-pond 1\.0\).*dict"):
        get_scorer("bright")


def test_unknown_name_chains_error_of_broken_plugin(installed):
    installed([entry("label-flip")], broken=[IMPORT_FAILED])
    for name in ("frog", "flip", "swamp:label-flip"):
        with (
            pytest.warns(RuntimeWarning) if name == "frog" else warnings.catch_warnings(),
            pytest.raises(PluginError, match=r"dist-swamp 2\.0.*import failed") as caught,
        ):
            get_attack(name)
        assert caught.value.__cause__ is IMPORT_FAILED.error


def test_misspelled_name_is_reported_despite_broken_plugin(installed):
    installed([entry("label-flip")], broken=[IMPORT_FAILED])
    with pytest.warns(RuntimeWarning, match="swamp"), pytest.raises(UnknownNameError, match="label-flip"):
        get_attack("label-flop")


def test_broken_plugin_warns_once(installed):
    installed(broken=[IMPORT_FAILED])
    with pytest.warns(RuntimeWarning) as caught:
        available_attacks()
    available_scorers()
    load_plugins()
    (message,) = [str(each.message) for each in caught]
    for part in ("dist-swamp 2.0", "import", "no reeds", "LIGHTNING_POISON_DISABLED_PLUGINS=swamp"):
        assert part in message


def test_strict_raises_error_of_broken_plugin(installed):
    installed(broken=[IMPORT_FAILED])
    with pytest.raises(PluginError, match="swamp") as caught:
        load_plugins(strict=True)
    assert caught.value.__cause__ is IMPORT_FAILED.error


def test_plugins_are_loaded_once(installed):
    loads = installed([entry()])
    load_plugins()
    available_attacks()
    assert len(loads) == 1
