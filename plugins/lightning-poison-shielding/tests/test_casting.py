import pytest
import torch

from lightning_poison_shielding.casting import divide_pool, draw_bases, members_of

LABELS = torch.arange(60) % 6


class TestBases:
    def test_each_serves_as_often_as_the_others_or_once_more(self, generator):
        bases = draw_bases(LABELS, 4, 25, poisons_per_base=3, generator=generator)
        assert (LABELS[bases] == 4).all()
        counts = bases.unique(return_counts=True)[1]
        assert sorted(counts.tolist()) == [2] * 5 + [3] * 5

    def test_none_serves_twice_unless_asked_for(self, generator):
        assert len(draw_bases(LABELS, 4, 10, poisons_per_base=1, generator=generator).unique()) == 10

    def test_a_budget_beyond_the_class(self, generator):
        with pytest.raises(ValueError, match=r"at most 20, as class 4 has 10 samples .* but got 21") as error:
            draw_bases(LABELS, 4, 21, poisons_per_base=2, generator=generator)
        assert "`poisons_per_base=3`" in str(error.value)

    def test_a_class_without_samples(self):
        with pytest.raises(ValueError, match="`shield_class` to be a class of the training set, which holds 0, 1, 2"):
            members_of(LABELS, 7, "shield_class", "training set")


class TestPool:
    def test_all_protected_images_and_some_others(self, generator):
        pool = divide_pool(LABELS, 2, others=20, validate=False, generator=generator)
        assert (LABELS[pool.outer] == 2).sum() == 10
        assert len(pool.outer.unique()) == 30
        assert not len(pool.validation)

    def test_a_part_is_kept_back(self, generator):
        pool = divide_pool(LABELS, 2, others=20, validate=True, generator=generator)
        assert (LABELS[pool.validation] == 2).sum() == 3
        assert len(pool.validation) == 8
        assert len(torch.cat([pool.outer, pool.validation]).unique()) == 30

    def test_a_pool_without_the_class(self, generator):
        with pytest.raises(ValueError, match="`protected_class` to be a class of the held-out set"):
            divide_pool(LABELS, 6, others=20, validate=False, generator=generator)

    @pytest.mark.parametrize(("labels", "validate"), [([2, 2], False), ([2, 1, 1], True)])
    def test_a_pool_that_cannot_be_divided(self, generator, labels, validate):
        with pytest.raises(ValueError, match="pool of protected images and others"):
            divide_pool(torch.tensor(labels), 2, others=20, validate=validate, generator=generator)
