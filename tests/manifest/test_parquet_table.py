"""Tests of manifests as Parquet files: the same content, checks and untrusted text as in CSV."""

import math
import sys
from dataclasses import replace

import pyarrow
import pytest
from pyarrow import parquet

from lightning_poison.errors import ManifestError
from lightning_poison.manifest.manifest import Manifest, keep_by_hand, read_manifest
from lightning_poison.manifest.rows import ManifestRow

ROW = ManifestRow(
    sample_id=4,
    label=1,
    suggested_label=None,
    label_name="=cmd|'/c calc'!A1",
    suggested_name="a;b\n\\x41",
    score=0.1,
    p_value=1e-300,
    posterior=2 / 3,
    score_threshold=None,
    posterior_threshold=0.6,
    decision="removed",
    content_hash=f"raw:{0:032}",
    fingerprint="5f0c",
    reason="labeled 1, looks like 2",
    found_by="likelihood",
    path="cats/\udcff\U0001f600.png",
    votes={"=a;b": 0.25, "\n": 1.0},
)
ROWS = (
    ROW,
    replace(ROW, sample_id=10**15 - 1, label=-1, suggested_label=7, posterior=None, score_threshold=-0.5, votes={}),
    replace(ROW, sample_id=0, decision="kept-by-hand", votes={"third": 0.5}),
)


@pytest.fixture
def path(tmp_path):
    Manifest(ROWS).write(tmp_path / "m.parquet")
    return tmp_path / "m.parquet"


def change(file, **columns):
    """Replace columns of a file, as another program does."""
    table = parquet.read_table(file)
    for name, values in columns.items():
        table = table.set_column(table.column_names.index(name), name, values)
    parquet.write_table(table, file)


def test_round_trip_is_exact(path):
    assert read_manifest(path).rows == ROWS
    assert [each.name for each in path.parent.iterdir()] == ["m.parquet"]
    table = parquet.read_table(path)
    assert {name: str(table.schema.field(name).type) for name in ("sample_id", "label", "score", "path")} == {
        "sample_id": "int64",
        "label": "int64",
        "score": "double",
        "path": "string",
    }


def test_content_is_that_of_csv(path):
    Manifest(ROWS).write(path.with_suffix(".csv"))
    assert read_manifest(path) == read_manifest(path.with_suffix(".csv"))
    assert not read_manifest(path).diff(read_manifest(path.with_suffix(".csv")))
    with path.with_suffix(".csv").open(encoding="utf-8") as file:
        assert parquet.read_table(path).column_names == file.readline().strip().split(",")


def test_texts_are_safe_in_tables_that_other_programs_make(path):
    table = parquet.read_table(path).to_pydict()
    for name in ("label_name", "suggested_name", "path"):
        assert all(text.isprintable() and ";" not in text and not text.startswith("=") for text in table[name])


@pytest.mark.parametrize("rows", [(), ROWS[1:2]])
def test_few_rows(tmp_path, rows):
    Manifest(rows).write(tmp_path / "m.PARQUET")
    assert read_manifest(tmp_path / "m.PARQUET").rows == rows


def test_more_rows_than_are_converted_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_poison.manifest.parquet_table._ROWS_AT_ONCE", 3)
    rows = tuple(replace(ROW, sample_id=number) for number in range(10))
    Manifest(rows).write(tmp_path / "m.parquet")
    assert read_manifest(tmp_path / "m.parquet").rows == rows


def test_samples_are_kept_by_hand(path):
    assert [row.decision for row in keep_by_hand(path, [4]).rows] == ["kept-by-hand", "removed", "kept-by-hand"]
    assert read_manifest(path).rows[0] == replace(ROW, decision="kept-by-hand")


def test_integers_may_be_stored_as_floats_with_nan_for_none(path):
    change(
        path, suggested_label=[[math.nan, 7.0, math.nan]], posterior=[[2 / 3, math.nan, 2 / 3]], label=[[1.0, -1, 1]]
    )
    assert read_manifest(path).rows == ROWS


@pytest.mark.parametrize(
    ("column", "values", "shown"),
    [
        ("sample_id", [4, -1, 0], "-1"),
        ("sample_id", [4, 1.5, 0], "1.5"),
        ("sample_id", ["4", "5", "6"], "4"),
        ("label", [1, None, 1], "None"),
        ("score", [1.0, math.nan, 1.0], "nan"),
        ("score", [1.0, math.inf, 1.0], "inf"),
        ("p_value", [0.5, 2.0, 0.5], "2.0"),
        ("posterior", [True, False, True], "True"),
        ("decision", ["removed", "keep", "removed"], "keep"),
        ("content_hash", [b"raw", b"raw", b"raw"], "b'raw'"),
        ("path", ["a", "\\y", "b"], r"\\y"),
        ("path", ["a", "b\x1b[2J", "c"], r"b\\x1b\[2J"),
        ("path", ["n" * 4_097] * 3, "nnn"),
        ("path", [["a"], ["b"], ["c"]], r"\['a'\]"),
        ("vote:third", [0.5, 7.0, None], "7.0"),
    ],
)
def test_error_names_invalid_value(path, column, values, shown):
    change(path, **{column: [values]})
    with pytest.raises(ManifestError, match=rf"`{column}` in row [12] of the manifest .*m\.parquet to be .*{shown}"):
        read_manifest(path)


def test_sample_twice(path):
    change(path, sample_id=[[4, 4, 4]])
    with pytest.raises(ManifestError, match="unique `sample_id` in each row, but got 4 twice"):
        read_manifest(path)


def test_refuses_other_columns(path):
    table = parquet.read_table(path)
    for changed, fault in [
        (table.drop_columns(["score"]), "no 'score'"),
        (table.append_column("note", [["", "", ""]]), "also 'note'"),
        (table.append_column("label", [[1, 1, 1]]), "one of them twice"),
        (table.append_column("vote:\\", [[1.0] * 3]), "in which a backslash"),
        (pyarrow.table({}), "no 'sample_id'"),
    ]:
        parquet.write_table(changed, path)
        with pytest.raises(ManifestError, match=fault):
            read_manifest(path)


def test_damaged_files_are_refused(path):
    content = path.read_bytes()
    place = content.index(b"looks like")
    for damaged in (
        b"",
        b"PAR1",
        content[: len(content) // 2],
        content[:place] + b"L" + content[place + 1 :],
        b"a,b\n",
    ):
        path.write_bytes(damaged)
        with pytest.raises(ManifestError, match=r"a manifest in Parquet, but .*m\.parquet cannot be read"):
            read_manifest(path)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file at .*m\.parquet"):
        read_manifest(tmp_path / "m.parquet")


def test_failed_write_keeps_old_file(path):
    before = path.read_bytes()
    with pytest.raises(AttributeError):
        Manifest((*ROWS, None)).write(path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_names_what_to_install(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"Reading Parquet needs pyarrow: pip install 'lightning-poison\[parquet\]'"):
        read_manifest(path)
    with pytest.raises(ValueError, match=r"Writing Parquet needs pyarrow: pip install 'lightning-poison\[parquet\]'"):
        Manifest(ROWS).write(path.with_name("other.parquet"))
    assert list(path.parent.iterdir()) == [path]
