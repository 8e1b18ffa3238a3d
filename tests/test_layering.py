"""Imports point down only, between the layers that the table below names."""

import ast
import graphlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_poison

ROOT = Path(lightning_poison.__file__).parent
PACKAGE = "lightning_poison"

LAYERS = {
    "ground": "errors checks scopes seeds installed",
    "nouns": (
        "pixels threat adversaries samples labels raw triggers saving evaluation_sets success objectives poison "
        "verdict evidence runtime functional"
    ),
    "parts": (
        "scorers heads fitting features frozen_features raw_images raw_features backbones reading holding scoring "
        "datasets fingerprint calibration self_calibration metrics adversarial intake removal_metrics manifest "
        "_manifest hookspecs door _door"
    ),
    "flow": (
        "sanitizing judging group_judging member_scores set_scores crossfit evaluate report registry testing _plugins"
    ),
    "host": "callbacks datamodules mixins strategies training _lightning",
    "shell": "cli demo demo_data __main__",
}
"""From the ground up: a module may import from its own layer and from those above it in this table."""

LAYER_OF = {name: layer for layer, names in LAYERS.items() for name in names.split()}
HEIGHT = {layer: height for height, layer in enumerate(LAYERS)}
HOSTS = ("lightning", "pytorch_lightning", "lightning_fabric")


def dotted(path, root=ROOT, package=PACKAGE):
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join((package, *(parts[:-1] if parts[-1] == "__init__" else parts)))


MODULES = {dotted(path): path for path in sorted(ROOT.rglob("*.py"))}


def imports_of(source, module, modules, *, is_package=False):
    """Return the modules of ours that a source imports, and the names it takes from a package's `__init__`."""
    package = module if is_package else module.rpartition(".")[0]
    found, from_init = set(), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            relative = "." * node.level + (node.module or "")
            base = importlib.util.resolve_name(relative, package) if node.level else relative
            for name in (alias.name for alias in node.names):
                inner = f"{base}.{name}"
                found.add(inner if inner in modules else base)
                if modules.get(base) is not None and modules[base].name == "__init__.py" and inner not in modules:
                    from_init.add(inner)
    return found, from_init


def layer_of(module):
    return LAYER_OF.get(module.split(".")[1])


def height(module):
    """A module without a layer stands nowhere; one test says so, the others pass it over."""
    return HEIGHT.get(layer_of(module), -1)


IMPORTS = {
    module: imports_of(path.read_text(encoding="utf-8"), module, MODULES, is_package=path.name == "__init__.py")
    for module, path in MODULES.items()
    if module != PACKAGE
}


def upward(imports, modules):
    """Return the pairs (importing, imported) that point to a higher layer."""
    return [
        (module, imported)
        for module, (found, _) in imports.items()
        for imported in found & set(modules)
        if imported != PACKAGE and -1 < height(module) < height(imported)
    ]


def test_every_module_has_a_layer():
    assert [module for module in IMPORTS if layer_of(module) is None] == []


def test_imports_point_down():
    assert upward(IMPORTS, MODULES) == []


def test_there_is_no_cycle():
    graph = {module: found & set(MODULES) - {PACKAGE, module} for module, (found, _) in IMPORTS.items()}
    graphlib.TopologicalSorter(graph).prepare()


def test_nothing_is_imported_from_our_own_init():
    taken = {module: sorted(names) for module, (_, names) in IMPORTS.items() if names}
    plain = [module for module, (found, _) in IMPORTS.items() if PACKAGE in found]
    assert (taken, plain) == ({}, [])


def test_only_the_host_layer_imports_lightning():
    guilty = {
        module: name
        for module, (found, _) in IMPORTS.items()
        for name in found
        if name.split(".")[0] in HOSTS and layer_of(module) != "host"
    }
    assert guilty == {}


def test_nothing_of_ours_imports_a_plugin():
    guilty = [
        (module, name) for module, (found, _) in IMPORTS.items() for name in found if name.startswith(f"{PACKAGE}_")
    ]
    assert guilty == []


@pytest.mark.parametrize(
    ("source", "found", "from_init"),
    [
        ("from lightning_poison.errors import X", {"lightning_poison.errors"}, set()),
        ("from lightning_poison import errors", {"lightning_poison.errors"}, set()),
        ("from lightning_poison import Poison", {"lightning_poison"}, {"lightning_poison.Poison"}),
        ("from .errors import X", {"lightning_poison.errors"}, set()),
        ("def f():\n    import lightning_poison.door", {"lightning_poison.door"}, set()),
        ("import lightning.pytorch as L", {"lightning.pytorch"}, set()),
    ],
)
def test_the_reader_of_imports(source, found, from_init):
    assert imports_of(source, "lightning_poison.pixels", MODULES) == (found, from_init)


def test_an_upward_import_would_show():
    imports = {"lightning_poison.pixels": ({"lightning_poison.door"}, set())}
    assert upward(imports, MODULES) == [("lightning_poison.pixels", "lightning_poison.door")]


def run(program):
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_importing_the_package_loads_seeds_and_patches_nothing():
    program = """
import random, sys, numpy, torch
def state():
    return random.getstate(), repr(numpy.random.get_state()), torch.get_rng_state().tolist(), torch.get_num_threads()
before = state()
import lightning_poison
assert state() == before
loaded = [name for name in sys.modules if name.startswith(("lightning.", "pytorch_lightning", "lightning_poison_"))]
print(loaded)
"""
    assert run(program) == "[]\n"


@pytest.mark.slow
def test_below_the_host_layer_nothing_loads_lightning_or_a_plugin():
    below = [module for module in IMPORTS if -1 < height(module) < HEIGHT["host"]]
    program = f"""
import importlib, sys
for name in {below!r}:
    importlib.import_module(name)
print([name for name in sys.modules if name.split(".")[0] in {HOSTS!r} or name.startswith("lightning_poison_")])
"""
    assert run(program) == "[]\n"


@pytest.mark.slow
def test_a_plugin_loads_no_lightning():
    program = f"""
import sys
from lightning_poison.registry import available_attacks
assert {{offer.source.plugin for offer in available_attacks()}} >= {{"labels", "collisions"}}
print([name for name in sys.modules if name.split(".")[0] in {HOSTS!r}])
"""
    assert run(program) == "[]\n"
