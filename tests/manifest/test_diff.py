from dataclasses import replace

import pytest

from lightning_poison.manifest.diff import compare_rows, shortened
from lightning_poison.manifest.rows import ManifestRow


def row(sample_id, content="a", *, decision="removed", label=1):
    return ManifestRow(
        sample_id=sample_id,
        label=label,
        suggested_label=None,
        label_name="",
        suggested_name="",
        score=1.0,
        p_value=0.001,
        posterior=None,
        score_threshold=1.5,
        posterior_threshold=None,
        decision=decision,
        content_hash=f"raw:{content * 32}",
        fingerprint="f",
        path="",
        votes={},
    )


def test_equal_rows_do_not_differ():
    rows = (row(0, "a"), row(1, "b"))
    assert not compare_rows(rows, rows)
    assert str(compare_rows(rows, rows)) == "0 added, 0 removed, 0 changed"


def test_finds_added_removed_and_changed_samples():
    before = row(0, "a"), row(1, "b"), row(2, "c")
    after = row(0, "a"), replace(row(1, "b"), decision="kept-by-hand"), row(3, "d")
    found = compare_rows(before, after)
    assert found
    assert (found.added, found.removed, found.changed) == ((after[2],), (before[2],), ((before[1], after[1]),))
    lines = str(found).splitlines()
    assert lines[0] == "1 added, 1 removed, 1 changed"
    assert [line[2] for line in lines[1:]] == ["+", "-", "~"]
    assert lines[3].endswith("(was removed)")


def test_sample_that_moved_is_the_same():
    assert not compare_rows((row(0, "a"), row(1, "b")), (row(5, "b"), row(9, "a")))


def test_same_content_with_another_label_is_another_sample():
    found = compare_rows((row(0, "a", label=1),), (row(0, "a", label=2),))
    assert [len(each) for each in (found.added, found.removed, found.changed)] == [1, 1, 0]


def test_of_equal_samples_the_one_with_the_same_id_is_compared_first():
    before = row(0, "a"), row(1, "a")
    after = replace(row(1, "a"), decision="kept-by-hand"), row(7, "a")
    assert compare_rows(before, after).changed == ((before[1], after[0]),)


@pytest.mark.parametrize(("count", "last"), [(3, "line 2"), (5, "  and 2 more")])
def test_long_lists_are_shortened(count, last):
    lines = [f"line {number}" for number in range(count)]
    assert shortened(lines, limit=3)[-1] == last
    assert len(shortened(lines, limit=3)) == min(count, 4)
