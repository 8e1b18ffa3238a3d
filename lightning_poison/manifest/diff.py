"""Differences between two manifests."""

from dataclasses import dataclass

from lightning_poison.manifest.rows import ManifestRow

_Rows = tuple[ManifestRow, ...]

_MAX_PRINTED = 20
"""Maximum number of rows to print."""


@dataclass(frozen=True)
class ManifestDiff:
    """Differences between a manifest and a later one.

    Args:
        added: Rows of the later manifest whose samples are not in the earlier one.
        removed: Rows of the earlier manifest whose samples are not in the later one.
        changed: Earlier and later row of each sample whose decision differs.
    """

    added: tuple[ManifestRow, ...]
    removed: tuple[ManifestRow, ...]
    changed: tuple[tuple[ManifestRow, ManifestRow], ...]

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)

    def __str__(self) -> str:
        counts = f"{len(self.added)} added, {len(self.removed)} removed, {len(self.changed)} changed"
        lines = [f"  + {row}" for row in self.added] + [f"  - {row}" for row in self.removed]
        lines += [f"  ~ {after} (was {before.decision})" for before, after in self.changed]
        return "\n".join([counts, *shortened(lines)])


def compare_rows(before: _Rows, after: _Rows) -> ManifestDiff:
    """Compare the rows of two manifests; see `Manifest.diff`."""
    pairs = _match_rows(before, after)
    old_ids, new_ids = {pair[0].sample_id for pair in pairs}, {pair[1].sample_id for pair in pairs}
    return ManifestDiff(
        added=tuple(row for row in after if row.sample_id not in new_ids),
        removed=tuple(row for row in before if row.sample_id not in old_ids),
        changed=tuple(pair for pair in pairs if pair[0].decision != pair[1].decision),
    )


def shortened(lines: list[str], *, limit: int = _MAX_PRINTED) -> list[str]:
    """Return the first lines, and the number of the remaining ones."""
    hidden = len(lines) - limit
    return [*lines[:limit], f"  and {hidden} more"] if hidden > 0 else lines


def _match_rows(before: _Rows, after: _Rows) -> list[tuple[ManifestRow, ManifestRow]]:
    """Pair the rows of the same sample: those with the same id first, then the rest in order."""
    unmatched: dict[tuple[str, int], dict[int, ManifestRow]] = {}
    for row in after:
        unmatched.setdefault((row.content_hash, row.label), {})[row.sample_id] = row
    pairs, moved = [], []
    for row in before:
        same = unmatched.get((row.content_hash, row.label), {}).pop(row.sample_id, None)
        if same is not None:
            pairs.append((row, same))
        else:
            moved.append(row)
    for row in moved:
        rest = unmatched.get((row.content_hash, row.label))
        if rest:
            pairs.append((row, rest.pop(next(iter(rest)))))
    return pairs
