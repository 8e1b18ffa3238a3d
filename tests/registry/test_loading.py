"""Plug-ins as they lie on a disk: modules beside the metadata of their distributions."""

import os
import subprocess
import sys
import textwrap
from importlib.metadata import entry_points

import pytest

from lightning_poison.entry_points import DISABLE_AUTOLOAD, DISABLED, GROUP, HOST
from lightning_poison.registry.loading import OWN_SCORERS, load_all

FIRST_PARTY = ",".join(point.name for point in entry_points(group=GROUP))

GOOD = """
    from lightning_poison.registry.hookspecs import hookimpl

    class Thing:
        name, clean_label = "thing", False

        def craft(self, dataset, threat, *, surrogates, holdout, generator):
            raise NotImplementedError

    def make():
        '''Makes a thing.

        And more.
        '''
        return Thing()

    @hookimpl
    def lightning_poison_attacks():
        return {"thing": make}
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a distribution of one module and one entry point, as pip would lay it down."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(DISABLED, FIRST_PARTY)
    monkeypatch.delenv(DISABLE_AUTOLOAD, raising=False)
    before = set(sys.modules)

    def lay_down(name, source=GOOD, *, point=None, module=None, entry_points=None, version="1.2"):
        module = module or name.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(source))
        folder = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        line = f"[lightning_poison.plugins]\n{point or module} = {module}\n"
        (folder / "entry_points.txt").write_text(line if entry_points is None else entry_points)
        return folder

    yield lay_down
    for name in set(sys.modules) - before:
        if name.startswith("fake_"):
            del sys.modules[name]


def strangers(plugins):
    return [offer for offer in plugins.attacks + plugins.scorers if offer.source.distribution != HOST]


def test_a_plugin_is_found_with_its_source_and_summary(install):
    install("fake-good", point="good")
    offer = strangers(load_all())[0]
    assert (offer.name, str(offer.source), offer.summary) == ("thing", "good (fake-good 1.2)", "Makes a thing.")
    assert offer.factory().name == "thing"


def test_the_host_offers_its_scorers_through_the_same_door(install):
    assert {offer.name for offer in load_all().scorers if offer.source.plugin == HOST} == set(OWN_SCORERS)


BROKEN = {
    "import error": ("import no_such_module_at_all", "import", "no_such_module_at_all"),
    "syntax error": ("def (", "import", "SyntaxError"),
    "exits at import": ("raise SystemExit(3)", "import", "SystemExit"),
    "major version": (f"LIGHTNING_POISON_API = (2, 0)\n{textwrap.dedent(GOOD)}", "version", "(2, 0)"),
    "minor version": (f"LIGHTNING_POISON_API = (1, 99)\n{textwrap.dedent(GOOD)}", "version", "(1, 99)"),
    "version is no pair": (f"LIGHTNING_POISON_API = '1.0'\n{textwrap.dedent(GOOD)}", "version", "'1.0'"),
    "misspelled hook": (GOOD.replace("poison_attacks", "poison_atacks"), "register", "lightning_poison_atacks"),
    "unknown argument": (GOOD.replace("attacks()", "attacks(budget)"), "register", "budget"),
    "unmarked hook": (GOOD.replace("@hookimpl", ""), "register", "to be marked"),
    "no hook": ("x = 1", "register", "got none"),
    "wrapper": (
        GOOD.replace("@hookimpl", "@hookimpl(wrapper=True)").replace('return {"thing": make}', "return (yield)"),
        "register",
        "wrapper",
    ),
    "hook raises": (GOOD.replace('return {"thing": make}', "raise KeyError('gone')"), "hook", "gone"),
    "hook exits": (GOOD.replace('return {"thing": make}', "raise SystemExit"), "hook", "SystemExit"),
    "returns a list": (GOOD.replace('{"thing": make}', "[make]"), "hook", "list"),
    "returns nothing": (GOOD.replace('return {"thing": make}', "pass"), "hook", "None"),
    "name is no string": (GOOD.replace('{"thing": make}', "{3: make}"), "hook", "3"),
    "name with a colon": (GOOD.replace('{"thing": make}', "{'a:b': make}"), "hook", "a:b"),
    "name with an escape": (GOOD.replace('{"thing": make}', "{'a\\x1b[31m': make}"), "hook", "x1b"),
    "instance, not factory": (GOOD.replace('{"thing": make}', "{'thing': Thing()}"), "hook", "Thing"),
}


@pytest.mark.parametrize(("source", "phase", "said"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_plugin_is_recorded_and_breaks_no_other(install, source, phase, said):
    install("fake-broken", source, point="aaa")
    install("fake-good", point="good")
    plugins = load_all()
    assert [offer.source.plugin for offer in strangers(plugins)] == ["good"]
    (broken,) = plugins.broken
    assert (broken.source.distribution, broken.source.version, broken.phase) == ("fake-broken", "1.2", phase)
    assert said in str(broken)
    assert f"{DISABLED}=aaa" in str(broken)
    assert "\x1b" not in str(broken)


def test_a_plugin_whose_second_hook_fails_offers_nothing(install):
    half = GOOD + "\n    @hookimpl\n    def lightning_poison_scorers():\n        raise KeyError('late')\n"
    install("fake-half", half)
    plugins = load_all()
    assert not strangers(plugins)
    assert [each.phase for each in plugins.broken] == ["hook"]


def test_two_entry_points_of_one_name_are_both_named(install):
    install("fake-one", point="same")
    install("fake-two", point="same")
    plugins = load_all()
    assert not strangers(plugins)
    assert {each.phase for each in plugins.broken} == {"name"}
    assert "fake-one" in str(plugins.broken[0])
    assert "fake-two" in str(plugins.broken[0])


def test_one_of_two_can_be_left_out_by_its_distribution(install, monkeypatch):
    install("fake-one", point="same")
    install("fake-two", point="same")
    monkeypatch.setenv(DISABLED, f"{FIRST_PARTY}, Fake_Two")
    plugins = load_all()
    assert [offer.source.distribution for offer in strangers(plugins)] == ["fake-one"]
    assert not plugins.broken


def test_nobody_takes_the_name_of_the_host(install):
    install("fake-host", point=HOST)
    plugins = load_all()
    assert [each.phase for each in plugins.broken] == ["name"]
    assert {offer.name for offer in plugins.scorers} == set(OWN_SCORERS)


def test_one_object_under_two_names_is_broken_once(install):
    points = "[lightning_poison.plugins]\none = fake_twice\ntwo = fake_twice\n"
    install("fake-twice", entry_points=points)
    plugins = load_all()
    assert [offer.source.plugin for offer in strangers(plugins)] == ["one"]
    assert [(each.source.plugin, each.phase) for each in plugins.broken] == [("two", "register")]


def test_metadata_that_cannot_be_read_is_the_fault_of_its_distribution(install):
    install("fake-garbled", entry_points="[lightning_poison.plugins]\nno equals sign\n")
    install("fake-good")
    plugins = load_all()
    assert len(strangers(plugins)) == 1
    assert [(each.source.distribution, each.phase) for each in plugins.broken] == [("fake-garbled", "metadata")]


def test_an_unrelated_distribution_may_be_garbled(install):
    install("fake-unrelated", entry_points="[console_scripts]\nno equals sign\n")
    assert not load_all().broken


def test_the_remains_of_an_uninstalled_distribution_are_passed_over(install):
    (install("fake-remains") / "METADATA").unlink()
    plugins = load_all()
    assert not strangers(plugins)
    assert not plugins.broken


@pytest.mark.parametrize("name", ["good", "fake-good", "Fake_Good"])
def test_a_plugin_is_left_out_by_name_or_distribution(install, monkeypatch, name):
    install("fake-good", "raise RuntimeError", point="good")
    monkeypatch.setenv(DISABLED, f"{FIRST_PARTY},{name}")
    plugins = load_all()
    assert not strangers(plugins)
    assert not plugins.broken


def test_autoload_is_switched_off(install, monkeypatch):
    install("fake-good", "raise RuntimeError")
    monkeypatch.setenv(DISABLE_AUTOLOAD, "1")
    plugins = load_all()
    assert {offer.source.plugin for offer in plugins.attacks + plugins.scorers} == {HOST}
    assert not plugins.broken


def test_a_plugin_may_be_an_object_of_a_class(install):
    source = """
        from lightning_poison.registry.hookspecs import hookimpl

        class Plugin:
            @hookimpl
            def lightning_poison_scorers(self):
                return {"mine": dict}

        plugin = Plugin()
    """
    install("fake-object", source, entry_points="[lightning_poison.plugins]\nobj = fake_object:plugin\n")
    assert [offer.name for offer in strangers(load_all())] == ["mine"]


@pytest.mark.slow
def test_in_a_fresh_process_with_one_broken_plugin(install, tmp_path):
    install("fake-broken", "import no_such_module_at_all")
    install("fake-good")
    program = "from lightning_poison.registry.registry import get_attack; print(get_attack('thing').name)"
    paths = os.pathsep.join(path for path in (str(tmp_path), os.environ.get("PYTHONPATH", "")) if path)
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "thing\n"
    assert done.stderr.count("RuntimeWarning") == 1
    assert "fake-broken 1.2" in done.stderr
    assert "import" in done.stderr
