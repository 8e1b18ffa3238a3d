"""The Python blocks of the README and the pages run in order, with one namespace per page.

A block after the line `<!-- not run -->` is skipped.
"""

import contextlib
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted(ROOT.glob("plugins/*/README.md"))]
BLOCK = re.compile(r"^(?P<skip><!-- not run -->\n+)?```(?:python|py)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")


def blocks_of(text):
    """Return the blocks that run, each as (line of its first statement, code)."""
    return [
        (text.count("\n", 0, found.start("code")), found["code"]) for found in BLOCK.finditer(text) if not found["skip"]
    ]


def prose_of(page):
    """Return a page without its code blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors_of(page):
    """Return the anchors of the headings of a page, as GitHub generates them."""
    headings = re.findall(r"^#+ (.*)$", prose_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page):
    """Return the relative links of a page that lead to no file or to no heading."""
    broken = []
    for target in LINK.findall(prose_of(page)):
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        if "://" not in target and not (file.exists() and (not anchor or anchor in anchors_of(file))):
            broken.append(target)
    return broken


def test_finds_blocks_and_skips_marked_ones():
    text = "a\n```python\nx = 1\n```\n```bash\nls\n```\n<!-- not run -->\n```python\ny = 2\n```\n```py\nz = 3\n```\n"
    assert blocks_of(text) == [(2, "x = 1\n"), (12, "z = 3\n")]


def test_finds_broken_links(tmp_path):
    (tmp_path / "a.md").write_text("# One `name`\n[x](a.md#one-name) [y](b.md) [z](#two) [w](https://example.com)\n")
    assert broken_links(tmp_path / "a.md") == ["b.md", "#two"]


@pytest.mark.parametrize(
    "page",
    sorted({*PAGES, *ROOT.glob("*.md"), *ROOT.glob("benchmarks/*.md")}),
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_links_resolve(page):
    assert broken_links(page) == []


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_page_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    with contextlib.redirect_stdout(io.StringIO()):
        for line, code in blocks_of(page.read_text(encoding="utf-8")):
            exec(compile("\n" * line + code, str(page), "exec"), namespace)  # noqa: S102 (our own pages)
