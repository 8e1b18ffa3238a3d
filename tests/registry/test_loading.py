"""Tests with plug-ins on disk: modules next to the metadata of their distributions."""

import logging
import os
import signal
import subprocess
import sys
import textwrap
import warnings
from importlib.metadata import entry_points

import pytest
import torch

from lightning_poison import contexts
from lightning_poison.entry_points import DISABLE_AUTOLOAD, DISABLED, GROUP, HOST
from lightning_poison.registry import registry
from lightning_poison.registry.loading import BUNDLED_ATTACKS, OWN_SCORERS, load_all

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
    "BaseException at import": ("class E(BaseException): pass\nraise E('base')", "import", "E: base"),
    "interrupts at import": ("raise KeyboardInterrupt('mine')", "import", "KeyboardInterrupt: mine"),
    "generator exit at import": ("raise GeneratorExit", "import", "GeneratorExit"),
    "stop iteration at import": ("raise StopIteration", "import", "StopIteration"),
    "BaseException in hook": (GOOD.replace('return {"thing": make}', "raise BaseException('base')"), "hook", "base"),
    "interrupts in hook": (GOOD.replace('return {"thing": make}', "raise KeyboardInterrupt"), "hook", "Interrupt"),
    "recursion at import": ("def f(): f()\nf()", "import", "RecursionError"),
    "recursion in hook": (GOOD.replace('return {"thing": make}', "return lightning_poison_attacks()"), "hook", "Recu"),
    "error without text": (
        "class E(Exception):\n    def __str__(self): raise ValueError\nraise E",
        "import",
        "E: <E whose text cannot be read>",
    ),
    "error whose text exits": (
        "class E(Exception):\n    def __str__(self): raise SystemExit\nraise E",
        "import",
        "E: <E whose text cannot be read>",
    ),
    "error whose text interrupts": (
        "class E(Exception):\n    def __str__(self): raise KeyboardInterrupt\nraise E",
        "import",
        "failed with E.",
    ),
    "error whose class has no name": (
        "class M(type):\n    __name__ = property(lambda cls: 1 / 0)\n"
        "class E(Exception, metaclass=M): pass\nraise E('odd')",
        "import",
        "E: odd",
    ),
    "error with control characters": ("raise ValueError('\\x1b[2J')", "import", r"\x1b[2J"),
    "long error": ("raise ValueError('x' * 10**6)", "import", "x…"),
    "summary raises": (
        GOOD.replace(
            "def make():",
            "class F:\n        @property\n        def __doc__(self): raise ValueError('doc')\n"
            "        def __call__(self): pass\n    def unused():",
        ).replace('"thing": make', '"thing": F()'),
        "hook",
        "ValueError: doc",
    ),
    "attributes raise": (
        "import sys\nclass M:\n    def __getattr__(self, name): raise ValueError('no ' + name)\n"
        "sys.modules[__name__] = M()",
        "register",
        "ValueError: no ",
    ),
    "mapping raises": (
        GOOD.replace('{"thing": make}', "E()").replace(
            "class Thing:", "class E(dict):\n        def items(self): raise ValueError('items')\n    class Thing:"
        ),
        "hook",
        "ValueError: items",
    ),
    "class raises": (
        GOOD.replace('{"thing": make}', "E()").replace(
            "class Thing:",
            "class E:\n        @property\n        def __class__(self): raise ValueError('class')\n    class Thing:",
        ),
        "hook",
        "ValueError: class",
    ),
    "name raises": (
        GOOD.replace('"thing": make', 'N("thing"): make').replace(
            "class Thing:", "class N(str):\n        def isprintable(self): raise ValueError('name')\n    class Thing:"
        ),
        "hook",
        "got 'thing'",
    ),
    "empty name": (GOOD.replace('{"thing": make}', "{'': make}"), "hook", "''"),
    "long name": (GOOD.replace('{"thing": make}', "{'x' * 10**6: make}"), "hook", "1 to 100 characters"),
    "calls the registry": (
        "from lightning_poison.registry import available_attacks\navailable_attacks()",
        "import",
        "a plug-in uses it while it is loaded",
    ),
    "calls the registry in hook": (
        GOOD.replace('return {"thing": make}', "from lightning_poison import get_attack; get_attack('thing')"),
        "hook",
        "a plug-in uses it while it is loaded",
    ),
}


@pytest.mark.parametrize(("source", "phase", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_plugin_is_recorded_and_others_load(install, source, phase, message):
    install("fake-broken", source, point="aaa")
    install("fake-good", point="good")
    registry._load_once.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match="aaa"):
            plugins = registry.load_plugins()
    finally:
        registry._load_once.cache_clear()
        registry._reported.clear()
    assert [entry.source.plugin for entry in third_party(plugins)] == ["good"]
    (broken,) = plugins.broken
    assert (broken.source.distribution, broken.source.version, broken.phase) == ("fake-broken", "1.2", phase)
    assert message in str(broken)
    assert f"{DISABLED}=aaa" in str(broken)
    assert "\x1b" not in str(broken)
    assert len(str(broken)) < 1000
    assert repr(broken)


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


EQUAL = """
    import sys
    from lightning_poison.registry.hookspecs import hookimpl

    class Plugin:
        def __eq__(self, other):
            raise ValueError("equal")

        def __hash__(self):
            raise ValueError("hash")

        def __getattr__(self, name):
            if name == "lightning_poison_scorers":
                raise ValueError("attribute")
            raise AttributeError(name)

        @hookimpl
        def lightning_poison_attacks(self):
            return {"odd": dict}

    plugin = Plugin()
"""


def test_plugin_that_cannot_be_compared_does_not_break_the_next(install):
    install("fake-equal", EQUAL, entry_points="[lightning_poison.plugins]\naaa = fake_equal:plugin\n")
    install("fake-good", point="good")
    plugins = load_all()
    assert "good" in [entry.source.plugin for entry in third_party(plugins)]
    assert {each.source.plugin for each in plugins.broken} <= {"aaa"}


def test_what_a_plugin_changes_of_the_process_is_restored(install, monkeypatch):
    changes = """
        import logging, os, random, sys, warnings
        import torch
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)
        torch.manual_seed(3)
        random.seed(3)
        warnings.simplefilter("ignore")
        os.environ["EVIL"] = "1"
        os.chdir("/")
        logging.root.setLevel(1)
        sys.path.insert(0, "/evil")
        sys.stdout = None
    """
    hook = GOOD.replace("return {", "torch.set_num_threads(torch.get_num_threads() + 1); return {")
    install("fake-good", textwrap.dedent(changes) + textwrap.dedent(hook))

    def state():
        return (
            torch.is_grad_enabled(),
            torch.get_default_dtype(),
            torch.get_rng_state().tolist(),
            torch.get_num_threads(),
            list(warnings.filters),
            dict(os.environ),
            os.getcwd(),  # noqa: PTH109
            logging.root.level,
            list(sys.path),
            sys.stdout,
        )

    before = state()
    assert [entry.name for entry in third_party(load_all())] == ["thing"]
    assert state() == before


def test_printed_control_characters_are_escaped(install, capsys):
    prints = "import sys\nprint('a\\x1b[2Jb\\tc')\nsys.stderr.write('d\\x07e\\n')\n"
    install("fake-good", prints + textwrap.dedent(GOOD))
    load_all()
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("a\\x1b[2Jb\tc\n", "d\\x07e\n")


def test_plugin_that_hangs_is_named(install, monkeypatch, caplog):
    install("fake-slow", "import time\ntime.sleep(0.3)\n" + textwrap.dedent(GOOD), point="slow")
    original = contexts.warned_when_slow
    monkeypatch.setattr("lightning_poison.registry.loading.warned_when_slow", lambda what: original(what, seconds=0.05))
    load_all()
    assert "Loading the plug-in slow (fake-slow 1.2) has taken 0.05 s and is not finished." in caplog.text


def test_interrupt_of_the_user_ends_loading(install):
    install("fake-slow", "import signal\nsignal.raise_signal(signal.SIGINT)\n")
    with pytest.raises(KeyboardInterrupt):
        load_all()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_registry_is_usable_after_an_interrupt(install):
    install("fake-slow", "import signal\nsignal.raise_signal(signal.SIGINT)\n")
    registry._load_once.cache_clear()
    try:
        with pytest.raises(KeyboardInterrupt):
            registry.load_plugins()
        with pytest.raises(KeyboardInterrupt):
            registry.load_plugins()
    finally:
        registry._load_once.cache_clear()


def test_bundled_attacks_are_those_of_the_repository(monkeypatch):
    monkeypatch.delenv(DISABLED, raising=False)
    monkeypatch.delenv(DISABLE_AUTOLOAD, raising=False)
    found = {entry.name: entry.source.distribution for entry in load_all().attacks}
    assert {name: each for name, each in found.items() if each in set(BUNDLED_ATTACKS.values())} == BUNDLED_ATTACKS


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
