"""Files that were damaged or changed: loading gives an equal object, or one `ValueError` that names file and field."""

import json
import re
import struct
from random import Random

import pytest
import torch
from torch.utils.data import TensorDataset

from lightning_poison.attacks import InstancesObjective, PatchTrigger, Poison, TriggerObjective
from lightning_poison.manifest import Manifest, read_manifest
from lightning_poison.manifest.rows import ManifestRow
from lightning_poison.models import FitSettings
from lightning_poison.sanitization import Evidence, Verdict
from lightning_poison.scorers import LikelihoodScorer, PixelCountingScorer, load_scorer, save_scorer
from lightning_poison.serialization import read_tensors, write_tensors
from lightning_poison.statistics import SuspectGroup, SuspectPair

QUICK = FitSettings(epochs=1, batch_size=16, min_steps=0)


def verdict(**parts):
    given = {
        "scores": torch.tensor([0.1, 5.0, 2 / 3, 7.0]).double(),
        "p_values": torch.tensor([0.5, 1e-30, 0.3, 1e-40]).double(),
        "keep": torch.tensor([True, False, True, False]),
        "labels": torch.tensor([0, 1, 0, 1]),
        "suggested_labels": torch.tensor([0, 0, 0, -1]),
        "thresholds": torch.tensor([1.5, 4.0]).double(),
        "evidence": Evidence(
            True, 0.5, 0.25, 0.75, 0.95, 0.003,
            (SuspectPair(4, 9, 30, 25.4, 20.0, 31.0, 1e-12),), (SuspectGroup(0, 40, 12.3, 0.9, 0.1, True),),
        ),
        "calibration": "trusted",
        "false_positive_rate": 0.01,
        "scorer": "likelihood",
        "fingerprint": "ab" * 32,
        "votes": {"a.b": torch.full((4,), 0.5).double()},
        "settings": {"scorer": {"name": "x"}, "folds": 3, "trusted": None},
    }  # fmt: skip
    return Verdict(**{**given, **parts})


def poison(objective):
    indices, inputs = torch.tensor([3, 8, 10]), torch.linspace(0, 1, 12).view(3, 1, 2, 2)
    return Poison(indices, torch.tensor([1, 0, 1]), objective, attack="test", inputs=inputs, base_indices=indices,
                  role=torch.tensor([0, 1, 0]), settings={"steps": 3, "nested": {"a": [1, None]}})  # fmt: skip


def data():
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.rand(32, 1, 8, 8, generator=generator), torch.arange(32) % 2)


def scorer_kind(make, fitted):
    """Return how to write, read and describe a scorer, and the scorer."""

    def describe(scorer):
        return {name: (value.dtype, value.tolist()) for name, value in scorer.state().items()}

    return (lambda scorer, path: save_scorer(scorer, path)), (lambda path: load_scorer(make(), path)), describe, fitted


def parts_of_verdict(each):
    return [(name, value.dtype, value.tolist()) for name, value in each.tensors().items()], each.meta()


def parts_of_poison(each):
    tensors = [each.indices, each.labels, each.role, each.inputs, each.base_indices, *each.objective.tensors().values()]
    described = [None if value is None else (value.dtype, value.tolist()) for value in tensors]
    return described, each.attack, each.domain, each.settings, repr(each.objective)


@pytest.fixture(autouse=True)
def without_waiting_for_the_disk(monkeypatch):
    """Write thousands of files in little time."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def kinds():
    """Of each kind of file: how to write, read and describe an object, and an object."""
    pattern = torch.arange(4, dtype=torch.uint8).view(1, 2, 2)
    targets = InstancesObjective(torch.rand(2, 3), torch.tensor([0, 1]), torch.tensor([1, -1]))
    triggered = TriggerObjective(PatchTrigger(pattern, amplitude=0.5), torch.tensor([1, 0]), source_class=1)
    network = LikelihoodScorer(
        feature_size=4, backbone=torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4)), fit_settings=QUICK
    )
    return {
        "verdict": (Verdict.save, Verdict.load, parts_of_verdict, verdict()),
        "poison": (Poison.save, Poison.load, parts_of_poison, poison(targets)),
        "trigger": (Poison.save, Poison.load, parts_of_poison, poison(triggered)),
        "tensor scorer": scorer_kind(PixelCountingScorer, PixelCountingScorer().fit(data())),
        "network scorer": scorer_kind(lambda: type(network)(**arguments_of(network)), network_fitted(network)),
    }


def arguments_of(scorer):
    return {"feature_size": scorer.feature_size, "backbone": scorer.backbone, "fit_settings": scorer.fit_settings}


def network_fitted(scorer):
    return type(scorer)(**arguments_of(scorer)).fit(data())


def assert_equal_or_refused(read, describe, path, before, *, fields):
    """Load a file; accept an object equal to that before, or one `ValueError` that names the file and a field."""
    try:
        found = read(path)
    except ValueError as error:
        message = str(error)
        assert str(path) in message
        assert re.search(fields, message), message
        return False
    assert describe(found) == before
    return True


HEADER = r"safetensors format|of kind|`version`|checksum|with the settings in|`\w"
"""What is named of a file: its header or kind if these are damaged, else a field."""


def check_each(count, check):
    """Call `check` with generators of different seeds; an error shows the seed."""
    for seed in range(count):
        try:
            check(Random(seed))  # noqa: S311 (no secret)
        except BaseException as error:
            error.add_note(f"Generator: Random({seed})")
            raise


def byte_changes(random, content):
    """Flip bits, cut off, insert, remove, overwrite or swap bytes, more often in the header than elsewhere."""
    changed, start = bytearray(content), 8 + struct.unpack("<Q", content[:8])[0]
    for _ in range(random.randint(1, 3)):
        limit = max(1, len(changed) - 1)
        place = random.randint(0, random.choice([limit, min(start, limit), 8])) % limit
        action = random.choice(["flip", "flip", "flip", "cut", "insert", "remove", "write", "swap"])
        if action == "flip":
            changed[place] ^= 1 << random.randint(0, 7)
        elif action == "cut":
            del changed[place:]
        elif action == "insert":
            changed[place:place] = random.randbytes(random.randint(1, 8))
        elif action == "remove":
            del changed[place : place + random.randint(1, 16)]
        elif action == "write":
            new = random.choice([b"\0" * 8, b"\xff" * 8, b'"', b"[" * 16, b"{", b"9" * 12, b"NaN", b"F64", b"U8"])
            changed[place : place + len(new)] = new
        else:
            other = random.randint(0, limit) % limit
            changed[place], changed[other] = changed[other], changed[place]
        if not changed:
            break
    return bytes(changed)


def write_new(path, content):
    """Write a file anew: some file systems wait for the disk where a file is overwritten."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def check_bytes(kinds, folder, name, count):
    write, read, describe, made = kinds[name]
    path = folder / "file.safetensors"
    write(made, path)
    content, before = path.read_bytes(), describe(read(path))

    def check(random):
        write_new(path, byte_changes(random, content))
        assert_equal_or_refused(read, describe, path, before, fields=HEADER)

    check_each(count, check)


NUMBERS = [-1, 0, 1, 2, 0.5, 1e308, -1e-9, 2**63, 10**40, float("nan"), float("inf"), True, None]
LETTERS = ["a", "0", ".", " ", "\0", "\x1b", "\x7f", "\n", "é", "\u202e", "\ufffd", "名", "\U0001d518"]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool,
          torch.float16]  # fmt: skip


def text_of(random):
    return "".join(random.choices(LETTERS, k=random.randint(0, 4)))


def json_of(random, depth=2):
    """Return a number, a text, or a list or dict of at most two such values."""
    kind = random.choice(["number", "number", "text", "list", "dict"] if depth else ["number", "text"])
    if kind == "number":
        return random.choice(NUMBERS)
    if kind == "text":
        return text_of(random)
    inner = [json_of(random, depth - 1) for _ in range(random.randint(0, 2))]
    return inner if kind == "list" else {text_of(random): each for each in inner}


def change_number(random, tensors, meta, name):
    value = tensors[name].flatten()
    if value.numel():
        number = random.choice([-1, 0, 2, 0.5, 99] + [1e308, float("nan"), float("inf")] * value.is_floating_point())
        value[random.randrange(value.numel())] = torch.tensor(number, dtype=torch.float64).to(value.dtype)
    tensors[name] = value.view(tensors[name].shape)


def change_dtype(random, tensors, meta, name):
    tensors[name] = tensors[name].to(random.choice(DTYPES))


def change_shape(random, tensors, meta, name):
    flat = tensors[name].flatten()
    tensors[name] = random.choice([flat, tensors[name][None], flat[:1], flat[:0], flat.repeat(2)])


def swap_tensors(random, tensors, meta, name):
    other = random.choice(sorted(tensors))
    tensors[name], tensors[other] = tensors[other], tensors[name]


def drop_tensor(random, tensors, meta, name):
    del tensors[name]


def add_tensor(random, tensors, meta, name):
    tensors[random.choice(["odd\x1b", "votes.", "posterior", "objective.odd", "settings"])] = tensors[name]


def change_json(random, tensors, meta, name):
    owner = meta
    while nested := [each for each in owner.values() if isinstance(each, dict) and each]:
        if random.random() < 0.5:
            break
        owner = random.choice(nested)
    key = random.choice([*owner, "odd\x1b"])
    owner[key] = json_of(random)
    if random.random() < 0.5:
        del owner[key]


def nest_json(random, tensors, meta, name):
    meta[random.choice(sorted(meta))] = json.loads("[" * 500 + "]" * 500)


CHANGES = [change_number, change_dtype, change_shape, swap_tensors, drop_tensor, add_tensor, change_json, nest_json]


def part_changes(random, tensors, meta):
    """Change tensors and JSON values of a file that is then written with correct checksums."""
    tensors, meta = {name: value.clone() for name, value in tensors.items()}, json.loads(json.dumps(meta))
    for _ in range(random.randint(1, 2)):
        if tensors and meta:
            change = random.choice([*CHANGES, change_json, change_json])
            change(random, tensors, meta, random.choice(sorted(tensors)))
    return tensors, meta


def check_parts(kinds, folder, name, count):
    write, read, describe, made = kinds[name]
    path = folder / "file.safetensors"
    again = path.with_name("again")
    write(made, path)
    kind = name.split()[-1]
    tensors, meta = read_tensors(path, {"trigger": "poison"}.get(kind, kind))

    def check(random):
        path.unlink()
        write_tensors(path, *part_changes(random, tensors, meta))
        try:
            found = read(path)
        except ValueError as error:
            message = str(error)
            assert str(path) in message
            assert re.search(HEADER, message), message
            assert "\x1b" not in message
        else:  # another valid object: it is what the file says, and survives another round
            again.unlink(missing_ok=True)
            write(found, again)
            assert describe(read(again)) == describe(found)

    check_each(count, check)


KINDS = ["verdict", "poison", "trigger", "tensor scorer", "network scorer"]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("check", [check_bytes, check_parts])
def test_changed_files_give_equal_objects_or_one_error(kinds, tmp_path, name, check):
    check(kinds, tmp_path, name, 40)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("check", [check_bytes, check_parts])
def test_two_thousand_changed_files_give_equal_objects_or_one_error(kinds, tmp_path, name, check):
    check(kinds, tmp_path, name, 1_000)


ROWS = tuple(
    ManifestRow(
        sample_id=number,
        label=1,
        suggested_label=None if number else 2,
        label_name="cat; dog",
        suggested_name="",
        score=9.5,
        p_value=0.001,
        posterior=0.5,
        score_threshold=None,
        posterior_threshold=0.25,
        decision="kept-by-hand",
        content_hash=f"raw:{number:032}",
        fingerprint="5f0c",
        path="=a\\b.png",
        votes={"a,b": 0.5, "c": 1e-300},
    )
    for number in range(3)
)
TEXTS = [b"\0", b"\xff\xfe", b'"', b",", b"\n", b"\\", b"\\ud800", b"-1", b"nan", b"1e999", b"'", b"0" * 200_000,
         b"\xd9\xa3", b"inf", b";", b"\r", b"9" * 5_000]  # fmt: skip


def text_changes(random, content):
    changed = bytearray(content)
    for _ in range(random.randint(1, 3)):
        limit = max(1, len(changed) - 1)
        place = random.randint(0, limit) % limit
        new = random.choice(TEXTS)
        action = random.choice(["flip", "flip", "cut", "insert", "remove", "write"])
        if action == "flip":
            changed[place] ^= 1 << random.randint(0, 7)
        elif action == "cut":
            del changed[place:]
        elif action == "remove":
            del changed[place : place + random.randint(1, 40)]
        else:
            changed[place : place + (len(new) if action == "write" else 0)] = new
        if not changed:
            break
    return bytes(changed)


def check_text(folder, count):
    """A manifest is edited by hand, so what cannot be told from an edit is read as it is written."""
    path, again = folder / "manifest.csv", folder / "again.csv"
    Manifest(ROWS).write(path)
    content = path.read_bytes()

    def check(random):
        write_new(path, text_changes(random, content))
        try:
            found = read_manifest(path)
        except ValueError as error:
            message = str(error)
            assert str(path) in message
            assert re.search(r"line \d+|encoding|`sample_id`", message), message
            assert message.replace("\n", "").isprintable()
        else:
            again.unlink(missing_ok=True)
            found.write(again)
            assert read_manifest(again) == found

    check_each(count, check)


def test_changed_manifests_give_manifests_or_one_error(tmp_path):
    check_text(tmp_path, 100)


@pytest.mark.slow
def test_two_thousand_changed_manifests_give_manifests_or_one_error(tmp_path):
    check_text(tmp_path, 2_000)


def raw_file(path, header, body=b""):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


HOSTILE = {
    "ten terabytes": {"scores": {"dtype": "F64", "shape": [10**13 // 8], "data_offsets": [0, 10**13]}},
    "overflow": {"scores": {"dtype": "F64", "shape": [2**62, 2**62], "data_offsets": [0, 8]}},
    "no numbers, many columns": {"scores": {"dtype": "F64", "shape": [0, 2**63 - 1], "data_offsets": [0, 0]}},
    "unknown type": {"scores": {"dtype": "F7", "shape": [1], "data_offsets": [0, 1]}},
    "deep": {"__metadata__": {"lightning_poison": "[" * 100_000 + "]" * 100_000}},
    "long number": {"__metadata__": {"lightning_poison": "9" * 100_000}},
    "no metadata": {"__metadata__": {}},
    "other JSON": {"__metadata__": {"lightning_poison": "[1]"}},
    "no checksums": {"__metadata__": {"lightning_poison": '{"kind": "verdict", "version": 1}'}},
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_headers_are_refused(tmp_path, case):
    path = tmp_path / "file.safetensors"
    raw_file(path, HOSTILE[case])
    with pytest.raises(ValueError, match=HEADER) as caught:
        Verdict.load(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 2_000


def test_a_length_beyond_the_file_is_refused(tmp_path):
    (tmp_path / "f").write_bytes(struct.pack("<Q", 10**13) + b"{}")
    with pytest.raises(ValueError, match="safetensors format"):
        Verdict.load(tmp_path / "f")


def test_weights_for_terabytes_are_refused_before_a_network_is_built(kinds, tmp_path):
    write, read, _, made = kinds["network scorer"]
    write(made, tmp_path / "f")
    tensors, meta = read_tensors(tmp_path / "f", "scorer")
    write_tensors(tmp_path / "f", {**tensors, "sample_shape": torch.tensor([2**40, 8, 8])}, meta)
    with pytest.raises(ValueError, match=r"f has an invalid part\. Expected `sample_shape` to be in"):
        read(tmp_path / "f")
    state = {**tensors, "num_classes": torch.tensor(2**40)}
    write_tensors(tmp_path / "f", state, meta)
    with pytest.raises(ValueError, match=r"f has an invalid part\. Expected `num_classes` to be in"):
        read(tmp_path / "f")
