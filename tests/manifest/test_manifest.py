"""Tests of the manifest: contents, round trip, keeping samples by hand, and matching to changed data sets."""

import csv
import dataclasses
import math
import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from lightning_poison.attacks.objectives import AvailabilityObjective
from lightning_poison.attacks.poison import Poison
from lightning_poison.attacks.poisoned_dataset import PoisonedDataset
from lightning_poison.checks import printable
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.data.source import Readable, Source
from lightning_poison.data.views import SanitizedDataset
from lightning_poison.errors import ManifestError
from lightning_poison.manifest.manifest import Manifest, keep_by_hand, read_manifest, set_aside, write_manifest
from lightning_poison.manifest.matching import content_hash, file_of, find_samples
from lightning_poison.manifest.rows import ManifestRow
from lightning_poison.sanitization.evidence import Evidence
from lightning_poison.sanitization.verdict import Verdict
from lightning_poison.testing.tiny_images import TinyImages

SPEC = SampleSpec()


def verdict_of(dataset, removed, *, posterior=False, votes=None):
    """Return a verdict with scores that increase by 0.1 per sample."""
    count = len(dataset)
    labels = torch.tensor([dataset[index][1] for index in range(count)])
    keep = torch.ones(count, dtype=torch.bool)
    keep[torch.tensor(removed, dtype=torch.int64)] = False
    classes = int(labels.max()) + 1
    return Verdict(
        scores=torch.arange(count).double() / 10,
        p_values=1 / (torch.arange(count).double() + 2),
        keep=keep,
        labels=labels,
        suggested_labels=(labels + 1) % classes,
        thresholds=torch.full((classes,), torch.inf if posterior else -0.5, dtype=torch.float64),
        evidence=Evidence(True, 0.1, 0.05, 0.2, 0.95, 0.003),
        calibration="wrong-label null" if posterior else "trusted",
        false_positive_rate=0.01,
        scorer="likelihood",
        fingerprint="0123456789abcdef" * 4,
        posterior=torch.arange(count).double() / count if posterior else None,
        posterior_threshold=0.1 if posterior else None,
        votes=votes or {},
    )


@pytest.fixture
def folder(tmp_path):
    """An image folder of two classes with four images each."""
    generator = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(4):
            pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.png")
    return tmp_path / "images"


def image_folder(root, transform=None):
    return ImageFolder(str(root), transform=transform or v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32)]))


def augmenting():
    return v2.Compose([v2.ToImage(), v2.RandomCrop(8, padding=2), v2.ToDtype(torch.float32, scale=True)])


def test_rows_contain_findings_of_verdict():
    dataset = TinyImages(6)
    manifest = Manifest.from_verdict(verdict_of(dataset, [2, 4]), dataset, class_names=["a", "b", "c"])
    row = manifest.rows[0]
    assert [each.sample_id for each in manifest.rows] == [4, 2]
    assert (row.label, row.label_name, row.suggested_label, row.suggested_name) == (1, "b", 2, "c")
    assert (row.score, row.p_value, row.score_threshold) == (0.4, 1 / 6, -0.5)
    assert (row.posterior, row.posterior_threshold, row.path) == (None, None, "")
    assert (row.decision, row.fingerprint) == ("removed", "0123456789abcdef")
    assert row.content_hash == content_hash(dataset, 4, sample=SPEC) != manifest.rows[1].content_hash


def test_posterior_threshold_replaces_score_threshold():
    dataset = TinyImages(6)
    row = Manifest.from_verdict(verdict_of(dataset, [3], posterior=True), dataset).rows[0]
    assert (row.posterior, row.posterior_threshold, row.score_threshold) == (0.5, 0.1, None)


def test_suggested_label_may_be_missing(tmp_path):
    dataset = TinyImages(6)
    verdict = dataclasses.replace(verdict_of(dataset, [3]), suggested_labels=torch.full((6,), -1))
    manifest = write_manifest(tmp_path / "m.csv", verdict, dataset, class_names=["a", "b", "c"])
    assert manifest.rows[0].suggested_label is None
    assert manifest.rows[0].suggested_name == ""
    assert read_manifest(tmp_path / "m.csv") == manifest
    assert "looks like" not in str(manifest)


@pytest.mark.parametrize("posterior", [True, False])
def test_round_trip_is_exact(tmp_path, folder, posterior):
    dataset = image_folder(folder)
    votes = {"=likelihood": torch.rand(8).double(), "a;b\n\\": torch.rand(8).double()}
    verdict = verdict_of(dataset, [1, 6, 7], posterior=posterior, votes=votes)
    written = write_manifest(
        tmp_path / "m.csv", verdict, dataset, class_names=dataset.classes, kept_by_hand=torch.tensor([0, 6])
    )
    assert read_manifest(tmp_path / "m.csv") == written
    assert [(row.sample_id, row.decision) for row in written.rows] == [
        (7, "removed"),
        (6, "kept-by-hand"),
        (1, "removed"),
        (0, "kept-by-hand"),
    ]
    assert written.rows[0].votes == {name: float(vote[7]) for name, vote in votes.items()}
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["m.csv"]


def test_samples_are_removed_by_hand_and_found_again(tmp_path):
    dataset, path = TinyImages(12), tmp_path / "m.csv"
    verdict = verdict_of(dataset, [2, 4])
    by_hand = {"kept_by_hand": torch.tensor([4]), "removed_by_hand": torch.tensor([9])}
    written = write_manifest(path, verdict, dataset, **by_hand)
    assert {row.sample_id: row.decision for row in written.rows} == {
        2: "removed", 4: "kept-by-hand", 9: "removed-by-hand",
    }  # fmt: skip
    assert read_manifest(path) == written
    assert written.removed_by_hand(dataset).tolist() == [9]
    assert written.kept_by_hand(dataset).tolist() == [4]
    with pytest.raises(ManifestError, match="samples that are removed by hand in the data set, but 1 of them were not"):
        written.removed_by_hand(TinyImages(6))
    with pytest.raises(ValueError, match="`removed_by_hand` to be positions that are not kept by hand, but got 4"):
        Manifest.from_verdict(verdict, dataset, kept_by_hand=torch.tensor([4]), removed_by_hand=torch.tensor([4]))
    with pytest.raises(ValueError, match="`removed_by_hand` to be positions in the data set of 12 samples"):
        Manifest.from_verdict(verdict, dataset, removed_by_hand=torch.tensor([12]))


def test_what_was_removed_from_the_verdict_by_hand_is_listed_as_such():
    dataset = TinyImages(12)
    verdict = verdict_of(dataset, [2, 4]).with_removed(torch.tensor([4, 7, 9]))
    expected = {2: "removed", 4: "removed", 7: "removed-by-hand", 9: "removed-by-hand"}
    nothing = torch.zeros(0, dtype=torch.int64)  # what a run without a manifest passes
    for parts, change in (
        ({}, {}),
        ({"removed_by_hand": nothing, "kept_by_hand": nothing}, {}),
        ({"removed_by_hand": torch.tensor([4])}, {4: "removed-by-hand"}),
        ({"kept_by_hand": torch.tensor([9])}, {9: "kept-by-hand"}),
        ({"flag_only": True}, {2: "flagged", 4: "flagged"}),  # decisions of the user are for later runs too
    ):
        rows = Manifest.from_verdict(verdict, dataset, **parts).rows
        assert {row.sample_id: row.decision for row in rows} == expected | change


def test_manifest_is_set_aside_only_if_decisions_would_be_lost(tmp_path):
    dataset, path = TinyImages(12), tmp_path / "m.csv"
    verdict = verdict_of(dataset, [2, 4])
    plain = Manifest.from_verdict(verdict, dataset)
    edited = Manifest.from_verdict(verdict, dataset, removed_by_hand=torch.tensor([9]))
    assert set_aside(path, plain) is None
    plain.write(path)
    assert set_aside(path, plain) is None
    edited.write(path)
    assert set_aside(path, edited) is None
    assert set_aside(path, plain.with_kept([4])) == tmp_path / "m.previous-1.csv"
    assert read_manifest(tmp_path / "m.previous-1.csv") == edited
    assert not path.exists()
    path.write_text("no manifest")
    assert set_aside(str(path), edited) == tmp_path / "m.previous-2.csv"
    assert (tmp_path / "m.previous-2.csv").read_text() == "no manifest"


def test_flag_only_marks_rows_as_flagged(tmp_path):
    dataset = TinyImages(6)
    manifest = write_manifest(tmp_path / "m.csv", verdict_of(dataset, [1]), dataset, flag_only=True)
    assert [row.decision for row in manifest.rows] == ["flagged"]


def test_empty_manifest(tmp_path):
    dataset = TinyImages(6)
    manifest = write_manifest(tmp_path / "m.csv", verdict_of(dataset, []), dataset)
    assert len(read_manifest(tmp_path / "m.csv")) == 0
    assert str(manifest) == "0 samples: none suspicious"
    assert manifest.kept_by_hand(dataset).tolist() == []


def test_str_shows_rows():
    dataset = TinyImages(6)
    manifest = Manifest.from_verdict(verdict_of(dataset, [4, 5]), dataset, class_names=["a", "b\x1b[2J", "c"])
    lines = str(manifest).splitlines()
    assert lines[0] == "2 samples: 2 removed"
    assert lines[2] == r"  sample 4: labeled 1 (b\x1b[2J), looks like 2 (c), p = 0.17, removed"


def test_refuses_data_set_of_other_length():
    with pytest.raises(ValueError, match=r"Expected `dataset` to be the 6 samples of the verdict, but got 5"):
        Manifest.from_verdict(verdict_of(TinyImages(6), [1]), TinyImages(5))


def test_refuses_positions_outside_data_set():
    dataset = TinyImages(6)
    with pytest.raises(ValueError, match=r"`kept_by_hand` to be positions in the data set of 6 samples, but got 6"):
        Manifest.from_verdict(verdict_of(dataset, [1]), dataset, kept_by_hand=torch.tensor([2, 6]))


HOSTILE = [
    "=cmd|'/c calc'!A1",
    "+1",
    "-1",
    "@sum(1)",
    "\t=1",
    "\r=1",
    " =1",
    "\uff1d1",
    "'quoted",
    "a;=1+1",
    'a,"=1"',
    "\\x41",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_formulas_are_escaped_and_restored(tmp_path, text):
    dataset = TinyImages(3)
    manifest = write_manifest(tmp_path / "m.csv", verdict_of(dataset, [0]), dataset, class_names=[text, "b", "c"])
    with (tmp_path / "m.csv").open(encoding="utf-8", newline="") as file:
        cell = next(csv.DictReader(file))["label_name"]
    assert not cell.lstrip().startswith(("=", "+", "-", "@", "\t", "\r", "\uff1d"))
    assert ";" not in cell
    assert cell.isprintable()
    assert manifest.rows[0].label_name == read_manifest(tmp_path / "m.csv").rows[0].label_name == text


def edit_cell(path, line, column, value):
    """Edit a cell of a manifest file."""
    with path.open(encoding="utf-8", newline="") as file:
        lines = list(csv.reader(file))
    lines[line - 1][lines[0].index(column)] = value
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(lines)


MALFORMED = [
    ("sample_id", "-1"),
    ("sample_id", "1.0"),
    ("label", ""),
    ("label", "dog"),
    ("suggested_label", "-1"),
    ("label_name", r"C:\dogs"),
    ("path", r"\Uffffffff"),
    ("score", "0,4"),
    ("score", "nan"),
    ("p_value", "1.5"),
    ("p_value", ""),
    ("posterior", "2"),
    ("score_threshold", "inf"),
    ("posterior_threshold", "x"),
    ("decision", "keep"),
    ("content_hash", "1.2E+31"),
    ("vote:pixels", "7"),
    ("sample_id", "1\0"),
    ("sample_id", "٣"),
    ("sample_id", "9" * 16),
    ("label", "-2"),
    ("label_name", "a\0b"),
    ("label_name", "a\tb"),
    ("label_name", "n" * 4_097),
    ("score", "1_0"),
    ("score", "1e999"),
    ("score", "Infinity"),
    ("p_value", "nan"),
    ("decision", "Removed"),
    ("content_hash", "raw:" + "0" * 33),
]


@pytest.mark.parametrize(("column", "value"), MALFORMED)
def test_error_names_invalid_cell(tmp_path, column, value):
    dataset = TinyImages(6)
    path = tmp_path / "m.csv"
    write_manifest(path, verdict_of(dataset, [2, 4], votes={"pixels": torch.ones(6).double()}), dataset)
    edit_cell(path, 3, column, value)
    with pytest.raises(ManifestError, match=rf"`{column}` in line 3 of the manifest") as caught:
        read_manifest(path)
    assert str(path) in str(caught.value)
    assert f"'{printable(value, limit=80)}'" in str(caught.value)
    assert "Correct the file" in str(caught.value)


GOOD = {
    "sample_id": 4, "label": 1, "suggested_label": None, "label_name": "cat", "suggested_name": "", "score": 9.5,
    "p_value": 0.001, "posterior": None, "score_threshold": 8, "posterior_threshold": None, "decision": "removed",
    "content_hash": f"raw:{0:032}", "fingerprint": "5f0c", "votes": {"a": 0.5},
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sample_id", -1), ("sample_id", 1.0), ("sample_id", True), ("sample_id", "4"), ("sample_id", np.int64(4)),
        ("label", -2), ("suggested_label", -1), ("label_name", None), ("label_name", "n" * 4_097),
        ("score", math.nan), ("score", "9"), ("p_value", 1.5), ("p_value", None), ("posterior", math.nan),
        ("score_threshold", math.inf), ("posterior_threshold", 2), ("decision", "keep"), ("decision", None),
        ("content_hash", "0"), ("fingerprint", 5), ("path", 5), ("votes", {"a": 2}), ("votes", {"a": None}),
        ("votes", {5: 0.5}),
    ],
)  # fmt: skip
def test_rows_are_held_to_the_rules_of_cells(name, value):
    with pytest.raises(ValueError, match=rf"Expected `{'vote' if name == 'votes' else name}"):
        ManifestRow(**{**GOOD, name: value})


def test_numbers_of_numpy_and_long_texts_survive_the_file(tmp_path):
    row = ManifestRow(**{**GOOD, "score": np.float64(0.1), "label": -1, "path": "\U0001f600" * 4_096})
    Manifest((row,)).write(tmp_path / "m.csv")
    assert read_manifest(tmp_path / "m.csv").rows == (row,)


def test_long_names_are_shortened(tmp_path):
    dataset = TinyImages(6)
    verdict = verdict_of(dataset, [4], votes={"v" * 200_000: torch.ones(6).double()})
    manifest = write_manifest(tmp_path / "m.csv", verdict, dataset, class_names=["\0" * 50_000] * 3)
    assert len(manifest.rows[0].label_name) == 4_096
    assert read_manifest(tmp_path / "m.csv") == manifest


def test_samples_without_a_label_may_be_kept_by_hand(tmp_path):
    dataset = TinyImages(6)
    verdict = verdict_of(dataset, [4])
    verdict = dataclasses.replace(verdict, labels=torch.where(torch.arange(6) == 2, -1, verdict.labels))
    manifest = write_manifest(tmp_path / "m.csv", verdict, dataset, kept_by_hand=torch.tensor([2]))
    assert [(row.sample_id, row.label, row.score_threshold) for row in manifest.rows] == [(4, 1, -0.5), (2, -1, None)]
    assert read_manifest(tmp_path / "m.csv") == manifest


def test_refuses_invalid_files(tmp_path):
    dataset = TinyImages(6)
    path = tmp_path / "m.csv"
    with pytest.raises(FileNotFoundError, match="no file"):
        read_manifest(path)
    write_manifest(path, verdict_of(dataset, [2, 4]), dataset)
    good = path.read_text()
    faults = {
        good.replace(",", ";"): "the columns .* in line 1",
        good.replace("p_value", "p"): "no 'p_value'",
        good.replace("fingerprint", "fingerprint,note", 1): "also 'note'",
        good.replace("fingerprint", "fingerprint,label", 1): "one of them twice",
        good.replace("fingerprint", "fingerprint,vote:\\", 1): "backslash",
        good.replace("fingerprint", "fingerprint,vote:\\Uffffffff", 1): "names .* in which a backslash",
        good.replace("fingerprint", "fingerprint,vote:a,vote:\\x61", 1): "different column names",
        good + "7,removed\n": "Expected 16 cells in line 4 .* but got 2",
        good.replace("raw:", "raw:" + "0" * 200_000, 1): "cannot be read after line 1: field larger than",
        good.replace("raw:", '"raw:', 1): "cannot be read after line 1: ",
        good + good.splitlines()[1]: "unique `sample_id` in each row, but got 4 twice",
        good + '"': "cannot be read",
        "": "no 'sample_id'",
    }
    for text, message in faults.items():
        path.write_text(text)
        with pytest.raises(ManifestError, match=message) as caught:
            read_manifest(path)
        assert str(path) in str(caught.value)
    for damaged in (good.encode() + b"\xff", good.encode("utf-16"), "label_nämé".encode("latin-1")):
        path.write_bytes(damaged)
        with pytest.raises(ManifestError, match=r"text in UTF-8, but .*m\.csv has another encoding"):
            read_manifest(path)


def test_reads_file_saved_by_spreadsheet(tmp_path):
    dataset = TinyImages(6)
    path = tmp_path / "m.csv"
    manifest = write_manifest(path, verdict_of(dataset, [2, 4]), dataset)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    assert read_manifest(path) == manifest


def test_kept_by_hand_persists_in_later_runs(tmp_path):
    dataset, path = TinyImages(12), tmp_path / "m.csv"
    verdict = verdict_of(dataset, [2, 4, 9])
    write_manifest(path, verdict, dataset)
    keep_by_hand(path, [4])
    kept = read_manifest(path).kept_by_hand(dataset)
    assert kept.tolist() == [4]
    again = verdict.with_kept(kept)
    assert bool(again.keep[4])
    write_manifest(path, again, dataset, kept_by_hand=kept)
    assert read_manifest(path).kept_by_hand(dataset).tolist() == [4]
    assert {row.sample_id for row in read_manifest(path).rows} == {2, 4, 9}


def test_unknown_id_leaves_file_unchanged(tmp_path):
    dataset, path = TinyImages(6), tmp_path / "m.csv"
    write_manifest(path, verdict_of(dataset, [2]), dataset)
    before = path.read_bytes()
    with pytest.raises(ManifestError, match=r"there is no row with 5"):
        keep_by_hand(path, [2, 5])
    assert path.read_bytes() == before


def test_reordered_data_set_needs_search():
    dataset = TinyImages(12)
    manifest = Manifest.from_verdict(verdict_of(dataset, [2, 4]), dataset).with_kept([2, 4])
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0)).tolist()
    moved = Subset(dataset, order)
    with pytest.raises(ManifestError, match=r"kept by hand in the data set, but 2 of them") as caught:
        manifest.kept_by_hand(moved)
    assert "search=True" in str(caught.value)
    assert manifest.kept_by_hand(moved, search=True).tolist() == sorted([order.index(2), order.index(4)])


def test_refuses_changed_label_or_image():
    dataset = TinyImages(12)
    manifest = Manifest.from_verdict(verdict_of(dataset, [4]), dataset).with_kept([4])
    for search in (False, True):
        relabeled, repainted, shorter = TinyImages(12), TinyImages(12), TinyImages(4)
        relabeled.targets[4] = 0
        repainted.data[4, 0, 0, 0] ^= 1
        for changed in (relabeled, repainted, shorter):
            with pytest.raises(ManifestError, match=r"sample 4: labeled 1"):
                manifest.kept_by_hand(changed, search=search)


def test_each_row_keeps_one_duplicate():
    dataset = TinyImages(6)
    dataset.data[:], dataset.targets[:] = dataset.data[0], 0
    manifest = Manifest.from_verdict(verdict_of(dataset, [2, 4]), dataset).with_kept([4])
    assert manifest.kept_by_hand(dataset).tolist() == [4]
    assert manifest.kept_by_hand(Subset(dataset, [0, 1, 2]), search=True).tolist() == [0]
    assert manifest.with_kept([2]).kept_by_hand(Subset(dataset, [0, 1, 2]), search=True).tolist() == [0, 2]


def test_data_set_of_many_samples_is_searched_once_for_paths_of_rows(folder, monkeypatch):
    dataset = image_folder(folder)
    manifest = Manifest.from_verdict(verdict_of(dataset, [2, 6]), dataset).with_kept([2, 6])
    moved = Subset(dataset, list(range(7, -1, -1)))
    asked = []
    monkeypatch.setattr(
        "lightning_poison.manifest.matching.file_of", lambda *key: asked.append(key[1]) or file_of(*key)
    )
    assert manifest.kept_by_hand(moved).tolist() == [1, 5]
    assert asked == list(range(8))


def test_each_row_keeps_one_moved_duplicate(folder):
    dataset = TinyImages(6)
    dataset.data[:], dataset.targets[:] = dataset.data[0], 0
    manifest = Manifest.from_verdict(verdict_of(dataset, [3, 4]), dataset).with_kept([3, 4])
    assert manifest.kept_by_hand(Subset(dataset, [0, 1, 2]), search=True).tolist() == [0, 1]
    twice = ConcatDataset([image_folder(folder)] * 2)
    manifest = Manifest.from_verdict(verdict_of(twice, [1, 9]), twice).with_kept([1, 9])
    moved = ConcatDataset([Subset(image_folder(folder), [7, 6]), twice])
    assert manifest.kept_by_hand(moved).tolist() == [3, 11]


def test_samples_are_found_by_path(folder):
    dataset = image_folder(folder)
    manifest = Manifest.from_verdict(verdict_of(dataset, [2, 6]), dataset).with_kept([2, 6])
    Image.new("RGB", (8, 8)).save(folder / "cat" / "00.png")
    assert manifest.kept_by_hand(image_folder(folder)).tolist() == [3, 7]
    Image.new("RGB", (8, 8)).save(folder / "cat" / "2.png")
    with pytest.raises(ManifestError, match="but 1 of them"):
        manifest.kept_by_hand(image_folder(folder), search=True)


def test_augmentation_does_not_change_raw_hash(folder):
    plain, random_crops = image_folder(folder), image_folder(folder, augmenting())
    digest = content_hash(plain, 3, sample=SPEC)
    assert digest.startswith("raw:")
    assert {content_hash(random_crops, 3, sample=SPEC) for _ in range(5)} == {digest}


class Jittered(TensorDataset):
    """Noise on every access, from torch's, NumPy's and Python's random states."""

    def __getitem__(self, index):
        noise = torch.randn(4) + float(np.random.rand()) + random.random()  # noqa: NPY002, S311
        return self.tensors[0][index] + noise, int(self.tensors[1][index])


def test_inputs_are_hashed_under_fixed_random_state():
    dataset = Jittered(torch.eye(4), torch.tensor([0, 1, 0, 1]))
    manifest = Manifest.from_verdict(verdict_of(dataset, [1, 2]), dataset).with_kept([1, 2])
    assert manifest.rows[0].content_hash.startswith("input:")
    assert manifest.kept_by_hand(dataset).tolist() == [1, 2]
    assert manifest.kept_by_hand(Subset(dataset, [3, 2, 1, 0]), search=True).tolist() == [1, 2]


def test_global_random_state_is_unchanged():
    dataset = Jittered(torch.eye(4), torch.tensor([0, 1, 0, 1]))
    verdict = verdict_of(dataset, [1, 2])
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    manifest = Manifest.from_verdict(verdict, dataset).with_kept([1])
    manifest.kept_by_hand(Subset(dataset, [1, 0, 2]), search=True)
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_paths_are_read_through_views(folder):
    dataset = image_folder(folder)
    paths = [path for path, _ in dataset.samples]
    keep = torch.tensor([False, True] * 4)
    poison = Poison(torch.tensor([1, 8]), torch.tensor([0, 0]), AvailabilityObjective(), attack="x",
                    base_indices=torch.tensor([1, 2]))  # fmt: skip
    poisoned = PoisonedDataset(dataset, poison)
    assert [file_of(Subset(dataset, [5, 2]), index) for index in range(2)] == [paths[5], paths[2]]
    assert file_of(SanitizedDataset(dataset, keep), 2) == paths[5]
    assert file_of(ConcatDataset([Subset(dataset, [0]), dataset]), 4) == paths[3]
    assert file_of(poisoned, 1) == paths[1]
    assert file_of(poisoned, 8) == ""
    assert file_of(TinyImages(3), 0) == ""


def test_poison_over_subset_is_hashed_as_model_input():
    subset = Subset(TinyImages(12), [11, 10, 9, 8])
    repainted = torch.zeros(1, 1, 8, 8)
    poison = Poison(torch.tensor([2]), torch.tensor([0]), AvailabilityObjective(), attack="x", inputs=repainted)
    poisoned = PoisonedDataset(subset, poison)
    hashes = [content_hash(poisoned, index, sample=SPEC) for index in range(4)]
    assert len(set(hashes)) == 4
    assert hashes[2] == content_hash(TensorDataset(repainted, torch.tensor([0])), 0, sample=SPEC)


def test_diff_lists_added_removed_and_changed_rows():
    dataset = TinyImages(12)
    before = Manifest.from_verdict(verdict_of(dataset, [2, 4, 7]), dataset)
    after = Manifest.from_verdict(verdict_of(dataset, [4, 7, 9]), dataset).with_kept([4])
    found = before.diff(after)
    assert [row.sample_id for row in found.added] == [9]
    assert [row.sample_id for row in found.removed] == [2]
    assert [(one.decision, two.decision) for one, two in found.changed] == [("removed", "kept-by-hand")]
    assert not before.diff(before)
    lines = str(found).splitlines()
    assert lines[0] == "1 added, 1 removed, 1 changed"
    assert lines[-1].startswith("  ~ sample 4: labeled 1")
    assert lines[-1].endswith("kept-by-hand (was removed)")


def test_diff_pairs_duplicates_by_id():
    dataset = TinyImages(6)
    dataset.data[:], dataset.targets[:] = dataset.data[0], 0
    both = Manifest.from_verdict(verdict_of(dataset, [2, 4]), dataset)
    assert [row.sample_id for row in both.diff(Manifest.from_verdict(verdict_of(dataset, [4]), dataset)).removed] == [2]
    assert [row.sample_id for row in both.diff(Manifest.from_verdict(verdict_of(dataset, [2]), dataset)).removed] == [4]


def test_diff_pairs_moved_samples():
    dataset = TinyImages(12)
    before = Manifest.from_verdict(verdict_of(dataset, [2, 4]), dataset)
    moved = Subset(dataset, list(range(11, -1, -1)))
    assert not before.diff(Manifest.from_verdict(verdict_of(moved, [9, 7]), moved))
    found = before.diff(Manifest.from_verdict(verdict_of(moved, [9, 2]), moved))
    assert [row.sample_id for row in found.added] == [2]
    assert [row.sample_id for row in found.removed] == [4]


def test_failed_write_keeps_old_file(tmp_path, monkeypatch):
    dataset, path = TinyImages(6), tmp_path / "m.csv"
    manifest = write_manifest(path, verdict_of(dataset, [2]), dataset)
    before = path.read_bytes()
    broken = Manifest((*manifest.rows, None))
    with pytest.raises(AttributeError):
        broken.write(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_finds_samples_of_a_data_set_with_unlabeled_ones():
    data = [(torch.full((2,), float(index)), -1 if index % 4 == 3 else index % 2) for index in range(12)]
    digest = content_hash(data, 8, sample=SampleSpec())
    row = ManifestRow(**{**GOOD, "sample_id": 3, "label": 0, "path": "", "content_hash": digest})
    assert find_samples([row], Source(data, SampleSpec()), search=True) == {3: 8}


def test_hash_of_several_inputs_depends_on_their_values():
    data = [({"ids": torch.tensor([index, 1]), "mask": torch.ones(2)}, 0) for index in (1, 1, 2)]
    first, same, other = (content_hash(data, index, sample=SampleSpec()) for index in range(3))
    assert first == same != other


class Partly:
    """The first two samples are no training samples."""

    def __init__(self, first):
        self.first = first

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return self.first() if index < 2 else (torch.full((2,), float(index)), index % 2)


def fails():
    raise OSError("not a training sample")


def judged_from_two(removed):
    labels = [(0, 0)] * 2 + [(0, index % 2) for index in range(2, 12)]
    return dataclasses.replace(verdict_of(labels, removed), judged=torch.arange(12) >= 2)


@pytest.mark.parametrize("first", [fails, lambda: None, lambda: {"image": torch.zeros(3)}])
def test_samples_that_were_not_judged_are_not_read(first):
    data = Partly(first)
    manifest = Manifest.from_verdict(judged_from_two([4, 5]), data).with_kept([4])
    assert [row.sample_id for row in manifest.rows] == [5, 4]
    drawn = Readable(data, torch.arange(2, 12))
    assert manifest.kept_by_hand(drawn, search=True).tolist() == [4]
    moved = dataclasses.replace(
        manifest, rows=tuple(dataclasses.replace(row, sample_id=row.sample_id - 4) for row in manifest.rows)
    )
    assert moved.kept_by_hand(drawn, search=True).tolist() == [4]
    with pytest.raises(ManifestError, match="were not found"):
        moved.kept_by_hand(drawn)


def test_no_sample_is_read_for_an_empty_manifest():
    assert len(Manifest.from_verdict(judged_from_two([]), Partly(fails))) == 0


def test_loader_whose_collate_fn_makes_the_inputs():
    def collate(samples):
        kept = [sample for sample in samples if sample is not None]
        images = torch.stack([torch.as_tensor(np.array(image)).float() for image, _ in kept])
        return {"pixels": images, "labels": torch.tensor([{"a": 0, "b": 1}[name] for _, name in kept])}

    data = [None, *((Image.new("L", (4, 4), index), "ab"[index % 2]) for index in range(1, 12))]
    labels = [(0, max(index, 1) % 2) for index in range(12)]
    verdict = dataclasses.replace(verdict_of(labels, [4, 5]), judged=torch.arange(12) >= 1)
    loader = DataLoader(data, 4, collate_fn=collate)
    manifest = Manifest.from_verdict(verdict, loader).with_kept([4])
    assert manifest.kept_by_hand(loader).tolist() == [4]
    moved = dataclasses.replace(
        manifest, rows=tuple(dataclasses.replace(row, sample_id=row.sample_id + 6) for row in manifest.rows)
    )
    assert moved.kept_by_hand(loader, search=True).tolist() == [4]
