"""An evaluation on a local Ray cluster of two workers, one of which is killed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ray")

PROGRAM = """
import sys
from pathlib import Path

import evaluation_grids as grids

from lightning_poison.evaluation import GridDefense, RayExecutor, evaluate_grid

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    defenses = [GridDefense("few", grids.KilledOnce(folder)), GridDefense("broken", grids.fail)]
    grid = grids.grid(defenses=defenses, seeds=[0])
    cells = evaluate_grid(grid, executor=RayExecutor(workers=2), results=folder / "ray.jsonl")
    assert (folder / "killed 0").exists()
    again = evaluate_grid(grid, results=folder / "process.jsonl")
    assert grids.figures(cells) == grids.figures(again)
    assert [cell.defense for cell in cells if cell.error] == ["broken"]
    assert len((folder / "ray.jsonl").read_text().splitlines()) == len(cells) == 5
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_killed_worker_loses_nothing_and_cells_are_those_of_one_process(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    paths = [str(Path(__file__).parents[1] / "evaluation"), *(path for path in sys.path if path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-W", "error", str(program), str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-4000:]
