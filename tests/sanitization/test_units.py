import os

import pytest
import torch
from torch import nn

from lightning_poison.data.sample_digests import SampleDigests
from lightning_poison.runtime import LocalRuntime
from lightning_poison.sanitization.units import FileUnits, decision_key, open_units
from lightning_poison.scorers.likelihood import LikelihoodScorer

RUNTIME = LocalRuntime(precision="32", threads=1)


def digests(values):
    found = SampleDigests(len(values))
    found.add(torch.arange(len(values)), torch.tensor(values))
    return found


def key(scorer=None, *, data="a", runtime=RUNTIME, **settings):
    return decision_key(scorer or LikelihoodScorer(), settings, data, runtime)


def test_units_are_found_by_name(tmp_path):
    units = FileUnits(tmp_path, digests([1, 2]))
    units.within("member-0").within("fold-1").save("blocks", {"0": torch.ones(2)}, {"step": 1})
    again = FileUnits(tmp_path, digests([1, 2])).within("member-0").within("fold-1")
    tensors, meta = again.load("blocks")
    assert (tensors["0"].tolist(), meta) == ([1, 1], {"step": 1})
    assert again.load("other") is None
    assert units.load("blocks") is None


def test_each_rank_stores_a_part_of_its_own(tmp_path):
    ranks = [FileUnits(tmp_path, digests([1]), rank).within("fold[0]") for rank in range(3)]
    for number in (1, 2, 1):
        ranks[number].save_part("blocks-1", {"a": torch.full((1,), number)}, {"rank": number})
    ranks[0].save_part("blocks-12", {}, {})
    ranks[0].save("blocks-1", {}, {})
    assert ranks[0].load_parts("blocks-1") == [({"a": torch.tensor([each])}, {"rank": each}) for each in (1, 2)]
    next(tmp_path.glob("*-part-1.safetensors")).write_bytes(b"damaged")
    assert [meta["rank"] for _, meta in ranks[0].load_parts("blocks-1")] == [2]
    assert ranks[0].load_parts("other") == []


def test_units_of_other_samples_do_not_match(tmp_path):
    units = FileUnits(tmp_path, digests([1, 2, 3]))
    assert units.is_empty
    units.save("scores", {"scores": torch.ones(1)}, {})
    assert not units.is_empty
    assert FileUnits(tmp_path, digests([1, 2, 3])).samples_match()
    assert not FileUnits(tmp_path, digests([1, 5, 3])).samples_match()
    assert not FileUnits(tmp_path, digests([1, 2])).samples_match()


def test_samples_read_later_are_recorded_with_the_next_unit(tmp_path):
    partly = SampleDigests(3)
    partly.add(torch.tensor([0]), torch.tensor([1]))
    units = FileUnits(tmp_path, partly)
    units.save("one", {}, {})
    assert FileUnits(tmp_path, digests([1, 9, 9])).samples_match()
    partly.add(torch.tensor([1]), torch.tensor([2]))
    units.within("inner").save("two", {}, {})
    assert not FileUnits(tmp_path, digests([1, 9, 9])).samples_match()


def test_damaged_unit_counts_as_missing(tmp_path):
    units = FileUnits(tmp_path, digests([1]))
    units.save("scores", {"scores": torch.ones(1)}, {})
    (tmp_path / "scores.safetensors").write_bytes(b"damaged")
    assert units.load("scores") is None
    (tmp_path / "samples-0.safetensors").write_bytes(b"damaged")
    assert not units.samples_match()


def test_keeps_one_unit(tmp_path):
    units = FileUnits(tmp_path, digests([1]))
    for name in ("verdict", "scores", "fit-1"):
        units.save(name, {}, {})
    units.keep_only("verdict")
    assert {path.name for path in tmp_path.iterdir()} == {"verdict.safetensors", "samples-0.safetensors"}


def test_folder_that_cannot_be_written_warns_once(tmp_path):
    (tmp_path / "file").write_text("")
    units = FileUnits(tmp_path / "file" / "x", digests([1]))
    with pytest.warns(UserWarning, match=r"Unfinished work is not saved: writing to .*file/x failed"):
        units.save("one", {}, {})
    units.save("two", {}, {})  # a warning would be an error
    assert units.load("one") is None


def test_key_depends_on_everything_that_a_unit_depends_on():
    networks = [nn.Sequential(nn.Flatten(), nn.Linear(4, 8)) for _ in range(2)]
    twin = nn.Sequential(nn.Flatten(), nn.Linear(4, 8))
    twin.load_state_dict(networks[0].state_dict())
    assert key() == key()
    others = [
        key(),
        key(data="b"),
        key(folds=4),
        key(runtime=LocalRuntime(precision="32", threads=2)),
        key(runtime=LocalRuntime(precision="bf16", threads=1)),
        key(LikelihoodScorer(backbone=networks[0], feature_size=8)),
        key(LikelihoodScorer(backbone=networks[1], feature_size=8)),
    ]
    assert len(set(others)) == len(others)
    assert key(LikelihoodScorer(backbone=twin, feature_size=8)) == others[5]


def test_key_depends_on_the_code_of_other_classes(tmp_path):
    def network_of(body):
        namespace = {"nn": nn, "__name__": "user_code"}
        exec(f"class Net(nn.Module):\n    def forward(self, x):\n        return {body}", namespace)  # noqa: S102
        return namespace["Net"]()

    one, two = (key(LikelihoodScorer(backbone=network_of(body))) for body in ("x.flatten(1)", "2 * x.flatten(1)"))
    assert one != two  # without a source, no two classes are the same


def test_old_decisions_are_removed(tmp_path):
    for number in range(25):
        folder = tmp_path / f"{number:032x}"
        folder.mkdir()
        os.utime(folder, (number, number))
    (tmp_path / "notes").mkdir()
    open_units(tmp_path, f"{3:032x}rest", digests([1]), rank=0)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"notes", f"{3:032x}", *(f"{number:032x}" for number in range(6, 25))}
