"""What tells two manifests apart."""

from dataclasses import dataclass

from lightning_poison.manifest.rows import ManifestRow

_SHOWN = 20
"""How many rows are printed at most."""


@dataclass(frozen=True)
class ManifestDiff:
    """What tells two manifests apart.

    Args:
        added: rows of the other manifest whose samples are not in this one.
        removed: rows of this manifest whose samples are not in the other one.
        changed: rows, this one's and the other's, of samples on which the decision differs.
    """

    added: tuple[ManifestRow, ...]
    removed: tuple[ManifestRow, ...]
    changed: tuple[tuple[ManifestRow, ManifestRow], ...]

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)

    def __str__(self) -> str:
        counts = f"{len(self.added)} added, {len(self.removed)} removed, {len(self.changed)} decided otherwise"
        lines = [f"  + {row}" for row in self.added] + [f"  - {row}" for row in self.removed]
        lines += [f"  ~ {after} (was {before.decision})" for before, after in self.changed]
        return "\n".join([counts, *shortened(lines)])


def compare_rows(before: tuple[ManifestRow, ...], after: tuple[ManifestRow, ...]) -> ManifestDiff:
    """Compare the rows of two manifests; see `lightning_poison.manifest.manifest.Manifest.diff`."""
    pairs = _matched(before, after)
    still, known = {pair[0].sample_id for pair in pairs}, {pair[1].sample_id for pair in pairs}
    return ManifestDiff(
        added=tuple(row for row in after if row.sample_id not in known),
        removed=tuple(row for row in before if row.sample_id not in still),
        changed=tuple(pair for pair in pairs if pair[0].decision != pair[1].decision),
    )


def _matched(before: tuple[ManifestRow, ...], after: tuple[ManifestRow, ...]) -> list[tuple[ManifestRow, ManifestRow]]:
    """Pair the rows of the same sample: those of the same id first, then the rest in order."""
    waiting: dict[tuple[str, int], dict[int, ManifestRow]] = {}
    for row in after:
        waiting.setdefault((row.content_hash, row.label), {})[row.sample_id] = row
    pairs, moved = [], []
    for row in before:
        same = waiting.get((row.content_hash, row.label), {}).pop(row.sample_id, None)
        if same is not None:
            pairs.append((row, same))
        else:
            moved.append(row)
    for row in moved:
        rest = waiting.get((row.content_hash, row.label))
        if rest:
            pairs.append((row, rest.pop(next(iter(rest)))))
    return pairs


def shortened(lines: list[str], *, shown: int = _SHOWN) -> list[str]:
    """Return the first lines, and how many more there are."""
    hidden = len(lines) - shown
    return [*lines[:shown], f"  and {hidden} more"] if hidden > 0 else lines
