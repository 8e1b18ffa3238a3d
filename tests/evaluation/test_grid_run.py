import evaluation_grids as grids
import pytest
from evaluation_grids import Majority, grid

from lightning_poison.evaluation.cells_file import CellsFile, read_cells
from lightning_poison.evaluation.grid import GridAttack, GridDefense, is_complete
from lightning_poison.evaluation.grid_run import evaluate_grid


def rows(cells, seed=0):
    return {cell.defense: cell for cell in cells if cell.seed == seed}


def test_known_answers():
    found = rows(evaluate_grid(grid(seeds=[0])))
    assert list(found) == ["no defense", "random filter", "few", "perfect filter"]
    assert found["no defense"].attack_success_rate == 1  # all zeros are predicted as ones
    assert found["no defense"].clean_accuracy == 0.25
    assert found["few"].attack_success_rate == 0
    assert found["few"].poison_caught == 1
    assert found["few"].clean_lost == pytest.approx(4 / 9)
    assert found["few"].removed == found["random filter"].removed == 10
    assert found["few"].removed_by_class == {"1": 10}
    assert found["perfect filter"].removed_by_class == {"1": 6}
    gap = found["random filter"].attack_success_rate
    assert found["few"].gap_closed == (1.0 if gap else None)
    assert found["few"].seconds > 0
    assert found["few"].peak_memory_mib > 10


@pytest.mark.parametrize("name", ["random filter of mine", "random filter 10"])
def test_defense_may_be_named_like_a_random_filter(name):
    found = rows(evaluate_grid(grid(defenses=[GridDefense(name, grids.keep_few)], seeds=[0])))
    assert list(found) == ["no defense", "random filter", name, "perfect filter"]
    assert found[name].poison_caught == 1
    assert not found[name].is_control


def test_second_run_computes_nothing_and_other_seeds_extend(tmp_path):
    count = tmp_path / "trained"
    count.mkdir()
    file = tmp_path / "cells.jsonl"
    first = evaluate_grid(grid(train=Majority(count)), results=file)
    trained = len(list(count.iterdir()))
    assert grids.figures(evaluate_grid(grid(train=Majority(count)), results=file)) == grids.figures(first)
    assert len(list(count.iterdir())) == trained
    lines = file.read_text().count("\n")
    more = evaluate_grid(grid(train=Majority(count), seeds=[0, 1, 2]), results=file)
    assert grids.figures(more)[: len(first)] == grids.figures(first)
    assert file.read_text().count("\n") == lines + 4
    assert len(read_cells(file)) == len(more)


def test_equal_masks_are_trained_once_and_one_reference_a_seed(tmp_path):
    attacks = [GridAttack(name, grids.flip) for name in ("one", "two")]
    defenses = [GridDefense("all", grids.keep_all), GridDefense("few", grids.keep_few)]
    cells = evaluate_grid(grid(train=Majority(tmp_path), attacks=attacks, defenses=defenses, seeds=[0]))
    # one reference; for each attack no defense (and `all` and its random filter), `few`, its random filter, perfect
    assert len(list(tmp_path.iterdir())) == 1 + 2 * 4
    found = rows([cell for cell in cells if cell.attack == "one"])
    assert found["all"].attack_success_rate == found["no defense"].attack_success_rate
    assert found["all"].gap_closed == 0


def test_new_defense_extends_with_stored_controls(tmp_path):
    file, count = tmp_path / "cells.jsonl", tmp_path / "trained"
    count.mkdir()
    evaluate_grid(grid(seeds=[0]), results=file)
    defenses = [GridDefense("few", grids.keep_few), GridDefense("all", grids.keep_all)]
    found = rows(evaluate_grid(grid(seeds=[0], defenses=defenses, train=Majority(count)), results=file))
    assert found["all"].clean_accuracy == found["no defense"].clean_accuracy
    assert len(list(count.iterdir())) == 1  # the reference; nothing is removed, so no defense is in the file


def test_other_settings_are_other_cells(tmp_path):
    file = tmp_path / "cells.jsonl"
    evaluate_grid(grid(seeds=[0], epochs=1), results=file)
    with CellsFile(file) as cells:
        assert is_complete(grid(seeds=[0], epochs=1), cells)
        assert not is_complete(grid(seeds=[0], epochs=2), cells)
        changed = [GridDefense("few", grids.keep_few, {"rate": 1})]
        assert not is_complete(grid(seeds=[0], epochs=1, defenses=changed), cells)


@pytest.mark.parametrize("kind", ["attack", "defense", "training"])
def test_what_raises_fails_its_cells_and_no_others(tmp_path, kind):
    file = tmp_path / "cells.jsonl"
    attacks = [GridAttack("broken", grids.fail), GridAttack("flip", grids.flip)]
    defenses = [GridDefense("broken", grids.fail), GridDefense("few", grids.keep_few)]
    given = {
        "attack": {"attacks": attacks},
        "defense": {"defenses": defenses},
        "training": {"train": grids.fail},
    }[kind]
    cells = evaluate_grid(grid(seeds=[0], **given), results=file)
    failed = [cell for cell in cells if cell.error is not None]
    assert all("ZeroDivisionError: boo" in cell.error and "\x1b" not in cell.error for cell in failed)
    names = {(cell.attack, cell.defense) for cell in failed}
    controls = ("no defense", "few", "perfect filter")
    assert (
        names
        == {
            "attack": {("broken", name) for name in controls},
            "defense": {("flip", "broken")},
            "training": {("flip", name) for name in controls},
        }[kind]
    )
    if kind != "training":
        assert rows([cell for cell in cells if cell.attack == "flip"])["few"].poison_caught == 1
    again = evaluate_grid(grid(seeds=[0], **given), results=file)
    assert [cell.error for cell in again] == [cell.error for cell in cells]
    assert len(file.read_text().splitlines()) == len(cells)
    evaluate_grid(grid(seeds=[0], **given), results=file, retry_failed=True)
    assert len(file.read_text().splitlines()) == len(cells) + len(failed)


def test_preparation_is_passed_to_attacks_that_need_it():
    attacks = [GridAttack("flip", grids.flip_of_prepared, needs_preparation=True), GridAttack("other", grids.flip)]
    assert all(cell.error is None for cell in evaluate_grid(grid(attacks=attacks)))


def test_adaptive_attack_is_evaluated_against_its_defense_only():
    attacks = [GridAttack("flip", grids.flip), GridAttack("evading", grids.flip, {}, ["few"], ["few"])]
    defenses = [GridDefense("all", grids.keep_all), GridDefense("few", grids.keep_few)]
    cells = evaluate_grid(grid(attacks=attacks, defenses=defenses, seeds=[0]))
    evading = [cell for cell in cells if cell.attack == "evading"]
    assert [cell.defense for cell in evading] == ["no defense", "random filter", "few", "perfect filter"]
    assert [cell.defense for cell in cells if cell.is_adaptive] == ["few"]


def test_cells_are_announced_with_their_number():
    seen = []
    evaluate_grid(grid(), notify=lambda cell, number, total: seen.append((cell.defense, number, total)))
    assert [number for _, number, _ in seen] == [1, 2, 3, 4, 5, 6]
    assert {total for *_, total in seen} == {6}


@pytest.mark.parametrize("names", [["few", "few"], ["no defense"]])
def test_refuses_repeated_names_and_those_of_controls(names):
    with pytest.raises(ValueError, match=r"twice|controls"):
        grid(defenses=[GridDefense(name, grids.keep_few) for name in names])


def test_features_of_the_first_seed_without_a_defense_are_mapped(tmp_path):
    cells = evaluate_grid(grid(train=grids.with_features, seeds=[0, 1]), results=tmp_path / "cells.jsonl")
    mapped = [(cell.defense, cell.seed) for cell in cells if cell.features is not None]
    assert mapped == [("no defense", 0)]
    stored = {cell.defense: cell for _, cell in read_cells(tmp_path / "cells.jsonl") if cell.seed == 0}
    assert stored["no defense"].features.kinds.count("poison") == 6


def test_model_whose_features_fail_has_no_map_but_all_figures():
    found = rows(evaluate_grid(grid(train=grids.without_feature_layer, seeds=[0])))
    assert found["no defense"].features is None
    assert found["no defense"].attack_success_rate == 1
