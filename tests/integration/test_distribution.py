"""Git ignores no source file, and a wheel contains the package and nothing else."""

import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = [ROOT / "lightning_poison", *sorted(ROOT.glob("plugins/*/lightning_poison_*"))]
SOURCE_SUFFIXES = {".py", ".pyi", ".jinja", ".css", ".js"}
GIT, UV = shutil.which("git"), shutil.which("uv")


def source_files(package):
    """Return the files of a package, relative to its parent folder."""
    found = (path for path in package.rglob("*") if path.suffix in SOURCE_SUFFIXES or path.name == "py.typed")
    return {path.relative_to(package.parent).as_posix() for path in found}


@pytest.mark.skipif(not (ROOT / ".git").exists() or GIT is None, reason="needs a git checkout")
def test_gitignore_keeps_source_files():
    files = [
        (package.parent / file).relative_to(ROOT).as_posix() for package in PACKAGES for file in source_files(package)
    ]
    files += [path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("*.py")]
    # `--no-index` also reports files that were added despite a pattern.
    ignored = subprocess.run(
        [GIT, "check-ignore", "--no-index", "--stdin"],
        input="\n".join(files),
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (ignored.returncode, ignored.stdout) == (1, "")


@pytest.mark.slow
@pytest.mark.skipif(UV is None, reason="needs uv")
def test_wheels_contain_only_source_files(tmp_path):
    subprocess.run(
        [UV, "build", "--quiet", "--wheel", "--all-packages", "--out-dir", str(tmp_path)],
        cwd=ROOT,
        check=True,
    )
    for package in PACKAGES:
        (wheel,) = tmp_path.glob(f"{package.name}-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            files = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert files == source_files(package)
