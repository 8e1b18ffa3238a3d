import warnings

import pytest

from lightning_poison.entry_points import Source
from lightning_poison.errors import PluginError, UnknownNameError
from lightning_poison.registry import registry
from lightning_poison.registry.loading import BrokenPlugin, Offer, Plugins
from lightning_poison.registry.registry import (
    available_attacks,
    available_scorers,
    get_attack,
    get_scorer,
    load_plugins,
)


class Frog:
    """Makes frogs."""

    name, clean_label = "frog", True

    def __init__(self, *, steps: int = 3):
        self.steps = steps

    def craft(self, dataset, threat, *, surrogates, holdout, generator):
        raise NotImplementedError


class Bright:
    name, is_control = "bright", False

    def score_features(self, features, labels):
        return features.sum(1)


POND, SWAMP = Source("pond", "dist-pond", "1.0"), Source("swamp", "dist-swamp", "2.0")
IMPORT_FAILED = BrokenPlugin(SWAMP, "import", ImportError("no reeds"))


@pytest.fixture
def installed(monkeypatch):
    """Stand in for what is installed."""
    loads = []

    def put(attacks=(), scorers=(), broken=()):
        def load_all():
            loads.append(1)
            return Plugins(tuple(attacks), tuple(scorers), tuple(broken))

        monkeypatch.setattr(registry, "load_all", load_all)
        registry._loaded.cache_clear()
        registry._warned.clear()
        return loads

    yield put
    registry._loaded.cache_clear()
    registry._warned.clear()


def offer(name="frog", source=POND, factory=Frog):
    return Offer(name, source, "", factory)


def test_attacks_are_listed_by_name(installed):
    installed([offer("toad"), offer("frog", SWAMP), offer("frog", POND)])
    assert [(each.name, each.source.plugin) for each in available_attacks()] == [
        ("frog", "pond"),
        ("frog", "swamp"),
        ("toad", "pond"),
    ]


def test_settings_reach_the_factory(installed):
    installed([offer()])
    assert get_attack("frog", steps=7).steps == 7
    assert get_attack("pond:frog").steps == 3


def test_a_scorer_is_built(installed):
    installed(scorers=[offer("bright", factory=Bright)])
    assert get_scorer("bright").name == "bright"
    assert [each.name for each in available_scorers()] == ["bright"]


def test_an_unknown_name_answers_with_the_names_and_the_nearest(installed):
    installed([offer("frog"), offer("label-flip")])
    with pytest.raises(UnknownNameError, match=r"(?s)\(frog, label-flip\), but got 'labelflip'.*mean `label-flip`"):
        get_attack("labelflip")
    with pytest.raises(UnknownNameError, match="Install the distribution"):
        get_attack("zzz")


@pytest.mark.parametrize(
    ("name", "said"),
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
def test_the_nearest_names_hold_the_word_or_look_like_it(installed, name, said):
    shielding = ("class-shielding-generator", "class-shielding")
    installed([offer(each) for each in (*shielding, "poison-frog", "label-flip", "clean-label", "badnets", "toad")])
    with pytest.raises(UnknownNameError, match=said):
        get_attack(name)


def test_an_unknown_name_is_shown_without_control_characters(installed):
    installed()
    with pytest.raises(UnknownNameError) as caught:
        get_attack("\x1b[31m")
    assert "\x1b" not in str(caught.value)


def test_a_name_given_twice_names_both_plugins(installed):
    installed([offer(), offer(source=SWAMP)])
    with pytest.raises(PluginError, match=r"(?s)dist-pond 1\.0.*dist-swamp 2\.0.*`pond:frog` or `swamp:frog`"):
        get_attack("frog")
    assert get_attack("swamp:frog").name == "frog"


def test_a_wrong_setting_answers_with_the_signature(installed):
    installed([offer()])
    with pytest.raises(TypeError, match=r"(?s)stepz=3.*frog\(\*, steps: int = 3\)"):
        get_attack("frog", stepz=3)


def test_a_factory_that_returns_no_attack(installed):
    installed([offer(factory=dict)], [offer("bright", factory=dict)])
    with pytest.raises(PluginError, match=r"dict\.name"):
        get_attack("frog")
    with pytest.raises(PluginError, match=r"bright.*pond \(dist-pond 1\.0\).*dict"):
        get_scorer("bright")


def test_asking_for_what_a_broken_plugin_may_offer_chains_its_error(installed):
    installed([offer("label-flip")], broken=[IMPORT_FAILED])
    for name in ("frog", "flip", "swamp:label-flip"):
        with (
            pytest.warns(RuntimeWarning) if name == "frog" else warnings.catch_warnings(),
            pytest.raises(PluginError, match=r"dist-swamp 2\.0.*import failed") as caught,
        ):
            get_attack(name)
        assert caught.value.__cause__ is IMPORT_FAILED.error


def test_a_broken_plugin_does_not_hide_a_typing_error(installed):
    installed([offer("label-flip")], broken=[IMPORT_FAILED])
    with pytest.warns(RuntimeWarning, match="swamp"), pytest.raises(UnknownNameError, match="label-flip"):
        get_attack("label-flop")


def test_one_warning_names_distribution_phase_and_the_way_out(installed):
    installed(broken=[IMPORT_FAILED])
    with pytest.warns(RuntimeWarning) as caught:
        available_attacks()
    available_scorers()
    load_plugins()
    (message,) = [str(each.message) for each in caught]
    for part in ("dist-swamp 2.0", "import", "no reeds", "LIGHTNING_POISON_DISABLED_PLUGINS=swamp"):
        assert part in message


def test_strict_raises(installed):
    installed(broken=[IMPORT_FAILED])
    with pytest.raises(PluginError, match="swamp") as caught:
        load_plugins(strict=True)
    assert caught.value.__cause__ is IMPORT_FAILED.error


def test_plugins_are_loaded_once_and_afresh_when_asked(installed):
    loads = installed([offer()])
    load_plugins()
    available_attacks()
    assert len(loads) == 1
    load_plugins(afresh=True)
    assert len(loads) == 2
