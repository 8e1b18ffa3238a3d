"""The plug-ins on the pages for authors, installed as distributions: they are found by name and pass their suites."""

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
    "write-a-scorer.md": ("lightning_poison_class_mean", SCORER),
    "write-an-attack.md": ("lightning_poison_corner", ATTACK),
}


def blocks_of(page, language):
    return re.findall(
        rf"^```{language}\n(.*?)^```$", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


def test_scorer_has_at_most_25_lines():
    code = blocks_of("write-a-scorer.md", "python")[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 25


@pytest.mark.slow
@pytest.mark.skipif(UV is None, reason="needs uv")
@pytest.mark.parametrize("page", PAGES)
def test_installed_plugin_passes_its_suite(page, tmp_path):
    module, checks = PAGES[page]
    code, *usage = blocks_of(page, "python")
    project, installed = tmp_path / "project", tmp_path / "installed"
    project.mkdir()
    (project / f"{module}.py").write_text(code, encoding="utf-8")
    (project / "pyproject.toml").write_text(BUILD_SYSTEM + blocks_of(page, "toml")[0], encoding="utf-8")
    install = [UV, "pip", "install", "--offline", "--quiet", "--no-deps", "--target", str(installed), str(project)]
    subprocess.run(install, check=True)
    script = "\n".join([f"from {module} import *", checks, *usage])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(installed), *sys.path])}
    subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", script], check=True, env=environment, cwd=tmp_path
    )
