import math

import pytest
import torch

from lightning_poison.statistics.subgroups import (
    MIN_CLASS_SIZE,
    Subgroup,
    ashman_separation,
    find_subgroups,
    subgroup_scores,
    with_fitted_odds,
)

GAP = 6.5


def normal(count, size=12, *, seed=0):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


def one_class(count):
    return torch.zeros(count, dtype=torch.int64)


class TestAshmanSeparation:
    def test_matches_two_normal_distributions(self):
        values = torch.cat(
            [torch.randn(200_000, generator=torch.Generator().manual_seed(0)), torch.randn(200_000) * 2 + 8]
        )
        second = torch.arange(400_000) >= 200_000
        assert ashman_separation(values, second) == pytest.approx(math.sqrt(2) * 8 / math.sqrt(1 + 4), rel=0.01)

    def test_matches_halves_of_one_normal_distribution(self):
        values = torch.randn(400_000, generator=torch.Generator().manual_seed(1))
        mean, spread = math.sqrt(2 / math.pi), math.sqrt(1 - 2 / math.pi)
        assert ashman_separation(values, values > 0) == pytest.approx(2 * mean / spread, rel=0.01)

    def test_is_invariant_to_scale_and_shift(self):
        values, second = normal(50, 1)[:, 0], torch.arange(50) < 9
        moved = ashman_separation(100 - 7 * values, second)
        assert moved == pytest.approx(ashman_separation(values, second), rel=1e-5)

    def test_constant_groups(self):
        second = torch.tensor([False, False, True, True])
        assert ashman_separation(torch.tensor([1.0, 1.0, 2.0, 2.0]), second) == math.inf
        assert ashman_separation(torch.ones(4), second) == 0


class TestFindSubgroups:
    @pytest.mark.parametrize("share", [0.02, 0.09, 0.33, 0.48])
    def test_finds_complete_group_behind_gap(self, share):
        features, count = normal(1500), round(1500 * share)
        features[:count, 3] += 14
        first = find_subgroups(features, one_class(1500), min_separation=GAP)[0]
        assert first.separation > GAP
        assert first.members.tolist() == list(range(count))
        assert len(first.members) + len(first.rest) == 1500

    @pytest.mark.parametrize("seed", range(5))
    def test_finds_no_group_in_normal_distribution(self, seed):
        features = normal(800, seed=seed) * torch.linspace(0.2, 6, 12)
        assert all(group.separation < 5.5 for group in find_subgroups(features, one_class(800), min_separation=GAP))

    @pytest.mark.slow
    @pytest.mark.parametrize("count", [12, 20, 40, 90])
    def test_seldom_finds_group_in_small_class(self, count):
        features = [normal(count, seed=seed) for seed in range(20)]
        first = [find_subgroups(each, one_class(count), min_separation=GAP)[:1] for each in features]
        assert sum(bool(found) and found[0].separation >= GAP for found in first) <= 2

    def test_finds_several_groups_in_a_class(self):
        features = normal(1000)
        features[:60, 0] += 20
        features[60:160, 1] -= 20
        separate = [
            group for group in find_subgroups(features, one_class(1000), min_separation=GAP) if group.separation > GAP
        ]
        assert sorted(group.members.tolist() for group in separate) == [list(range(60)), list(range(60, 160))]
        assert not set(separate[0].members.tolist()) & set(separate[1].positions.tolist())

    def test_positions_refer_to_data_set(self):
        labels = torch.arange(600) % 2 + 4
        features = normal(600)
        features[1:101:2] += 9
        found = {group.label: group for group in find_subgroups(features, labels, min_separation=GAP)[::-1]}
        assert set(found) == {4, 5}
        assert found[5].members.tolist() == list(range(1, 101, 2))
        assert found[4].separation < GAP

    def test_is_deterministic(self):
        runs = [find_subgroups(normal(300), one_class(300), min_separation=GAP, seed=3) for _ in range(2)]
        assert all(torch.equal(one.log_odds, other.log_odds) for one, other in zip(*runs, strict=True))

    def test_fewer_dimensions_than_components(self):
        features = torch.cat([normal(90, 2), normal(30, 2) + 30])
        assert find_subgroups(features, one_class(120), min_separation=GAP)[0].members.tolist() == list(range(90, 120))

    def test_refuses_small_class(self):
        labels = torch.cat([one_class(60), one_class(MIN_CLASS_SIZE - 1) + 1])
        with pytest.raises(ValueError, match="at least 12 samples per class, but got 11 of class 1"):
            find_subgroups(normal(len(labels)), labels, min_separation=GAP)

    def test_refuses_constant_class(self):
        features, labels = normal(80), torch.arange(80) % 2
        features[labels == 1] = 2.0
        with pytest.raises(ValueError, match="different vectors within class 1"):
            find_subgroups(features, labels, min_separation=GAP)

    @pytest.mark.parametrize("name", ["min_separation", "components", "restarts", "max_groups"])
    def test_refuses_settings_out_of_range(self, name):
        with pytest.raises(ValueError, match=f"`{name}`"):
            find_subgroups(normal(60), one_class(60), **{"min_separation": GAP, name: 0})


class TestSubgroupScores:
    def test_only_members_of_separate_group_are_above_zero(self):
        separate = Subgroup(0, torch.tensor([0, 2, 4]), torch.tensor([3.0, -1.0, 2.0]).double(), 9.0)
        rest = Subgroup(1, torch.tensor([1, 3]), torch.tensor([4.0, -4.0]).double(), 3.0)
        scores = subgroup_scores([separate, rest], 5, is_apart=lambda group: group.separation > GAP)
        assert scores.tolist() == [3.0, 0.0, -1.0, -8.0, 2.0]

    def test_score_is_maximum_over_separate_groups(self):
        first = Subgroup(0, torch.arange(4), torch.tensor([5.0, -2.0, -9.0, -8.0]).double(), 9.0)
        second = Subgroup(0, torch.tensor([1, 2, 3]), torch.tensor([-7.0, 6.0, -3.0]).double(), 8.0)
        last = Subgroup(0, torch.tensor([1, 3]), torch.tensor([1.0, -1.0]).double(), 2.0)
        scores = subgroup_scores([first, second, last], 4, is_apart=lambda group: group.separation > GAP)
        assert scores.tolist() == [5.0, -2.0, 6.0, -3.0]


def test_fitted_odds_reach_the_tail_of_a_part_that_varies_more():
    generator = torch.Generator().manual_seed(1)
    values = -15 + 3.5 * torch.randn(1000, generator=generator).double()
    poison = torch.arange(1000) < 300
    values[poison] = 8 + 9 * torch.randn(300, generator=generator).double()
    group = Subgroup(0, torch.arange(1000) + 7, values, 4.6)
    fitted = with_fitted_odds(group)
    assert float((group.log_odds > 0)[poison].double().mean()) < 0.85
    assert float((fitted.log_odds > 0)[poison].double().mean()) > 0.88
    assert float((fitted.log_odds > 0)[~poison].double().mean()) < 0.005
    assert fitted.positions.equal(group.positions)
    assert bool(torch.isin(group.members, fitted.members).all())
    flipped = with_fitted_odds(Subgroup(0, group.positions, -values, 4.6))  # the larger part as the group
    assert bool(torch.isin(group.rest, flipped.members).all())
    assert len(flipped.members) < 1.02 * len(group.rest)


@pytest.mark.parametrize("case", ["one part", "a few of many", "infinite", "too few"])
def test_odds_are_kept_where_two_normals_are_not_the_two_parts(case):
    values = 2.0 * torch.randn(600, generator=torch.Generator().manual_seed(2)).double()
    if case == "one part":
        values -= 1.0
    if case == "a few of many":  # 20 members at the end of a large part that stands apart from others
        values[:300] -= 20
        values -= values.sort().values[-20]
    if case == "infinite":
        values[0] = torch.inf
    if case == "too few":
        values = values[:8]
    group = Subgroup(0, torch.arange(len(values)), values, 4.6)
    assert with_fitted_odds(group) is group
