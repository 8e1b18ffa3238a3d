import pytest
import torch

from lightning_poison import Threat
from lightning_poison.data import RawImages, labels_of
from lightning_poison_collisions import FrogAttack
from lightning_poison_collisions.targeted import Selection, distances_to_each, whole_groups


@pytest.fixture
def selection():
    """Return a function that builds a selection with defaults which a test may replace."""

    def build(**settings) -> Selection:
        defaults = {"source_class": None, "base_class": None, "placement": "replace", "base_choice": "random"}
        return Selection(**{**defaults, "candidates": 100, **settings})

    return build


class TestWholeGroups:
    @pytest.mark.parametrize("most", [1, 2, 3, 5, 100])
    def test_every_position_comes_once_and_no_group_is_parted(self, most):
        sizes = [3, 1, 2, 4]
        target_of = torch.arange(4).repeat_interleave(torch.tensor(sizes))
        blocks = whole_groups(sizes, most)
        assert torch.cat(blocks).tolist() == list(range(10))
        held = [set(target_of[block].tolist()) for block in blocks]
        assert sum(map(len, held)) == 4
        assert all(len(block) <= most or len(targets) == 1 for block, targets in zip(blocks, held, strict=True))

    def test_blocks_are_filled(self):
        assert [len(block) for block in whole_groups([2, 2, 2], 4)] == [4, 2]


class TestSelection:
    def test_random_bases_are_drawn_by_the_generator(self, selection, dataset, holdout, pixels):
        training, others = (RawImages(data, pixels, seed=0, batch_size=8) for data in (dataset, holdout))

        def drawn(seed):
            generator = torch.Generator().manual_seed(seed)
            return selection().pairs(training, others, [3, 2], maps=[], generator=generator)

        one, same, other = drawn(0), drawn(0), drawn(1)
        assert torch.equal(one.bases, same.bases)
        assert not torch.equal(one.bases, other.bases)
        assert one.target_of.tolist() == [0, 0, 0, 1, 1]
        assert len(one.bases.unique()) == 5

    def test_what_an_attack_asks_for(self, selection):
        attack = FrogAttack(source_class=2, base_class=7, placement="replace", base_choice="random", candidates=100)
        assert Selection.of(attack) == selection(source_class=2, base_class=7)

    def test_a_threat_that_forbids_appending(self, selection, holdout):
        threat = Threat(3, may_append=False)
        with pytest.raises(ValueError, match='Set `placement="replace"`'):
            selection(placement="append").checked_holdout(threat, holdout)
        assert selection().checked_holdout(threat, holdout) is holdout

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ({"candidates": 0}, "`candidates` to be an integer of at least 1"),
            ({"base_class": -1}, "`base_class` to be an integer of at least 0"),
            ({"source_class": 1, "base_class": 1}, "another class than `source_class`"),
            ({"placement": "prepend"}, "`placement` to be one of 'append', 'replace'"),
            ({"base_choice": "far"}, "`base_choice` to be one of"),
        ],
    )
    def test_settings_out_of_range(self, selection, setting, message):
        with pytest.raises(ValueError, match=message):
            selection(**setting)


def test_distances_of_several_maps_count_alike():
    targets = [torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0, 0.0], [0.0, 0.0]])]
    known = [torch.tensor([[1.0], [3.0]]), torch.tensor([[100.0, 0.0], [0.0, 300.0]])]
    first, second = distances_to_each(targets, known)
    torch.testing.assert_close(first, torch.tensor([0.4, 3.6]))
    torch.testing.assert_close(second, torch.tensor([0.2, 3.8]))


def test_candidates_that_are_not_admitted_are_no_bases(dataset, holdout, features, pixels):
    training, others = (RawImages(data, pixels, seed=0, batch_size=64) for data in (dataset, holdout))

    def pairs(admit):
        generator = torch.Generator().manual_seed(0)
        return Selection(
            source_class=None, base_class=None, placement="append", base_choice="nearest", candidates=300
        ).pairs(training, others, [1] * 20, maps=[features], generator=generator, admit=admit)

    chosen = pairs(lambda images, labels: labels % 2 == 0)
    assert (labels_of(dataset)[chosen.bases] % 2 == 0).all()
    assert torch.equal(pairs(lambda images, labels: labels < 0).bases, pairs(None).bases)
