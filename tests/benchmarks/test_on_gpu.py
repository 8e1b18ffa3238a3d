"""`benchmarks/on_gpu.py`: the table with and without a GPU, within its budget, and its code on the CPU."""

import argparse
import importlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torchvision.utils import save_image

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SLEEPS = "import time; print('started', flush=True); time.sleep(60)"


@pytest.fixture(scope="module", autouse=True)
def benchmarks_on_path():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield


@pytest.fixture
def on_gpu():
    return importlib.import_module("on_gpu")


@pytest.fixture
def device_use():
    return importlib.import_module("harness.device_use")


FIGURES = {
    "tests": {"passed": 12, "failed": 0},
    "sanitizing": {"images": 50_000, "seconds": 50.0, "busy": 0.93, "busy_in_all": 0.8, "parts": {}},
    "training": {"images": 50_000, "epoch_s": 10.0, "seconds": 300.0},
    "adversarial": {"callback_ms": [50.0, 51.0], "by_hand_ms": [49.0, 50.0], "ratio": 1.02},
    "scoring": {"ratio": 1.06, "library_s": 0.53, "bare_s": 0.5},
}


def arguments(tmp_path, **changed):
    given = {"device": "cpu", "quick": False, "data_root": None, "results": tmp_path / "r.jsonl", "budget_minutes": 10}
    return argparse.Namespace(**{**given, **changed})


def cells(rows):
    return {row[0]: tuple(row[2:]) for row in rows}


def test_figures_become_a_table(on_gpu):
    found = cells(on_gpu.table(FIGURES, {}, quick=False))
    assert found["tests with the marker `gpu`"] == ("12 passed, 0 failed", "yes")
    assert found["default sanitizing, CIFAR-10, nothing trusted"] == ("50.0 s (50,000 images)", "yes")
    assert found["device busy while it fits and scores"] == ("0.93 (0.80 of the whole call)", "yes")
    assert found["default sanitizing ÷ 30 epochs of ResNet-18"] == ("0.167 (training 300 s, epoch 10.0 s)", "yes")
    assert found["PGD-10 training, callback ÷ by hand"] == ("1.020 (steps of 50.0 and 49.0 ms)", "yes")
    assert found["scoring pass ÷ bare inference loop"] == ("1.060 (0.53 s and 0.50 s)", "no")
    assert {met for _, met in cells(on_gpu.table(FIGURES, {}, quick=True)).values()} == {""}


def test_a_share_that_was_not_measured_meets_no_goal(on_gpu):
    unmeasured = {**FIGURES, "sanitizing": {**FIGURES["sanitizing"], "busy": None}}
    assert cells(on_gpu.table(unmeasured, {}, quick=False))["device busy while it fits and scores"] == (
        "not measured: no utilization from `nvidia-smi`",
        "no",
    )


def test_a_failed_measurement_is_reported_and_the_others_run(on_gpu, monkeypatch, tmp_path):
    def measure(name, _args, _seconds):
        return (None, "failed: ValueError: no") if name == "sanitizing" else (FIGURES[name], "done")

    monkeypatch.setattr(on_gpu, "measure_apart", measure)
    found, status = on_gpu.measure_all(arguments(tmp_path))
    shown = cells(on_gpu.table(found, status, quick=False))
    assert {name for name, (text, _) in shown.items() if text == "failed: ValueError: no"} == {
        "default sanitizing, CIFAR-10, nothing trusted",
        "device busy while it fits and scores",
        "default sanitizing ÷ 30 epochs of ResNet-18",
    }
    assert shown["scoring pass ÷ bare inference loop"][1] == "no"


def test_finished_measurements_are_not_repeated(on_gpu, monkeypatch, tmp_path):
    calls = []

    def measure(name, _args, _seconds):
        calls.append(name)
        failed = {"tests": ({"passed": 1, "failed": 1}, "done"), "training": (None, "failed: no")}
        return failed.get(name, (FIGURES[name], "done"))

    monkeypatch.setattr(on_gpu, "measure_apart", measure)
    on_gpu.measure_all(arguments(tmp_path))
    assert calls == list(on_gpu.SECONDS_NEEDED)
    calls.clear()
    found, _ = on_gpu.measure_all(arguments(tmp_path))
    assert calls == ["tests", "training"]
    assert set(found) == set(FIGURES) - {"training"}


def test_measurements_beyond_the_budget_are_skipped(on_gpu, monkeypatch, tmp_path):
    monkeypatch.setattr(on_gpu, "measure_apart", lambda name, *_: (FIGURES[name], "done"))
    found, status = on_gpu.measure_all(arguments(tmp_path, budget_minutes=0.9))
    assert set(found) == {"training", "scoring"}
    assert status["adversarial"] == "skipped: 54 s are left of the budget, and it needs about 90 s"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("print('fine')", None),
        ("raise ValueError('no such folder')", "ValueError: no such folder"),
        ("raise SystemExit(3)", "exit code 3"),
    ],
)
def test_reason_of_a_failure_is_the_last_line(on_gpu, code, reason):
    assert on_gpu.run_apart([sys.executable, "-c", code], 60)[1] == reason


def test_what_takes_too_long_is_killed_with_its_children(on_gpu, tmp_path):
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SLEEPS!r}])"
    begin = time.monotonic()
    _, reason = on_gpu.run_apart([sys.executable, "-c", code], 3)
    assert reason == "not finished after 3 s"
    assert time.monotonic() - begin < 20


@pytest.mark.parametrize(("printed", "share"), [("50", 0.5), ("[N/A]", None), ("No devices were found", None)])
def test_utilization_is_what_the_command_prints(device_use, printed, share):
    with device_use.DeviceUse(["echo", printed], every_s=0.01) as use:
        time.sleep(0.3)
    assert use.busy() == share
    assert len(use.samples) > 1 or share is None


def test_utilization_is_averaged_within_spans(device_use):
    use = device_use.DeviceUse(None)
    use.samples[:] = [(1.0, 0.5), (2.0, 0.7), (3.0, 1.0)]
    assert use.busy() == pytest.approx(2.2 / 3)
    assert use.busy([(0, 1.5), (2.5, 4)]) == 0.75
    assert use.busy([(4, 5)]) is None


@pytest.mark.parametrize("command", [None, ["no-such-program-of-a-driver"]])
def test_utilization_without_a_driver(device_use, command):
    with device_use.DeviceUse(command) as use:
        pass
    assert use.busy() is None


def test_runtime_records_its_parts(device_use):
    runtime = device_use.ObservedRuntime("cpu")
    for name in ("Reading data", "Fitting", "Fitting"):
        with runtime.progress(1, name):
            time.sleep(0.01)
    assert len(runtime.spans()) == 2
    assert set(runtime.seconds()) == {"Reading data", "Fitting"}
    assert runtime.seconds()["Fitting"] >= 0.02


def run(*options):
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "on_gpu.py"), *options], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
    return {row[0]: row[2].removesuffix(" |") for row in rows[2:]}, done.stdout


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="the table of a machine without a CUDA device")
def test_without_a_gpu_nothing_is_run(on_gpu):
    shown, printed = run()
    assert printed.startswith("PyTorch sees no CUDA device.")
    assert shown == {line.what: "not run" for line in on_gpu.LINES}


@pytest.mark.slow
def test_measurements_without_data_fail_with_their_reason(on_gpu, tmp_path):
    on_gpu_arguments = arguments(tmp_path, quick=True)
    figures, status = on_gpu.measure_apart("scoring", on_gpu_arguments, 300)
    assert figures is None
    assert status == "failed: ValueError: needs --data-root, a folder with cifar10/train/CLASS/*.jpg"


@pytest.mark.slow
def test_all_measurements_run_on_a_cpu(tmp_path):
    generator = torch.Generator().manual_seed(0)
    for number in range(10):
        folder = tmp_path / f"cifar10/train/class{number}"
        folder.mkdir(parents=True)
        color = torch.rand(3, 1, 1, generator=generator)
        for index in range(6):
            image = 0.7 * color + 0.3 * torch.rand(3, 32, 32, generator=generator)
            save_image(image, folder / f"{index}.jpg")
    results = tmp_path / "results.jsonl"
    shown, printed = run("--device", "cpu", "--quick", "--data-root", str(tmp_path), "--results", str(results))
    stored = {json.loads(line)["key"]["row"] for line in results.read_text().splitlines()}
    assert stored == {"tests", "sanitizing", "training", "adversarial", "scoring"}, printed
    assert shown["default sanitizing, CIFAR-10, nothing trusted"].endswith("s (60 images)")
    assert not any(text.startswith(("failed", "skipped")) for text in shown.values())
