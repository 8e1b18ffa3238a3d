"""Imports point down only, between the packages of `docs/architecture.md`."""

import ast
import graphlib
import importlib
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_poison
from lightning_poison.registry.loading import OWN_SCORERS

PACKAGE = "lightning_poison"
ROOT = Path(lightning_poison.__file__).parent
REPOSITORY = Path(__file__).parents[1]

FLOORS = (
    "errors",
    "checks randomness",
    "contexts",
    "entry_points",
    "serialization runtime statistics",
    "data",
    "models",
    "attacks",
    "adversarial",
    "scorers",
    "registry testing",
    "sanitization",
    "manifest",
    "evaluation",
    "report",
    "_lightning",
    "callbacks datamodules mixins",
    "strategies",
    "shell",
    "cli",
    "__main__",
)
"""From the bottom up: a package imports only from lower levels and from itself."""

FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms.split()}
LIGHTNING = ("lightning", "pytorch_lightning", "lightning_fabric")
LIGHTNING_ROOMS = {"_lightning", "callbacks", "datamodules", "mixins", "strategies", "shell"}
STATISTICS_MAY_IMPORT = {"torch", "scipy", "sklearn", "threadpoolctl"}
"""Third-party packages. threadpoolctl is a dependency of scikit-learn that sets its number of threads."""


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join((PACKAGE, *(parts[:-1] if parts[-1] == "__init__" else parts)))


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}
FACES = {module: path for module, path in MODULES.items() if path.with_suffix(".pyi").exists()}


def room_of(module):
    return module.split(".")[1] if "." in module else ""


def imports_of(source, module, *, is_package=False):
    """Return the modules that a source imports, and those of our packages from whose `__init__` it takes names."""
    package = module if is_package else module.rpartition(".")[0]
    found, faces = set(), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            relative = "." * node.level + (node.module or "")
            base = importlib.util.resolve_name(relative, package) if node.level else relative
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found.add(inner if inner in MODULES else base)
                if base in FACES and inner not in MODULES:
                    faces.add(base)
    return found, faces


IMPORTS = {
    module: imports_of(path.read_text(encoding="utf-8"), module, is_package=path.name == "__init__.py")
    for module, path in MODULES.items()
}
GRAPH = {module: found & set(MODULES) - {module} for module, (found, _) in IMPORTS.items()}


def upward(graph):
    """Return the pairs (importing, imported) that do not point to a lower level or into the same package."""
    return [
        (module, imported)
        for module, found in graph.items()
        for imported in sorted(found)
        if room_of(module) != room_of(imported) and FLOOR_OF[room_of(module)] <= FLOOR_OF[room_of(imported)]
    ]


def rooms_below(graph):
    """Return the packages that each package imports from."""
    below = {room: set() for room in FLOOR_OF}
    for module, found in graph.items():
        if module != PACKAGE:
            below[room_of(module)] |= {room_of(imported) for imported in found} - {room_of(module), ""}
    return below


def longest_chain(below):
    """Return the packages of the longest chain of imports, from the top down."""
    chains = {}
    for room in graphlib.TopologicalSorter(below).static_order():
        chains[room] = [room, *max((chains[each] for each in below[room]), key=len, default=[])]
    return max(chains.values(), key=len)


def test_every_package_has_a_level():
    assert {room_of(module) for module in MODULES if module != PACKAGE} == set(FLOOR_OF)


def test_imports_point_down():
    assert upward(GRAPH) == []


def test_no_import_cycle():
    graphlib.TopologicalSorter(GRAPH).prepare()


def test_package_does_not_import_its_own_faces():
    assert {module: sorted(faces) for module, (_, faces) in IMPORTS.items() if faces} == {}


def test_only_lightning_packages_import_lightning():
    found = {
        (module, name)
        for module, (names, _) in IMPORTS.items()
        for name in names
        if name.split(".")[0] in LIGHTNING and room_of(module) not in LIGHTNING_ROOMS
    }
    assert found == set()


def test_statistics_imports_only_tensors_and_itself():
    allowed = STATISTICS_MAY_IMPORT | set(sys.stdlib_module_names)
    found = {
        (module, name)
        for module, (names, _) in IMPORTS.items()
        for name in names
        if room_of(module) == "statistics"
        and module not in FACES
        and name.split(".")[0] not in allowed
        and not name.startswith(f"{PACKAGE}.statistics")
    }
    assert found == set()


def test_judges_do_not_import_each_other():
    judges = {f"{PACKAGE}.sanitization.{name}" for name in ("with_trusted", "without_trusted", "by_groups")}
    assert {judge: GRAPH[judge] & judges for judge in judges} == {judge: set() for judge in judges}


def test_scorer_contract_imports_nothing_above_data():
    reached, waiting = set(), [f"{PACKAGE}.scorers.protocol"]
    while waiting:
        found = GRAPH[waiting.pop()] - reached
        reached |= found
        waiting += found
    assert {room_of(module) for module in reached if FLOOR_OF[room_of(module)] > FLOOR_OF["data"]} == set()


def test_registered_scorers_are_public():
    classes = {path.partition(":")[2] for path in OWN_SCORERS.values()}
    assert classes <= set(importlib.import_module(f"{PACKAGE}.scorers").__all__)


def test_nothing_imports_a_plugin():
    assert [name for names, _ in IMPORTS.values() for name in names if name.startswith(f"{PACKAGE}_")] == []


def test_package_limits():
    modules = [path for path in ROOT.glob("*.py") if path.name != "__init__.py"]
    packages = [path for path in ROOT.iterdir() if (path / "__init__.py").exists()]
    assert len(modules) <= 12
    assert len(packages) <= 15
    assert len(longest_chain(rooms_below(GRAPH))) <= 13
    assert len(lightning_poison.__all__) <= 27


def test_modules_stay_short():
    lengths = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in MODULES.items()}
    assert {module: length for module, length in lengths.items() if length > 400} == {}


def test_every_package_has_public_names():
    for module in (name for name, path in MODULES.items() if path.name == "__init__.py"):
        package = importlib.import_module(module)
        assert package.__doc__
        if room_of(module) != "_lightning":
            assert all(getattr(package, name) is not None for name in package.__all__)


def test_no_public_name_hides_a_module_of_its_package():
    clashes = {
        f"{module}.{name}"
        for module in FACES
        for name in importlib.import_module(module).__all__
        if f"{module}.{name}" in MODULES
    }
    assert clashes == set()


@pytest.mark.parametrize(
    ("source", "found", "faces"),
    [
        ("from lightning_poison.errors import X", {"lightning_poison.errors"}, set()),
        ("from lightning_poison import errors", {"lightning_poison.errors"}, set()),
        ("from lightning_poison import Poison", {"lightning_poison"}, {"lightning_poison"}),
        ("from lightning_poison.scorers import X", {"lightning_poison.scorers"}, {"lightning_poison.scorers"}),
        ("from .poison import X", {"lightning_poison.attacks.poison"}, set()),
        ("def f():\n    import lightning_poison.errors", {"lightning_poison.errors"}, set()),
        ("import lightning.pytorch as L", {"lightning.pytorch"}, set()),
    ],
)
def test_reads_imports(source, found, faces):
    assert imports_of(source, "lightning_poison.attacks.threat") == (found, faces)


def test_upward_import_is_found():
    pair = ("lightning_poison.data.blocks", "lightning_poison.attacks.poison")
    assert upward({pair[0]: {pair[1]}}) == [pair]


def test_architecture_map_matches_imports():
    page = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    graph = re.search(r"```mermaid\n(.*?)```", page, re.DOTALL)[1]
    drawn = {}
    for room, below in re.findall(r"^ +(\w+) --> (\w+(?: & \w+)*)$", graph, re.MULTILINE):
        drawn.setdefault(room, set()).update(below.split(" & "))
    # The map omits the lowest levels, which every package may use.
    ground = set(" ".join(FLOORS[:4]).split()) | {"serialization", "runtime"}
    imported = {
        room: below - ground for room, below in rooms_below(GRAPH).items() if room not in ground and below - ground
    }
    assert drawn == imported


def test_architecture_names_are_where_the_page_says():
    page = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    links = re.findall(r"((?:`[\w.]+`(?:, | and )?)+) in \[[^]]+\]\(\.\./([^)]+\.py)\)", page)
    assert len(links) >= 10
    missing = [
        f"{name} in {path}"
        for names, path in links
        for name in re.findall(r"[\w.]+(?=`)", names)
        for last in [name.split(".")[-1]]
        if not re.search(
            rf"^ *(?:def|class) {last}\b|^{last}\b.*=", (REPOSITORY / path).read_text(encoding="utf-8"), re.MULTILINE
        )
    ]
    assert not missing


@pytest.fixture(scope="session")
def imported():
    """What one new process loads and changes as it imports, step by step, ever more of the package and its plug-ins."""
    below = [module for module in MODULES if room_of(module) not in LIGHTNING_ROOMS | {"cli", "__main__"}]
    program = f"""
import importlib, json, random, sys, numpy, torch

def state():
    return random.getstate(), repr(numpy.random.get_state()), torch.get_rng_state().tolist(), torch.get_num_threads()

def lightning():
    return [name for name in sys.modules if name.split(".")[0] in {LIGHTNING!r}]

def plugins():
    return [name for name in sys.modules if name.startswith("{PACKAGE}_")]

before = state()
import lightning_poison.registry.hookspecs
report = {{"hookspecs": [name for name in sys.modules if name.split(".")[0] == "{PACKAGE}"]}}
from lightning_poison.registry.loading import OWN_SCORERS
report["unchanged"] = state() == before
report["package"] = lightning() + plugins()
for name in {below!r}:
    importlib.import_module(name)
report["below Lightning"] = lightning() + plugins()
from lightning_poison.registry import available_attacks
report["plug-ins"] = sorted({{offer.source.plugin for offer in available_attacks()}})
report["available"] = lightning()
print(json.dumps(report))
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return json.loads(ended.stdout)


@pytest.mark.slow
def test_import_loads_seeds_and_patches_nothing(imported):
    assert imported["unchanged"]
    assert imported["package"] == []


@pytest.mark.slow
def test_hookspecs_load_few_modules(imported):
    assert 0 < len(imported["hookspecs"]) <= 12


@pytest.mark.slow
def test_below_lightning_packages_nothing_loads_lightning_or_a_plugin(imported):
    assert imported["below Lightning"] == []


@pytest.mark.slow
def test_plugins_load_no_lightning(imported):
    assert {"labels", "collisions"} <= set(imported["plug-ins"])
    assert imported["available"] == []
