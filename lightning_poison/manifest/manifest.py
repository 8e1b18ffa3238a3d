"""The quarantine manifest: which samples are suspicious, why, what became of them, and the undoing of it."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from lightning_poison.checks import expected, index_vector
from lightning_poison.data.labels import spec_of
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.errors import ManifestError
from lightning_poison.manifest.cells import DecisionWord
from lightning_poison.manifest.diff import ManifestDiff, compare_rows, shortened
from lightning_poison.manifest.matching import content_hash, file_of, find_samples
from lightning_poison.manifest.rows import ManifestRow, findings_on, read_rows, write_rows
from lightning_poison.sanitization.verdict import Verdict


@dataclass(frozen=True)
class Manifest:
    """The suspicious samples of a data set, one row each.

    Args:
        rows: in the order of the file; one made from a verdict has the most suspicious first.

    Example:
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
        found = [row.decision for row in self.rows]
        counts = ", ".join(f"{found.count(word)} {word}" for word in dict.fromkeys(found)) or "nothing suspicious"
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
        flag_only: bool = False,
    ) -> Self:
        """Return a row for each sample that is not kept, and for each that is kept by hand.

        Those samples are read once more, under a fixed random state.

        Args:
            verdict: of N samples.
            dataset: the map-style data set of N samples that was judged.
            sample: where the input stands in a sample; found by itself where it is `None`.
            class_names: the names of the classes, for people; the data set's own `classes` are not consulted.
            kept_by_hand: int64 `(K,)`, positions that a person keeps, whatever the verdict says.
            flag_only: whether the samples that the verdict does not keep are trained on nevertheless.

        Raises:
            ValueError: where verdict and data set differ in length, or a position lies outside it.
            UnreadableSampleError: where a sample cannot be read.
        """
        if len(dataset) != len(verdict):
            raise ValueError(expected("dataset", f"the {len(verdict)} samples that were judged", f"{len(dataset)}"))
        by_hand = _positions(kept_by_hand, len(verdict))
        ranking = verdict.ranking.tolist()
        spec = sample or spec_of(dataset)
        word: DecisionWord = "flagged" if flag_only else "removed"
        return cls(
            tuple(
                ManifestRow(
                    **findings_on(verdict, index, class_names or ()),
                    decision="kept-by-hand" if index in by_hand else word,
                    content_hash=content_hash(dataset, index, sample=spec),
                    path=file_of(dataset, index),
                )
                for index in ranking
                if index in by_hand or not verdict.keep[index]
            )
        )

    def with_kept(self, sample_ids: Iterable[int]) -> Self:
        """Return the manifest with some samples kept by hand.

        Args:
            sample_ids: ids of rows of this manifest.

        Raises:
            ManifestError: where there is no row of an id.
        """
        wanted = {int(each) for each in sample_ids}
        unknown = sorted(wanted - {row.sample_id for row in self.rows})
        if unknown:
            raise ManifestError(
                f"Expected `sample_ids` of rows of the manifest, but there is none of {unknown[0]}.\n"
                "Samples that have no row are kept already."
            )
        rows = (replace(row, decision="kept-by-hand") if row.sample_id in wanted else row for row in self.rows)
        return type(self)(tuple(rows))

    def kept_by_hand(self, dataset: Any, *, sample: SampleSpec | None = None, search: bool = False) -> Tensor:
        """Return the positions of the samples that a person keeps, in a data set that may have changed since.

        A row stands for the sample of its content *and* label. It is looked for at its `sample_id`, then under its path
        where the data set knows paths, then, with `search`, among all samples of its label. No other sample is ever
        kept in its place, and of several samples of the same content one row keeps one.

        Args:
            dataset: the data set that the manifest was written for, or a later state of it. It must return samples as
                the one that the manifest was written for did, unless its raw images can be reached.
            sample: where input and label stand in a sample; found by itself where it is `None`.
            search: whether to read all samples of a row's label where nothing else finds it.

        Returns:
            int64 `(K,)`, ascending.

        Raises:
            ManifestError: where the sample of a row is not found.
            UnreadableSampleError: where a sample cannot be read.
        """
        rows = [row for row in self.rows if row.decision == "kept-by-hand"]
        if not rows:
            return torch.zeros(0, dtype=torch.int64)
        found = find_samples(rows, dataset, sample=sample or spec_of(dataset), search=search)
        missing = [row for row in rows if found[row.sample_id] is None]
        if missing:
            raise ManifestError(_not_found(missing, search=search))
        return torch.tensor(sorted(place for place in found.values() if place is not None))

    def diff(self, other: "Manifest") -> ManifestDiff:
        """Compare with another manifest, as that of a later run.

        Rows stand for the same sample where content and label agree; among samples of the same content those of the
        same `sample_id` are matched first.
        """
        return compare_rows(self.rows, other.rows)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the manifest as CSV in UTF-8, atomically, safe to open in a spreadsheet."""
        write_rows(path, self.rows)


def write_manifest(
    path: str | os.PathLike[str],
    verdict: Verdict,
    dataset: Any,
    *,
    sample: SampleSpec | None = None,
    class_names: Sequence[str] | None = None,
    kept_by_hand: Tensor | None = None,
    flag_only: bool = False,
) -> Manifest:
    """Write the manifest of a verdict and return it; see `Manifest.from_verdict` and `Manifest.write`.

    Example:
        >>> import tempfile
        >>> from lightning_poison.testing.tiny_images import TinyImages
        >>> from lightning_poison.sanitization.verdict import Evidence
        >>> scores, p_values = torch.tensor([0.2, 9.1, 0.4]), torch.tensor([0.8, 0.001, 0.6])
        >>> verdict = Verdict(
        ...     scores, p_values, scores <= 4, torch.tensor([0, 1, 2]), torch.tensor([0, 2, 2]), torch.full((3,), 4.0),
        ...     Evidence(True, 0.3, 0.1, 0.8, 0.95, 0.003), "trusted", 0.01, scorer="likelihood", fingerprint="5f0c"
        ... )
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     manifest = write_manifest(f"{folder}/manifest.csv", verdict, TinyImages(3))
        ...     manifest == read_manifest(f"{folder}/manifest.csv"), [row.sample_id for row in manifest.rows]
        (True, [1])
    """
    manifest = Manifest.from_verdict(
        verdict, dataset, sample=sample, class_names=class_names, kept_by_hand=kept_by_hand, flag_only=flag_only
    )
    manifest.write(path)
    return manifest


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Read a manifest, and what a person made of it.

    Raises:
        FileNotFoundError: where there is no such file.
        ManifestError: where it cannot be parsed; the message names line, column and value.

    Example:
        >>> import tempfile
        >>> row = ManifestRow(4, 1, 2, "cat", "dog", 9.5, 0.001, None, 8.0, None, "removed", f"raw:{0:032}", "5f0c")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Manifest((row,)).write(f"{folder}/manifest.csv")
        ...     read_manifest(f"{folder}/manifest.csv").rows == (row,)
        True
    """
    return Manifest(read_rows(path))


def keep_by_hand(path: str | os.PathLike[str], sample_ids: Iterable[int]) -> Manifest:
    """Keep samples of a manifest on disk by hand: their decisions are written anew, and a later run obeys them.

    Raises:
        FileNotFoundError: where there is no such file.
        ManifestError: where it cannot be parsed, or there is no row of an id; the file is as it was then.

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


def _positions(indices: Tensor | None, length: int) -> set[int]:
    if indices is None:
        return set()
    found = set(index_vector("kept_by_hand", indices).tolist())
    outside = sorted(index for index in found if not 0 <= index < length)
    if outside:
        raise ValueError(expected("kept_by_hand", f"positions in the data set of {length}", outside[0]))
    return found


def _not_found(rows: list[ManifestRow], *, search: bool) -> str:
    listed = "\n".join(shortened([f"  {row}" for row in rows], shown=5))
    look = "" if search else "Look through the whole data set with `search=True`, or "
    return (
        f"Expected the data set to hold the samples that were kept by hand, but {len(rows)} of them "
        f"are not where they were with the content and label that they had:\n{listed}\n"
        f"{look}delete their rows from the manifest to have them judged anew."
    )
