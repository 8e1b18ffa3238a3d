"""Quarantine manifest: the suspicious samples of a data set, the evidence, and the decision for each."""

import contextlib
import itertools
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from lightning_poison.checks import expected, index_vector, printable
from lightning_poison.data.class_names import class_names_of
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.data.source import readable, source_for
from lightning_poison.errors import ManifestError
from lightning_poison.manifest.cells import REPAIR_HINT, DecisionWord, shortened_text
from lightning_poison.manifest.csv_table import read_csv, write_csv
from lightning_poison.manifest.diff import ManifestDiff, compare_rows, shortened
from lightning_poison.manifest.matching import content_hashes, file_of, find_samples
from lightning_poison.manifest.parquet_table import read_parquet, write_parquet
from lightning_poison.manifest.rows import ManifestRow, row_values
from lightning_poison.sanitization.verdict import Verdict
from lightning_poison.serialization import checked_path


@dataclass(frozen=True)
class Manifest:
    """Suspicious samples of a data set, one row each.

    Args:
        rows: Rows in the order of the file. A manifest from a verdict starts with the most suspicious sample.

    Example:
        >>> from lightning_poison.manifest.matching import content_hash
        >>> from lightning_poison.testing.tiny_images import TinyImages
        >>> row = ManifestRow(
        ...     sample_id=4, label=1, suggested_label=2, label_name="cat", suggested_name="dog", score=9.5,
        ...     p_value=0.001, posterior=None, score_threshold=8.0, posterior_threshold=None, decision="removed",
        ...     content_hash=content_hash(TinyImages(), 4, sample=SampleSpec()), fingerprint="5f0c")
        >>> manifest = Manifest((row,)).with_kept([4])
        >>> print(manifest)
        1 sample: 1 kept-by-hand
          sample 4: labeled 1 (cat), looks like 2 (dog), p = 0.001, kept-by-hand
        >>> manifest.kept_by_hand(TinyImages())
        tensor([4])
    """

    rows: tuple[ManifestRow, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        decisions = [row.decision for row in self.rows]
        counts = ", ".join(f"{decisions.count(word)} {word}" for word in dict.fromkeys(decisions)) or "none suspicious"
        noun = "sample" if len(self) == 1 else "samples"
        return "\n".join([f"{len(self)} {noun}: {counts}", *shortened([f"  {row}" for row in self.rows])])

    @classmethod
    def from_verdict(
        cls,
        verdict: Verdict,
        dataset: Any,
        *,
        sample: SampleSpec | None = None,
        class_names: Sequence[str] | None = None,
        kept_by_hand: Tensor | None = None,
        removed_by_hand: Tensor | None = None,
        flag_only: bool = False,
    ) -> Self:
        """Build a manifest with a row for each sample that is removed, and for each that is kept or removed by hand.

        These samples are read once more, under a fixed random state.

        Args:
            verdict: Verdict on N samples.
            dataset: Map-style data set of the verdict, with N samples, or a loader of it, whose `collate_fn` is used if
                samples are no tensors.
            sample: Location of the input in a sample. Default: detected in samples that were judged.
            class_names: Names of the classes. Default: those that the data set lists in `classes`, if any.
            kept_by_hand: Positions to keep despite the verdict, int64 `(K,)`, besides those that the verdict says were
                kept by hand. Default: none.
            removed_by_hand: Positions to remove whatever the verdict, int64 `(R,)`, besides those that the verdict
                says were removed by hand. Default: none.
            flag_only: Whether samples that the verdict removes stay in the training set. Rows of samples that the user
                keeps or removes have the same decision in either case, for later runs. Default: `False`.

        Raises:
            ValueError: If verdict and data set differ in length, a position is outside the data set, or one is both
                kept and removed by hand.
            UnreadableSampleError: If a sample cannot be read.
        """
        data = readable(dataset, "dataset")
        length = len(data.dataset)
        if length != len(verdict):
            raise ValueError(expected("dataset", f"the {len(verdict)} samples of the verdict", f"{length}"))
        kept = _check_positions("kept_by_hand", kept_by_hand, len(verdict))
        removed = _check_positions("removed_by_hand", removed_by_hand, len(verdict))
        if both := sorted(removed & kept):
            raise ValueError(expected("removed_by_hand", "positions that are not kept by hand", both[0]))
        kept |= _positions_of(verdict.kept_by_hand) - removed
        removed |= _positions_of(verdict.removed_by_hand) - kept
        by_hand: dict[int, DecisionWord] = dict.fromkeys(kept, "kept-by-hand")
        by_hand |= dict.fromkeys(removed, "removed-by-hand")
        listed = ~verdict.keep
        listed[sorted(by_hand)] = True
        chosen = verdict.ranked(listed.nonzero().flatten()).tolist()
        if not chosen:
            return cls(())
        judged = None if verdict.judged is None else verdict.judged.nonzero().flatten()
        positions = judged if judged is None or len(judged) else torch.tensor(sorted(chosen))
        source = source_for(data.dataset, sample=sample, positions=positions, settings=data.settings)
        names = class_names_of(data.dataset, sample=sample) if class_names is None else class_names
        word: DecisionWord = "flagged" if flag_only else "removed"
        return cls(
            tuple(
                ManifestRow(
                    **row_values(verdict, index, names),
                    decision=by_hand.get(index, word),
                    content_hash=digest,
                    path=shortened_text(file_of(data.dataset, index)),
                )
                for index, digest in zip(chosen, content_hashes(source, chosen), strict=True)
            )
        )

    def with_kept(self, sample_ids: Iterable[int]) -> Self:
        """Return a copy in which some samples are kept by hand.

        Args:
            sample_ids: `sample_id` of rows of this manifest.

        Raises:
            ManifestError: If there is no row with such an id.
        """
        wanted = {int(each) for each in sample_ids}
        unknown = sorted(wanted - {row.sample_id for row in self.rows})
        if unknown:
            raise ManifestError(
                f"Expected `sample_ids` of rows of the manifest, but there is no row with {unknown[0]}.\n"
                "Samples without a row are kept anyway."
            )
        rows = (replace(row, decision="kept-by-hand") if row.sample_id in wanted else row for row in self.rows)
        return type(self)(tuple(rows))

    def kept_by_hand(self, dataset: Any, *, sample: SampleSpec | None = None, search: bool = False) -> Tensor:
        """Return the positions of the samples that are kept by hand, in a data set that may have changed.

        A row identifies a sample by content *and* label. The lookup tries the position `sample_id`, then samples with
        the same path, then, with `search`, all samples with the same label. No other sample is ever kept instead, and
        among samples with the same content each row keeps one.

        Args:
            dataset: Data set of the manifest, or a later version of it, or a loader of it, of which only the samples
                need be readable that its sampler can draw. Unless its raw images are accessible, it must return samples
                in the same form.
            sample: Location of input and label in a sample. Default: detected.
            search: Whether to read all samples with the label of a row that is not found otherwise. Default: `False`.

        Returns:
            int64 `(K,)`, ascending.

        Raises:
            ManifestError: If the sample of a row is not found.
            UnreadableSampleError: If a sample cannot be read.
        """
        return self._found("kept-by-hand", dataset, sample=sample, search=search)

    def removed_by_hand(self, dataset: Any, *, sample: SampleSpec | None = None, search: bool = False) -> Tensor:
        """Return the positions of the samples that are removed by hand; see `kept_by_hand`."""
        return self._found("removed-by-hand", dataset, sample=sample, search=search)

    def _found(self, word: DecisionWord, dataset: Any, *, sample: SampleSpec | None, search: bool) -> Tensor:
        rows = [row for row in self.rows if row.decision == word]
        if not rows:
            return torch.zeros(0, dtype=torch.int64)
        data = readable(dataset, "dataset")
        source = source_for(data.dataset, sample=sample, positions=data.positions, settings=data.settings)
        found = find_samples(rows, source, search=search, positions=data.positions)
        missing = [row for row in rows if found[row.sample_id] is None]
        if missing:
            raise ManifestError(_not_found(missing, word, search=search))
        return torch.tensor(sorted(index for index in found.values() if index is not None))

    def diff(self, other: "Manifest") -> ManifestDiff:
        """Compare with the manifest of a later run.

        Rows with the same content and label refer to the same sample. If several match, those with the same `sample_id`
        are paired first.
        """
        return compare_rows(self.rows, other.rows)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the manifest, atomically: as Parquet if the path ends in `.parquet`, otherwise as CSV in UTF-8.

        A CSV file is safe to open in a spreadsheet.

        Raises:
            OSError: If the file cannot be written.
            ValueError: If the path ends in `.parquet` and `pyarrow` is not installed.
        """
        votes = dict.fromkeys(name for row in self.rows for name in row.votes)
        (write_parquet if _is_parquet(path) else write_csv)(path, self.rows, votes)


def write_manifest(
    path: str | os.PathLike[str],
    verdict: Verdict,
    dataset: Any,
    *,
    sample: SampleSpec | None = None,
    class_names: Sequence[str] | None = None,
    kept_by_hand: Tensor | None = None,
    removed_by_hand: Tensor | None = None,
    flag_only: bool = False,
) -> Manifest:
    """Build the manifest of a verdict, write it and return it; see `Manifest.from_verdict` for the arguments.

    Example:
        >>> import tempfile
        >>> from lightning_poison.testing.tiny_images import TinyImages
        >>> from lightning_poison.sanitization.evidence import Evidence
        >>> scores, p_values = torch.tensor([0.2, 9.1, 0.4]).double(), torch.tensor([0.8, 0.001, 0.6]).double()
        >>> thresholds = torch.full((3,), 4.0).double()
        >>> verdict = Verdict(
        ...     scores, p_values, scores <= 4, torch.tensor([0, 1, 2]), torch.tensor([0, 2, 2]), thresholds,
        ...     Evidence(True, 0.3, 0.1, 0.8, 0.95, 0.003), "trusted", 0.01, scorer="likelihood", fingerprint="5f0c"
        ... )
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     manifest = write_manifest(f"{folder}/manifest.csv", verdict, TinyImages(3))
        ...     manifest == read_manifest(f"{folder}/manifest.csv"), [row.sample_id for row in manifest.rows]
        (True, [1])
    """
    manifest = Manifest.from_verdict(
        verdict, dataset, sample=sample, class_names=class_names, kept_by_hand=kept_by_hand,
        removed_by_hand=removed_by_hand, flag_only=flag_only,
    )  # fmt: skip
    manifest.write(path)
    return manifest


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Read a manifest that may have been edited: Parquet if the path ends in `.parquet`, otherwise CSV.

    Raises:
        FileNotFoundError: If the file does not exist.
        ManifestError: If the file cannot be parsed. The message names file, line, column and value.
        ValueError: If the path ends in `.parquet` and `pyarrow` is not installed.

    Example:
        >>> import tempfile
        >>> row = ManifestRow(4, 1, 2, "cat", "dog", 9.5, 0.001, None, 8.0, None, "removed", f"raw:{0:032}", "5f0c")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Manifest((row,)).write(f"{folder}/manifest.csv")
        ...     read_manifest(f"{folder}/manifest.csv").rows == (row,)
        True
    """
    shown = printable(os.fspath(checked_path(path)), limit=500)
    if not Path(path).is_file():
        raise FileNotFoundError(f"Expected a manifest, but there is no file at {shown}.")
    rows: dict[int, ManifestRow] = {}
    for row in (read_parquet if _is_parquet(path) else read_csv)(path, shown):
        if row.sample_id in rows:
            raise ManifestError(
                f"Expected a unique `sample_id` in each row, but got {row.sample_id} twice in the manifest {shown}.\n"
                f"{REPAIR_HINT}"
            )
        rows[row.sample_id] = row
    return Manifest(tuple(rows.values()))


def keep_by_hand(path: str | os.PathLike[str], sample_ids: Iterable[int]) -> Manifest:
    """Mark samples in a manifest file as kept by hand; later runs keep them.

    Raises:
        FileNotFoundError: If the file does not exist.
        ManifestError: If the file cannot be parsed, or there is no row with such an id. The file stays unchanged.

    Example:
        >>> import tempfile
        >>> row = ManifestRow(4, 1, 2, "cat", "dog", 9.5, 0.001, None, 8.0, None, "removed", f"raw:{0:032}", "5f0c")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Manifest((row,)).write(f"{folder}/manifest.csv")
        ...     [row.decision for row in keep_by_hand(f"{folder}/manifest.csv", [4]).rows]
        ['kept-by-hand']
    """
    manifest = read_manifest(path).with_kept(sample_ids)
    manifest.write(path)
    return manifest


def set_aside(path: str | os.PathLike[str], manifest: Manifest) -> Path | None:
    """Rename the manifest in a file if it has decisions by hand that its replacement lacks, or cannot be read.

    Args:
        path: File that the replacement will be written to. It need not exist.
        manifest: The replacement.

    Returns:
        The new path, `manifest.previous-1.csv` or a larger number for `manifest.csv`; `None` if nothing would be lost.

    Raises:
        OSError: If the file cannot be renamed.

    Example:
        >>> import tempfile
        >>> row = ManifestRow(4, 1, 2, "cat", "dog", 9.5, 0.001, None, 8.0, None, "removed", f"raw:{0:032}", "5f0c")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Manifest((row,)).with_kept([4]).write(f"{folder}/manifest.csv")
        ...     set_aside(f"{folder}/manifest.csv", Manifest((row,))).name
        'manifest.previous-1.csv'
    """
    target = Path(checked_path(path))
    if not target.exists():
        return None
    with contextlib.suppress(ManifestError):
        if _decided_by_hand(read_manifest(target)) <= _decided_by_hand(manifest):
            return None
    return renamed_to_previous(target)


def renamed_to_previous(path: Path) -> Path:
    """Rename `NAME.SUFFIX` to `NAME.previous-1.SUFFIX`, or a larger number that is free, and return the new path.

    Raises:
        OSError: If the file cannot be renamed.
    """
    for number in itertools.count(1):
        renamed = path.with_name(f"{path.stem}.previous-{number}{path.suffix}")
        with contextlib.suppress(FileExistsError):
            renamed.touch(exist_ok=False)  # two runs never choose the same name
            return path.replace(renamed)
    raise AssertionError("unreachable: a count never ends")


def _decided_by_hand(manifest: Manifest) -> set[tuple[int, str, str]]:
    decided = (row for row in manifest.rows if row.decision.endswith("-by-hand"))
    return {(row.sample_id, row.decision, row.content_hash) for row in decided}


def _is_parquet(path: str | os.PathLike[str]) -> bool:
    return Path(checked_path(path)).suffix.lower() == ".parquet"


def _positions_of(mask: Tensor | None) -> set[int]:
    return set() if mask is None else set(mask.nonzero().flatten().tolist())


def _check_positions(name: str, indices: Tensor | None, length: int) -> set[int]:
    if indices is None:
        return set()
    positions = set(index_vector(name, indices).tolist())
    outside = sorted(index for index in positions if not 0 <= index < length)
    if outside:
        raise ValueError(expected(name, f"positions in the data set of {length} samples", outside[0]))
    return positions


def _not_found(rows: list[ManifestRow], word: DecisionWord, *, search: bool) -> str:
    listed = "\n".join(shortened([f"  {row}" for row in rows], limit=5))
    hint = "Delete their rows from the manifest" if search else "Pass `search=True`, or delete their rows"
    decided = word.replace("-", " ")
    return (
        f"Expected the samples that are {decided} in the data set, but {len(rows)} of them were not found "
        f"with the same content and label:\n{listed}\n{hint} to have them scored again."
    )
