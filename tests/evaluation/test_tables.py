import pytest

from lightning_poison.evaluation.cells import Cell
from lightning_poison.evaluation.tables import ADVICE, render_adaptive, render_matrix, render_table


def cell(defense, success, *, attack="a", seed=0, removed=3, **more):
    control = defense in ("no defense", "random filter", "perfect filter")
    given = {"clean_accuracy": 0.9, "poison_caught": 0.5, "clean_lost": 0.1} | more
    return Cell(attack, defense, control, seed, attack_success_rate=success, removed=removed, **given)


@pytest.fixture
def cells():
    """Two defenses of different sizes, two seeds."""
    found = []
    for seed in (0, 1):
        found += [
            cell("no defense", 0.9, seed=seed, removed=0),
            cell("random filter", 0.8, seed=seed, removed=3),
            cell("mine", 0.2 + 0.24 * seed, seed=seed, removed=3),
            cell("random filter", 0.4, seed=seed, removed=9),
            cell("other", 0.1, seed=seed, removed=9),
            cell("perfect filter", 0.0, seed=seed, removed=2),
        ]
    return found


def test_each_defense_is_below_the_random_filter_of_its_size(cells):
    lines = render_table(cells).splitlines()[2:]
    names = [line.split("  ")[0] for line in lines]
    random = "random filter (control)"
    assert names == ["no defense (control)", random, "mine", random, "other", "perfect filter (control)"]
    assert "80.0 %" in lines[1]
    assert "40.0 %" in lines[3]
    assert lines[2].endswith("60 % (45 to 75)")
    assert lines[4].endswith("75 % (75 to 75)")
    assert "32.0 % (20.0 to 44.0)" in lines[2]


def test_costs_are_shown_if_they_are_known(cells):
    assert "peak MiB" not in render_table(cells)
    timed = [cell("no defense", 0.9, seconds=2.0, peak_memory_mib=1500.0, removed=1200)]
    lines = render_table(timed).splitlines()
    assert "removed  seconds  peak MiB" in lines[0]
    assert "1,200      2.0     1,500" in lines[2]


def test_no_gap_where_the_attack_fails_without_a_defense(cells):
    weak = [Cell(**(vars(each) | {"attack": "weak", "attack_success_rate": 0.02})) for each in cells]
    assert "prove nothing" in render_table(weak)
    assert "75 %" not in render_table(weak)
    lines = render_matrix([*cells, *weak]).splitlines()
    assert lines[2].split("  ")[0] == "a"
    assert lines[3].count("proves nothing") == 2
    assert lines[4:] == [ADVICE]
    assert "less than 5 %" in ADVICE
    assert ADVICE not in render_matrix(cells)


def test_failed_cells_are_counted_and_escaped(cells):
    broken = [Cell.failed("a", "evil\x1b[2J", seed, "reason") for seed in (0, 1)]
    assert "evil\\x1b[2J, 2 failed" in render_table([*cells, *broken])
    assert "failed" in render_matrix([*cells, *broken])
    half = [each for each in cells if each.defense != "mine" or each.seed == 0]
    assert "mine, 1 failed" in render_table([*half, Cell.failed("a", "mine", 1, "reason")])


def test_adaptive_rows(cells):
    assert render_adaptive(cells) == ""
    evading = [
        cell("no defense", 0.9, attack="evading", removed=0),
        cell("mine", 0.5, attack="evading", poison_caught=0.2, is_adaptive=True),
    ]
    line = render_adaptive([*cells, *evading]).splitlines()[2]
    assert line.split() == ["evading", "against", "mine", "90.0", "%", "80.0", "%", "40.0", "%"]
    weak = [cell("no defense", 0.0, attack="evading", removed=0), evading[1]]
    assert "proves nothing" in render_adaptive(weak)
    assert "failed" in render_adaptive([evading[0], Cell.failed("evading", "mine", 0, "reason", is_adaptive=True)])


def test_table_marks_attack_that_fails_without_defense_and_escapes_names():
    controls = [cell(name, 0.01) for name in ("no defense", "random filter", "perfect filter")]
    lines = render_table([*controls, cell("evil\x1b[2J", 0.01)]).splitlines()
    assert "prove nothing" in lines[-1]
    assert "\x1b" not in "".join(lines)
    assert len({line.index("90.0 %") for line in lines[2:-1]}) == 1
    assert "prove nothing" not in render_table([cell("no defense", 0.9), *controls[1:]])
