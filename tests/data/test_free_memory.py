import pytest
import torch

from lightning_poison.data.free_memory import free_device_memory, free_memory

MEMINFO = "MemTotal: 8000 kB\nMemFree: 100 kB\nMemAvailable: 4000 kB\n"
AVAILABLE = 4000 * 1024


@pytest.fixture
def machine(tmp_path):
    """Return a function that lays out the files in which Linux describes its memory."""

    def lay_out(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return lay_out


def group(folder, *, limit, used, cached=0):
    top = f"sys/fs/cgroup/{folder}"
    stat = f"anon 1\ninactive_anon 7\ninactive_file {cached}\n"
    return {f"{top}memory.max": f"{limit}\n", f"{top}memory.current": f"{used}\n", f"{top}memory.stat": stat}


def test_what_the_kernel_estimates(machine):
    assert free_memory(machine({"proc/meminfo": MEMINFO})) == AVAILABLE


@pytest.mark.parametrize("text", [None, "", "MemAvailable:", "MemAvailable: much kB"])
def test_nothing_is_known(machine, text):
    assert free_memory(machine({} if text is None else {"proc/meminfo": text})) is None


@pytest.mark.parametrize(
    ("own", "above", "expected"),
    [
        ({"limit": "max", "used": 9}, {"limit": "max", "used": 9}, AVAILABLE),
        ({"limit": 5000, "used": 3000}, {"limit": "max", "used": 9}, 2000),
        ({"limit": 5000, "used": 3000, "cached": 400}, {"limit": 2500, "used": 2000}, 500),
        ({"limit": 5000, "used": 3000, "cached": 400}, {"limit": 9000, "used": 2000}, 2400),
        ({"limit": 5000, "used": 6000}, {"limit": "max", "used": 9}, 0),
        ({"limit": 2 * AVAILABLE, "used": 0}, {"limit": "max", "used": 9}, AVAILABLE),
    ],
)
def test_limits_of_control_groups(machine, own, above, expected):
    files = {"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/job/step\n"}
    assert free_memory(machine(files | group("job/step/", **own) | group("job/", **above))) == expected


def test_limit_of_a_container(machine):
    files = {"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/\n"}
    assert free_memory(machine(files | group("", limit=900, used=100))) == 800


@pytest.mark.parametrize("line", ["1:memory:/job\n", "0::/../../job\n", ""])
def test_other_groups_are_ignored(machine, line):
    files = {"proc/meminfo": MEMINFO, "proc/self/cgroup": line}
    assert free_memory(machine(files | group("job/", limit=900, used=100))) == AVAILABLE


def test_this_machine():
    found = free_memory()
    assert found is None or 2**20 < found < 2**50


def test_memory_that_torch_holds_unused_is_free(monkeypatch):
    for name, found in {"mem_get_info": (1_000, 9_000), "memory_reserved": 500, "memory_allocated": 200}.items():
        monkeypatch.setattr(torch.cuda, name, lambda _, found=found: found)
    assert free_device_memory(torch.device("cuda")) == 1_300
    assert free_device_memory(torch.device("mps")) is None
