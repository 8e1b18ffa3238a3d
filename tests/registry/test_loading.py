"""Tests with plug-ins on disk: modules next to the metadata of their distributions."""

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
    """Install a distribution with one module and one entry point, as pip does."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(DISABLED, FIRST_PARTY)
    monkeypatch.delenv(DISABLE_AUTOLOAD, raising=False)
    before = set(sys.modules)

    def write(name, source=GOOD, *, point=None, module=None, entry_points=None, version="1.2"):
        module = module or name.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(source))
        folder = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        line = f"[lightning_poison.plugins]\n{point or module} = {module}\n"
        (folder / "entry_points.txt").write_text(line if entry_points is None else entry_points)
        return folder

    yield write
    for name in set(sys.modules) - before:
        if name.startswith("fake_"):
            del sys.modules[name]


def third_party(plugins):
    return [entry for entry in plugins.attacks + plugins.scorers if entry.source.distribution != HOST]


def test_finds_plugin_with_source_and_summary(install):
    install("fake-good", point="good")
    entry = third_party(load_all())[0]
    assert (entry.name, str(entry.source), entry.summary) == ("thing", "good (fake-good 1.2)", "Makes a thing.")
    assert entry.factory().name == "thing"


def test_own_scorers_are_loaded_by_their_names(install):
    own = [entry for entry in load_all().scorers if entry.source.plugin == HOST]
    assert [entry.name for entry in own] == [entry.factory.name for entry in own] == list(OWN_SCORERS)


BROKEN = {
    "import error": ("import no_such_module_at_all", "import", "no_such_module_at_all"),
    "syntax error": ("def (", "import", "SyntaxError"),
    "exits at import": ("raise SystemExit(3)", "import", "SystemExit"),
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


@pytest.mark.parametrize(("source", "phase", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_plugin_is_recorded_and_others_load(install, source, phase, message):
    install("fake-broken", source, point="aaa")
    install("fake-good", point="good")
    plugins = load_all()
    assert [entry.source.plugin for entry in third_party(plugins)] == ["good"]
    (broken,) = plugins.broken
    assert (broken.source.distribution, broken.source.version, broken.phase) == ("fake-broken", "1.2", phase)
    assert message in str(broken)
    assert f"{DISABLED}=aaa" in str(broken)
    assert "\x1b" not in str(broken)


def test_plugin_with_one_failing_hook_provides_nothing(install):
    half = GOOD + "\n    @hookimpl\n    def lightning_poison_scorers():\n        raise KeyError('late')\n"
    install("fake-half", half)
    plugins = load_all()
    assert not third_party(plugins)
    assert [each.phase for each in plugins.broken] == ["hook"]


def test_refuses_entry_points_of_same_name(install):
    install("fake-one", point="same")
    install("fake-two", point="same")
    plugins = load_all()
    assert not third_party(plugins)
    assert {each.phase for each in plugins.broken} == {"name"}
    assert "fake-one" in str(plugins.broken[0])
    assert "fake-two" in str(plugins.broken[0])


def test_disables_one_of_two_plugins_by_distribution(install, monkeypatch):
    install("fake-one", point="same")
    install("fake-two", point="same")
    monkeypatch.setenv(DISABLED, f"{FIRST_PARTY}, Fake_Two")
    plugins = load_all()
    assert [entry.source.distribution for entry in third_party(plugins)] == ["fake-one"]
    assert not plugins.broken


def test_refuses_plugin_with_own_name(install):
    install("fake-host", point=HOST)
    plugins = load_all()
    assert [each.phase for each in plugins.broken] == ["name"]
    assert {entry.name for entry in plugins.scorers} == set(OWN_SCORERS)


def test_object_under_two_names_is_loaded_once(install):
    points = "[lightning_poison.plugins]\none = fake_twice\ntwo = fake_twice\n"
    install("fake-twice", entry_points=points)
    plugins = load_all()
    assert [entry.source.plugin for entry in third_party(plugins)] == ["one"]
    assert [(each.source.plugin, each.phase) for each in plugins.broken] == [("two", "register")]


def test_unreadable_metadata_breaks_only_its_distribution(install):
    install("fake-garbled", entry_points="[lightning_poison.plugins]\nno equals sign\n")
    install("fake-good")
    plugins = load_all()
    assert len(third_party(plugins)) == 1
    assert [(each.source.distribution, each.phase) for each in plugins.broken] == [("fake-garbled", "metadata")]


def test_ignores_unreadable_metadata_of_unrelated_distribution(install):
    install("fake-unrelated", entry_points="[console_scripts]\nno equals sign\n")
    assert not load_all().broken


def test_ignores_remains_of_uninstalled_distribution(install):
    (install("fake-remains") / "METADATA").unlink()
    plugins = load_all()
    assert not third_party(plugins)
    assert not plugins.broken


@pytest.mark.parametrize("name", ["good", "fake-good", "Fake_Good"])
def test_disables_plugin_by_name_or_distribution(install, monkeypatch, name):
    install("fake-good", "raise RuntimeError", point="good")
    monkeypatch.setenv(DISABLED, f"{FIRST_PARTY},{name}")
    plugins = load_all()
    assert not third_party(plugins)
    assert not plugins.broken


def test_disables_autoload(install, monkeypatch):
    install("fake-good", "raise RuntimeError")
    monkeypatch.setenv(DISABLE_AUTOLOAD, "1")
    plugins = load_all()
    assert {entry.source.plugin for entry in plugins.attacks + plugins.scorers} == {HOST}
    assert not plugins.broken


def test_loads_plugin_object(install):
    source = """
        from lightning_poison.registry.hookspecs import hookimpl

        class Plugin:
            @hookimpl
            def lightning_poison_scorers(self):
                return {"mine": dict}

        plugin = Plugin()
    """
    install("fake-object", source, entry_points="[lightning_poison.plugins]\nobj = fake_object:plugin\n")
    assert [entry.name for entry in third_party(load_all())] == ["mine"]


@pytest.mark.slow
def test_new_process_with_broken_plugin(install, tmp_path):
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
