"""The gate by itself, without a Trainer: what it judges, when, and what it remembers."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_poison._lightning.loader_sanitizer import Gate, GateSettings
from lightning_poison._lightning.records import folder_name, from_state, is_tuning, run_directory
from lightning_poison.errors import DataChangedError, ManifestError
from lightning_poison.manifest.manifest import keep_by_hand, read_manifest, write_manifest


@pytest.fixture
def data(blobs):
    return blobs(flipped=60)


@pytest.fixture
def scorer(centroid_scorer):
    return centroid_scorer()


@pytest.fixture
def gate(scorer):
    return Gate(GateSettings(scorer))


def others(data):
    points, labels = data.tensors
    return TensorDataset(points.flip(0), labels.flip(0))


def test_loaders_are_filtered_and_judged_once(gate, scorer, data):
    loader = DataLoader(data, 32)
    rebuilt = [gate.filter(loader) for _ in range(3)]
    assert len(scorer.fits) == 3
    verdict = gate.only_verdict()
    assert all(len(each.dataset) == int(verdict.keep.sum()) for each in rebuilt)
    assert loader.dataset is data
    assert not verdict.keep[-60:].any()
    gate.check(rebuilt[0])


def test_the_same_data_in_another_object_are_recognized(gate, scorer, data):
    gate.filter(DataLoader(data))
    again = TensorDataset(*data.tensors)
    rebuilt = gate.filter(DataLoader(again))
    assert rebuilt.dataset.dataset is again
    assert len(scorer.fits) == 3


def test_other_data_in_the_same_place_stop_it(gate, data):
    gate.filter(DataLoader(data))
    with pytest.raises(DataChangedError):
        gate.filter(DataLoader(others(data)))


def test_a_loader_of_the_whole_data_does_not_pass(gate, data):
    gate.filter(DataLoader(data))
    with pytest.raises(RuntimeError, match="but it reads TensorDataset by SequentialSampler"):
        gate.check(DataLoader(data))


def test_each_loader_has_a_verdict_of_its_own(gate, data):
    rebuilt = gate.filter({"a": DataLoader(data), "b": [DataLoader(others(data))]})
    gate.check(rebuilt)
    assert torch.equal(gate.decided["['a']"].keep, gate.decided["['b'][0]"].keep.flip(0))
    swapped = {"a": rebuilt["b"][0], "b": [rebuilt["a"]]}
    with pytest.raises(RuntimeError, match=r"the training loader \['a'\]"):
        gate.check(swapped)


def test_its_state_goes_into_another_gate(gate, scorer, data):
    gate.filter(DataLoader(data))
    fits = len(scorer.fits)
    other = Gate(GateSettings(scorer))
    other.restore(gate.state())
    assert torch.equal(other.only_verdict().keep, gate.only_verdict().keep)
    other.filter(DataLoader(data))
    assert len(scorer.fits) == fits


def test_an_empty_state_changes_nothing(gate, data):
    gate.filter(DataLoader(data))
    gate.restore({"version": 1, "verdicts": {}})
    gate.restore({})
    assert len(gate.only_verdict()) == len(data)
    assert gate.verdicts


def test_a_state_of_another_form_is_refused(gate, data):
    gate.filter(DataLoader(data))
    stored = gate.state()
    assert from_state(stored).keys() == {""}
    for version, came in ((2, "2"), (None, "None"), ("\x1b[2J", r"'\\x1b\[2J'")):
        with pytest.raises(ValueError, match=rf"`version` to be 1, the form .*, but got {came}\.\nResume with"):
            gate.restore({**stored, "version": version})
    del stored["version"]
    with pytest.raises(ValueError, match="but got None"):
        gate.restore(stored)


def test_samples_that_moved_are_still_kept_by_hand(gate, scorer, data, tmp_path):
    path = tmp_path / "manifest.csv"
    gate.filter(DataLoader(data))
    write_manifest(path, gate.only_verdict(), data)
    row = read_manifest(path).rows[0]
    keep_by_hand(path, [row.sample_id])
    other = Gate(GateSettings(scorer, manifest=str(path)))
    other.filter(DataLoader(others(data)))
    assert other.only_verdict().keep[len(data) - 1 - row.sample_id]
    with pytest.raises(ManifestError, match=r"delete their rows") as caught:
        Gate(GateSettings(scorer, manifest=str(path))).filter(DataLoader(TensorDataset(*data[: row.sample_id])))
    assert "search=True" not in str(caught.value)


def test_a_restored_decision_wins_over_one_made_meanwhile(gate, scorer, data):
    gate.filter(DataLoader(data))
    stored = gate.state()
    other = Gate(GateSettings(scorer))
    stored["verdicts"][""]["tensors"]["keep"] = torch.arange(len(data)) > 5
    other.filter(DataLoader(data))
    other.restore(stored)
    rebuilt = other.filter(DataLoader(data))
    assert len(rebuilt.dataset) == len(data) - 6
    assert len(scorer.fits) == 6


def test_a_new_run_confirms_what_an_earlier_one_decided(gate, scorer, data):
    gate.filter(DataLoader(data))
    gate.start()
    assert not gate.verdicts
    assert len(gate.only_verdict()) == len(data)
    gate.filter(DataLoader(data))
    assert len(scorer.fits) == 3


def test_a_run_with_other_loaders_forgets_those_of_the_last(gate, data):
    gate.filter([DataLoader(data)])
    gate.start()
    gate.filter(DataLoader(data))
    assert list(gate.decided) == [""]


def test_files_are_written_where_they_are_wanted_and_nowhere_else(scorer, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Gate(GateSettings(scorer)).filter(DataLoader(data))
    assert not list(tmp_path.iterdir())
    Gate(GateSettings(scorer, dirpath=str(tmp_path / "here"))).filter(DataLoader(data))
    assert {path.name for path in (tmp_path / "here").iterdir()} == {"manifest.csv", "verdict.safetensors"}


def test_folder_names_are_plain_and_distinct():
    paths = ["['a/b']", "['a b']", "['ä'][0]", "['../..']"]
    assert folder_name("", [""]) == "."
    assert [folder_name(path, paths) for path in paths] == ["0-a-b", "1-a-b", "2-ä-0", "3"]


def test_without_a_trainer_there_is_no_directory_and_no_tuner():
    assert run_directory(None, None, "sanitizer") is None
    assert not is_tuning(None)


@pytest.mark.parametrize("damage", [{"verdicts": {"": {"meta": {}}}}, {"verdicts": None}, {}])
def test_a_damaged_stored_decision_is_said(damage):
    with pytest.raises(ValueError, match=r"complete decision in the checkpoint.*\nResume from another checkpoint"):
        from_state({"version": 1, **damage})
