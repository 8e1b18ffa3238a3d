"""The Python blocks of the pages and of the README run, in order, one namespace a page.

A block with the line `<!-- not run -->` before it is left out.
"""

import contextlib
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = (
    sorted((ROOT / "docs").rglob("*.md")) + sorted(ROOT.glob("README.md")) + sorted(ROOT.glob("plugins/*/README.md"))
)
BLOCK = re.compile(r"^(?P<skip><!-- not run -->\n+)?```(?:python|py)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks_of(text):
    """Return the blocks that run, each as (line of its first statement, code)."""
    return [
        (text.count("\n", 0, found.start("code")), found["code"]) for found in BLOCK.finditer(text) if not found["skip"]
    ]


def test_blocks_are_found_and_left_out():
    text = "a\n```python\nx = 1\n```\n```bash\nls\n```\n<!-- not run -->\n```python\ny = 2\n```\n```py\nz = 3\n```\n"
    assert blocks_of(text) == [(2, "x = 1\n"), (12, "z = 3\n")]


@pytest.mark.parametrize("page", [str(page.relative_to(ROOT)) for page in PAGES])
def test_the_blocks_of_a_page_run(page, tmp_path, monkeypatch):
    path = ROOT / page
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    with contextlib.redirect_stdout(io.StringIO()):
        for line, code in blocks_of(path.read_text(encoding="utf-8")):
            exec(compile("\n" * line + code, str(path), "exec"), namespace)  # noqa: S102 (our own pages)
