"""Records of a sanitizer: folders, checkpoint states and tuners."""

from types import SimpleNamespace

import pytest

from lightning_poison._lightning.records import folder_name, is_tuning, report_directory, verdicts_from_state


def test_folder_names_are_plain_and_distinct():
    paths = ["['a/b']", "['a b']", "['ä'][0]", "['../..']"]
    assert folder_name("", [""]) == "."
    assert [folder_name(path, paths) for path in paths] == ["0-a-b", "1-a-b", "2-ä-0", "3"]


def test_no_directory_and_no_tuner_without_a_trainer():
    assert report_directory(None, None, "sanitizer") is None
    assert not is_tuning(None)


@pytest.mark.parametrize(("log_dir", "parent"), [("logs", "logs"), (None, "root")])
def test_default_directory_is_in_the_log_or_root_directory(tmp_path, log_dir, parent):
    trainer = SimpleNamespace(
        fast_dev_run=False, log_dir=log_dir and tmp_path / log_dir, default_root_dir=tmp_path / "root"
    )
    assert report_directory(trainer, None, "mine") == tmp_path / parent / "sanitizer_reports" / "mine"
    assert report_directory(trainer, "here", "mine").name == "here"


@pytest.mark.parametrize("damage", [{"verdicts": {"": {"meta": {}}}}, {"verdicts": None}, {}])
def test_refuses_a_damaged_state(damage):
    with pytest.raises(ValueError, match=r"complete decision in the checkpoint.*\nResume from another checkpoint"):
        verdicts_from_state({"version": 1, **damage})
