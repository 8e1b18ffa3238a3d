import sys
import threading
import time
import warnings

import pytest
import torch

from lightning_poison.entry_points import Source
from lightning_poison.errors import PluginError, UnknownNameError
from lightning_poison.registry import registry
from lightning_poison.registry.loading import BrokenPlugin, Entry, Plugins
from lightning_poison.registry.registry import (
    adaptive_attacks,
    attack_factory,
    available_attacks,
    available_scorers,
    get_adaptive_attack,
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


EVIL = {
    "constructor": ({"__init__": lambda self: 1 / 0}, "the factory of the attack `frog` in pond .*ZeroDivisionError"),
    "exit": ({"__init__": lambda self: sys.exit(3)}, "the factory of the attack `frog` in pond .*SystemExit"),
    "name": ({"name": property(lambda self: 1 / 0)}, "the attack `frog` of pond .*ZeroDivisionError"),
    "class": ({"__class__": property(lambda self: 1 / 0)}, None),
    "craft": ({"craft": property(lambda self: 1 / 0)}, "the attack `frog` of pond .*ZeroDivisionError"),
    "signature": ({"__signature__": property(lambda self: 1 / 0)}, None),
    "repr": ({"__repr__": lambda self: 1 / 0, "name": None}, "the attack `frog` of pond .*to be a string"),
}


@pytest.mark.parametrize(("parts", "message"), EVIL.values(), ids=EVIL.keys())
def test_failure_of_factory_names_plugin(installed, parts, message):
    installed([entry(factory=type("Evil", (Frog,), {"__init__": object.__init__, **parts}))])
    if message is None:
        assert get_attack("frog").name == "frog"
        return
    with pytest.raises(PluginError, match=f"(?s){message}"):
        get_attack("frog")


def test_signature_that_cannot_be_shown(installed):
    class Default:
        def __repr__(self):
            raise ValueError("default")

    def make(*, steps=Default()):  # noqa: B008
        return Frog()

    installed([entry(factory=make)])
    with pytest.raises(TypeError, match=r"stepz=3: .*\nThe signature is frog<Signature whose text cannot be read>"):
        get_attack("frog", stepz=3)


def test_refused_setting_keeps_its_type_and_names_the_attack(installed):
    def make(*, steps):
        raise ValueError("Expected `steps` to be positive, but got -1.")

    installed([entry(factory=make)])
    with pytest.raises(ValueError, match=r"^In the factory of the attack `frog` in pond .*: Expected `steps` to"):
        get_attack("frog", steps=-1)


def test_factory_leaves_process_as_it_was(installed):
    def make():
        torch.set_grad_enabled(False)
        torch.manual_seed(3)
        return Frog()

    installed([entry(factory=make)])
    before = torch.get_rng_state()
    get_attack("frog")
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), before)


def test_unknown_bundled_attack_names_distribution_to_install(installed, monkeypatch):
    monkeypatch.setattr(registry, "plugin_distributions", list)
    installed([entry("toad")])
    with pytest.raises(
        UnknownNameError, match=r"\(toad\), but got 'label-flip'.\nInstall .*pip install lightning-p.*-labels$"
    ):
        get_attack("label-flip")
    with pytest.raises(UnknownNameError, match=r"Did you mean `label-flip`.*pip install lightning-poison-labels$"):
        get_attack("labelflip")
    with pytest.raises(UnknownNameError, match="Install the distribution that provides it"):
        get_scorer("label-flip")


def test_unknown_bundled_attack_that_is_disabled(installed):
    installed([entry("toad")])
    with pytest.raises(UnknownNameError, match="`lightning-poison-labels` is installed, but disabled: see LIGHT"):
        get_attack("label-flip")


def test_unrelated_broken_plugin_does_not_hide_what_to_install(installed, monkeypatch):
    monkeypatch.setattr(registry, "plugin_distributions", list)
    installed(broken=[IMPORT_FAILED])
    with pytest.warns(RuntimeWarning), pytest.raises(UnknownNameError, match="pip install lightning-poison-coll"):
        get_attack("poison-frog")


def test_registry_waits_for_another_thread_that_loads(installed, monkeypatch):
    loads = installed([entry()])
    original = registry.load_all

    def slowly():
        time.sleep(0.1)
        return original()

    monkeypatch.setattr(registry, "load_all", slowly)
    found = []
    threads = [threading.Thread(target=lambda: found.append(load_plugins())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert len(loads) == 1


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


class Evader(Frog):
    """Evades frogs' enemies."""

    adaptive_to, knows_scorer, needs_surrogates = ("bright",), True, False

    @classmethod
    def against(cls, scorer, clean, *, false_positive_rate, runtime, generator, **settings):
        if clean is None:
            raise OSError("no data")
        if clean == "odd":
            raise RuntimeError("boo")
        return cls(**settings)


def test_adaptive_attacks_are_found_by_scorer_and_built_for_it(installed):
    installed([Entry("frog", POND, "", Frog), Entry("evader", POND, "", Evader)])
    assert [entry.name for entry in adaptive_attacks("bright")] == ["evader"]
    assert adaptive_attacks("likelihood") == ()
    assert attack_factory("evader").needs_surrogates is False
    assert get_adaptive_attack("evader", Bright(), "data", steps=8).steps == 8
    with pytest.raises(OSError, match="no data"):
        get_adaptive_attack("evader", Bright(), None)
    with pytest.raises(PluginError, match="`against` of the attack `evader` in pond"):
        get_adaptive_attack("evader", Bright(), "odd")
    with pytest.raises(PluginError, match="does not set `knows_scorer`"):
        get_adaptive_attack("frog", Bright(), "data")


def test_misspelled_setting_is_named_with_the_nearest(installed):
    installed([Entry("frog", POND, "", Frog)])
    with pytest.raises(TypeError, match=r"Did you mean `steps`\?"):
        get_attack("frog", stepz=3)
