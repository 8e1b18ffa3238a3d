import sys

import pytest

from lightning_poison import cli
from lightning_poison.evaluation.ray_executor import RayExecutor


def test_error_without_ray_names_the_extra(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModuleNotFoundError, match=r"lightning-poison\[ray\]"):
        RayExecutor()
    given = ["--data", "digits", "--attack", "badnets", "--defense", "fast", "--results", str(tmp_path / "cells.jsonl")]
    assert cli.main(["evaluate", *given, "--executor", "ray"]) == 2
    assert "lightning-poison[ray]" in capsys.readouterr().err


def test_arguments_are_shown_and_checked():
    pytest.importorskip("ray")
    assert repr(RayExecutor(workers=2, gpus_per_task=0.5)) == "RayExecutor(workers=2, gpus_per_task=0.5)"
    with pytest.raises(ValueError, match="gpus_per_task"):
        RayExecutor(gpus_per_task=-1)
