"""Records of evaluations for tests of their report."""

from dataclasses import replace

from lightning_poison.evaluation.cells import CONTROLS, Cell
from lightning_poison.evaluation.score_summary import ScoreSummary

MARKUP = "<img src=x onerror=alert(1)>"
SHARED = {
    "data": {"fingerprint": "digits", "max_samples": 800},
    "model": {"class_path": None, "epochs": 4},
    "version": "0.1.0",
}


def cell(attack, defense, success, *, seed=0, removed=3, **more):
    given = {"clean_accuracy": 0.9, "poison_caught": 0.5, "clean_lost": 0.1} | more
    return Cell(attack, defense, defense in CONTROLS, seed, attack_success_rate=success, removed=removed, **given)


def record(one, shared=None, **settings):
    defense = {"name": one.defense, **({"removed": one.removed} if one.defense == "random filter" else settings)}
    return {**(shared or SHARED), "attack": {"name": one.attack}, "defense": defense, "seed": one.seed}, one


def summary(shift=1.0):
    scores = [index / 100 for index in range(200)] + [shift + index / 20 for index in range(20)]
    poison = [index >= 200 for index in range(220)]
    return ScoreSummary.of(scores, scores, poison, [not each for each in poison])


def cells_of(attack, *, success=0.9, seeds=(0, 1), defense="mine"):
    """No defense, a random filter, one defense that closes 75 and 50 % of the gap, and a perfect filter."""
    found = []
    for seed in seeds:
        predictions = {"0": {"0": 6, "1": 2}, "1": {"1": 9}}
        found += [
            cell(attack, "no defense", success, seed=seed, removed=0, predictions=predictions),
            cell(attack, "perfect filter", 0.0, seed=seed, removed=2),
            cell(attack, "random filter", success * 0.8, seed=seed),
            replace(
                cell(attack, defense, success * (0.2 + 0.2 * seed), seed=seed, seconds=2.5, peak_memory_mib=512.0),
                removed_by_class={"7": 2, "1": 1},
                scores=summary(1.0 + seed),
                predictions=predictions,
            ),
        ]
    return found


def all_records():
    """A working attack with a hostile name, one that proves nothing, an adaptive one, and failed cells."""
    cells = cells_of(MARKUP)
    cells += cells_of("weak", success=0.01)
    cells += [replace(each, is_adaptive=each.defense == "mine") for each in cells_of("adaptive")]
    cells += [
        Cell.failed(attack, "broken", seed, f"RuntimeError: {MARKUP}") for attack in ("weak", MARKUP) for seed in (0, 1)
    ]
    return [record(each) for each in cells]
