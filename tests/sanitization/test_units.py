import errno
import os
import random
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_poison.data.sample_digests import SampleDigests
from lightning_poison.runtime import LocalRuntime
from lightning_poison.sanitization.cache_folder import LIMIT
from lightning_poison.sanitization.folder_use import LOCK
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
    next(tmp_path.glob("*blocks-1-part-1-*.safetensors")).write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="done again and replaced"):
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


@pytest.mark.parametrize("damage", [lambda content: content[: len(content) // 2], lambda _: b"", lambda _: b"damaged"])
def test_damaged_unit_is_computed_again_and_replaced_with_one_warning(tmp_path, damage):
    units = FileUnits(tmp_path, digests([1]))
    for name in ("scores", "others"):
        units.save(name, {"scores": torch.ones(1)}, {})
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(UserWarning, match=r"done again and replaced, .*\n?.*scores\.safetensors") as caught:
        assert units.load("scores") is None
    assert len(caught) == 1
    assert units.within("fold-0").load("others") is units.load("others") is None  # a warning would be an error
    units.save("scores", {"scores": torch.zeros(1)}, {})
    assert units.load("scores")[0]["scores"].tolist() == [0]


def test_units_are_not_trusted_if_the_digests_of_their_samples_are_damaged(tmp_path):
    units = FileUnits(tmp_path, digests([1]))
    units.save("scores", {"scores": torch.ones(1)}, {})
    (tmp_path / "samples-0.safetensors").write_bytes(b"damaged")
    with pytest.warns(UserWarning, match=r"samples-0\.safetensors"):
        assert not units.samples_match()


def test_unit_that_cannot_be_opened_counts_as_damaged(tmp_path, monkeypatch):
    units = FileUnits(tmp_path, digests([1]))
    units.save("scores", {"scores": torch.ones(1)}, {})
    monkeypatch.setattr("lightning_poison.sanitization.units.read_tensors", fails_with(errno.EACCES))
    with pytest.warns(UserWarning, match=r"cannot be used\. Permission denied"):
        assert units.load("scores") is None


def test_keeps_one_unit(tmp_path):
    units = FileUnits(tmp_path, digests([1]))
    for name in ("verdict", "scores", "fit-1"):
        units.save(name, {}, {})
    units.keep_only("verdict")
    assert {path.name for path in tmp_path.iterdir()} == {"verdict.safetensors", "samples-0.safetensors", LOCK}


def fails_with(number):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number), f"/x/{random.random()}")  # noqa: S311 (temporary names differ)

    return fail


def test_cache_that_is_a_file_warns_once_before_anything_is_computed(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.warns(UserWarning, match=r"Unfinished work is not saved: writing to .*file failed \(File exists\)"):
        units = open_units(tmp_path / "file", key(), digests([1]), 0)
    units.save("one", {}, {})
    units.save("two", {}, {})  # a warning would be an error
    assert units.load("one") is None
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_disk_that_is_full_or_cannot_be_written_warns_once_and_units_are_read(tmp_path, monkeypatch, number):
    open_units(tmp_path, key(), digests([1]), 0).save("old", {"scores": torch.ones(1)}, {})
    monkeypatch.setattr("lightning_poison.serialization._create_partial", fails_with(number))
    with pytest.warns(
        UserWarning, match=rf"failed \({os.strerror(number)}\).*\n.*lightning-poison cache clear"
    ) as caught:
        units = open_units(tmp_path, key(), digests([1]), 0)
    assert len(caught) == 1
    units.save("new", {}, {})
    assert units.load("old")[0]["scores"].tolist() == [1]
    monkeypatch.undo()
    units.save("new", {}, {})  # there is space again
    assert units.load("new") is not None


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs the device that is always full")
@pytest.mark.parametrize("count", [1, 100_000])
def test_disk_that_fills_up_while_a_unit_is_written_keeps_the_old_one(tmp_path, monkeypatch, count):
    def on_a_full_disk(target):
        partial = target.with_name(f".{target.name}.partial")
        partial.symlink_to("/dev/full")
        return partial

    units = open_units(tmp_path, key(), digests([1]), 0)
    units.save("scores", {"scores": torch.ones(1)}, {})
    monkeypatch.setattr("lightning_poison.serialization._create_partial", on_a_full_disk)
    with pytest.warns(UserWarning, match="No space left on device"):
        units.save("scores", {"scores": torch.zeros(count)}, {})
    assert units.load("scores")[0]["scores"].tolist() == [1]
    assert not list(units.folder.glob(".*partial"))


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


def test_units_beyond_the_limit_are_removed_least_recently_used_first(tmp_path, monkeypatch):
    for number, used in ((1, 300), (2, 100), (3, 200)):
        made = open_units(tmp_path, f"{number:032x}", digests([1]), 0)
        made.save("scores", {"scores": torch.zeros(2**17)}, {})
        os.utime(made.folder / "scores.safetensors", (used, used))
        del made
    open_units(tmp_path, f"{2:032x}", digests([1]), 0).load("scores")  # now it is the latest
    monkeypatch.setenv(LIMIT, str(1.3 / 1024))
    open_units(tmp_path, f"{9:032x}", digests([1]), 0)
    assert {path.name for path in tmp_path.iterdir()} == {f"{1:032x}", f"{2:032x}"}


def test_the_limit_holds_while_units_are_written_but_not_for_what_is_in_use(tmp_path, monkeypatch):
    old = open_units(tmp_path, f"{1:032x}", digests([1]), 0)
    old.save("scores", {"scores": torch.zeros(2**17)}, {})
    monkeypatch.setenv(LIMIT, str(1 / 1024))
    new = open_units(tmp_path, f"{2:032x}", digests([1]), 0)
    for name in ("one", "two"):
        new.save(name, {"scores": torch.zeros(2**17)}, {})
    assert old.load("scores") is not None
    folder = old.folder
    del old
    new.save("three", {"scores": torch.zeros(2**17)}, {})
    assert not folder.exists()
    assert all(new.load(name) is not None for name in ("one", "two", "three"))


def test_limit_that_is_no_number_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv(LIMIT, "much")
    with pytest.raises(ValueError, match=r"LIGHTNING_POISON_CACHE_GIB.*but got 'much'"):
        open_units(tmp_path, key(), digests([1]), 0)


def test_several_runs_may_use_and_shrink_one_folder_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv(LIMIT, str(0.5 / 1024))
    faults = []

    def use(run):
        generator = random.Random(run)  # noqa: S311
        for _ in range(40):
            units = open_units(tmp_path, f"{generator.randrange(4):032x}", digests([1]), run)
            found = units.load("scores")
            if found is not None and found[0]["scores"].shape != (2**15,):
                faults.append(found)
            units.save("scores", {"scores": torch.zeros(2**15)}, {})
            if units.load("scores") is None:
                faults.append(f"run {run} lost a unit that it uses")

    threads = [threading.Thread(target=use, args=(run,)) for run in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not faults
    assert len(list(tmp_path.iterdir())) <= 4
