"""The plug-ins on the pages for authors, installed as distributions: they are found by name and pass their suites."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
UV = shutil.which("uv")
BUILD_SYSTEM = '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n\n'

SCORER = """
from lightning_poison import available_scorers, get_scorer
from lightning_poison.testing import check_scorer

assert "class-mean" in [entry.name for entry in available_scorers()]
check_scorer(get_scorer("class-mean"), separates=True)
"""
ATTACK = """
from lightning_poison import available_attacks, get_attack
from lightning_poison.testing import check_attack

assert "corner" in [entry.name for entry in available_attacks()]
check_attack(get_attack("corner", target_class=2))
"""
PAGES = {
    "write-an-attack.md": ("lightning_poison_corner", ATTACK),
    "write-a-scorer.md": ("lightning_poison_class_mean", SCORER),
}


def blocks_of(page, language):
    return re.findall(
        rf"^```{language}\n(.*?)^```$", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


def test_scorer_has_at_most_25_lines():
    code = blocks_of("write-a-scorer.md", "python")[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 25


RUN_EACH = """
import json, sys, traceback

errors = {}
for page, code in json.load(sys.stdin).items():
    try:
        exec(compile(code, page, "exec"), {"__name__": page})
        errors[page] = None
    except BaseException:
        errors[page] = traceback.format_exc()
json.dump(errors, open(sys.argv[1], "w"))
"""


@pytest.fixture(scope="module")
def errors(tmp_path_factory):
    """The error of each page, or None, from one process with both plug-ins installed."""
    folder = tmp_path_factory.mktemp("plug-ins")
    installed, report = folder / "installed", folder / "errors.json"
    scripts, projects = {}, []
    for page, (module, checks) in PAGES.items():
        code, *usage = blocks_of(page, "python")
        project = folder / module
        project.mkdir()
        (project / f"{module}.py").write_text(code, encoding="utf-8")
        (project / "pyproject.toml").write_text(BUILD_SYSTEM + blocks_of(page, "toml")[0], encoding="utf-8")
        projects.append(str(project))
        scripts[page] = "\n".join([f"from {module} import *", checks, *usage])
    install = [UV, "pip", "install", "--offline", "--quiet", "--no-deps", "--target", str(installed), *projects]
    subprocess.run(install, check=True)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(installed), *sys.path])}
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", RUN_EACH, str(report)]
    subprocess.run(command, input=json.dumps(scripts), text=True, check=True, env=environment, cwd=folder)
    return json.loads(report.read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.skipif(UV is None, reason="needs uv")
@pytest.mark.parametrize("page", PAGES)
def test_installed_plugin_passes_its_suite(errors, page):
    assert errors[page] is None, errors[page]
