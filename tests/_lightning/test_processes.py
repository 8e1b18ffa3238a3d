"""Whether another process runs, is stopped or has ended."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lightning_poison._lightning.processes import own_process, process_state

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="states of processes are known on Linux only")


@pytest.fixture
def sleeper():
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        yield process
        process.kill()


def text_of(process):
    machine, _, _ = json.loads(own_process())
    values = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return json.dumps([machine, process.pid, values[19]])


def wait_for(state, text):
    end = time.monotonic() + 10
    while process_state(text) != state:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_own_process_runs():
    assert process_state(own_process()) == "running"


def test_stopped_continued_and_killed(sleeper):
    text = text_of(sleeper)
    sleeper.send_signal(signal.SIGSTOP)
    wait_for("stopped", text)
    sleeper.send_signal(signal.SIGCONT)
    wait_for("running", text)
    sleeper.kill()
    wait_for("ended", text)  # a zombie, as long as its parent has not waited for it
    sleeper.wait()
    assert process_state(text) == "ended"


def test_another_process_with_the_same_number():
    machine, number, start = json.loads(own_process())
    assert number == os.getpid()
    assert process_state(json.dumps([machine, number, f"{start}0"])) == "ended"


def test_process_of_another_machine():
    _, number, start = json.loads(own_process())
    assert process_state(json.dumps(["another machine", number, start])) == "unknown"
    assert process_state(json.dumps(["", number, start])) == "unknown"
