import json

import pytest
from PIL import Image

from lightning_poison.manifest.manifest import Manifest, read_manifest
from lightning_poison.manifest.rows import ManifestRow
from lightning_poison.shell.apply import copy_kept, list_kept, undo_copy


def row(number, path, decision="removed"):
    digest = f"raw:{number:032}"
    return ManifestRow(number, 0, 1, "a", "b", 9.0, 0.001, 0.9, None, 0.6, decision, digest, "5f0c", path=str(path))


@pytest.fixture
def scanned(tmp_path):
    """Return the folder of a scan whose manifest removes two of five images, one of which was kept by hand."""
    source, output = tmp_path / "images", tmp_path / "scan"
    output.mkdir()
    for number in range(5):
        path = source / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), number).save(path)
    rows = (row(0, source / "a" / "0.png"), row(1, source / "b" / "1.png", "kept-by-hand"))
    Manifest(rows).write(output / "manifest.csv")
    (output / "summary.json").write_text(json.dumps({"source": str(source)}))
    return output


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))


def test_links_what_the_manifest_keeps_and_undoes_it(scanned, tmp_path):
    target = tmp_path / "clean"
    assert copy_kept(scanned / "manifest.csv", target) == (4, 1)
    assert names(target) == ["a/2.png", "a/4.png", "b/1.png", "b/3.png"]
    assert (target / "a" / "2.png").read_bytes() == (tmp_path / "images" / "a" / "2.png").read_bytes()
    assert undo_copy(target) == 4
    assert not target.exists()
    assert len(names(tmp_path / "images")) == 5


def test_what_is_removed_by_hand_is_left_out(scanned, tmp_path):
    gone = row(2, tmp_path / "images" / "a" / "2.png", "removed-by-hand")
    rows = (*read_manifest(scanned / "manifest.csv").rows, gone)
    Manifest(rows).write(scanned / "manifest.csv")
    assert copy_kept(scanned / "manifest.csv", tmp_path / "clean") == (3, 2)
    assert names(tmp_path / "clean") == ["a/4.png", "b/1.png", "b/3.png"]


def test_a_manifest_may_be_parquet(scanned, tmp_path):
    read_manifest(scanned / "manifest.csv").write(scanned / "manifest.parquet")
    assert copy_kept(scanned / "manifest.parquet", tmp_path / "clean") == (4, 1)
    assert list_kept(scanned / "manifest.parquet", tmp_path / "kept.txt") == (4, 1)


def test_undo_deletes_nothing_if_there_are_other_files(scanned, tmp_path):
    target = tmp_path / "clean"
    copy_kept(scanned / "manifest.csv", target)
    (target / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"1 files of its own, such as .*notes\.txt"):
        undo_copy(target)
    assert len(names(target)) == 4


def test_refuses_a_folder_with_files_or_inside_of_the_source(scanned, tmp_path):
    with pytest.raises(ValueError, match="a new or empty folder"):
        copy_kept(scanned / "manifest.csv", scanned)
    with pytest.raises(ValueError, match="outside of the source"):
        copy_kept(scanned / "manifest.csv", tmp_path / "images" / "clean")


def test_refuses_the_manifest_of_another_folder(scanned, tmp_path):
    other = tmp_path / "other" / "a"
    other.mkdir(parents=True)
    Image.new("L", (8, 8)).save(other / "0.png")
    with pytest.raises(ValueError, match="1 files that are not there"):
        copy_kept(scanned / "manifest.csv", tmp_path / "clean", source=tmp_path / "other")
    assert not (tmp_path / "clean").exists()


def test_names_the_option_if_the_source_is_unknown(scanned, tmp_path):
    (scanned / "summary.json").unlink()
    with pytest.raises(ValueError, match="--source PATH"):
        copy_kept(scanned / "manifest.csv", tmp_path / "clean")


def test_nothing_is_left_if_linking_fails(scanned, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lightning_poison.shell.apply._link", fail)
    with pytest.raises(OSError, match="No space"):
        copy_kept(scanned / "manifest.csv", tmp_path / "clean")
    assert {path.name for path in tmp_path.iterdir()} == {"images", "scan"}


def test_lists_what_the_manifest_keeps(scanned, tmp_path):
    listed = tmp_path / "kept.txt"
    assert list_kept(scanned / "manifest.csv", listed) == (4, 1)
    source = tmp_path / "images"
    kept = [source / "a" / "2.png", source / "a" / "4.png", source / "b" / "1.png", source / "b" / "3.png"]
    assert listed.read_text().splitlines() == [str(path) for path in kept]


def test_lists_what_is_kept_of_a_table(scanned, tmp_path):
    table = tmp_path / "images" / "table.csv"
    table.write_text("picture,label\na/0.png,a\na/2.png,a\n")
    (scanned / "summary.json").write_text(json.dumps({"source": str(table), "reading": {"path": "picture"}}))
    listed = tmp_path / "kept.txt"
    assert list_kept(scanned / "manifest.csv", listed) == (1, 1)
    assert listed.read_text() == f"{tmp_path / 'images' / 'a' / '2.png'}\n"
    with pytest.raises(ValueError, match=r"a folder of images, but got .*table\.csv.\n`--list-to FILE`"):
        copy_kept(scanned / "manifest.csv", tmp_path / "clean")
    table.write_text("width,label\n1,a\n2,a\n")
    (scanned / "summary.json").write_text(json.dumps({"source": str(table)}))
    with pytest.raises(ValueError, match="a table of paths"):
        list_kept(scanned / "manifest.csv", listed)


def test_paths_with_line_breaks_are_not_listed(scanned, tmp_path):
    (tmp_path / "images" / "a" / "2.png").rename(tmp_path / "images" / "a" / "2\n.png")
    with pytest.raises(ValueError, match="without line breaks"):
        list_kept(scanned / "manifest.csv", tmp_path / "kept.txt")
    assert not (tmp_path / "kept.txt").exists()


def test_folder_and_missing_manifest_are_named_with_the_way_out(scanned, tmp_path):
    with pytest.raises(ValueError, match=r"the manifest of a scan, but got a folder.\nDid you mean .*manifest.csv\?"):
        copy_kept(scanned, tmp_path / "clean")
    with pytest.raises(ValueError, match="the manifest of a scan, but got nothing there"):
        copy_kept(scanned / "no.parquet", tmp_path / "clean")
    assert not (tmp_path / "clean").exists()
