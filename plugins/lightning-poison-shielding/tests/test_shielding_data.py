import pytest
import torch
from torch.utils.data import TensorDataset

from lightning_poison import Surrogate, Threat
from lightning_poison.data import labels_of
from lightning_poison_shielding.shielding_data import draw_bases, positions_of_class, read_data, split_pool

LABELS = torch.arange(60) % 6


@pytest.fixture
def read(dataset, pool, surrogate, pixels, generator):
    """Return a function that reads the data, with arguments that a test may replace."""

    def run(**replaced):
        arguments = {"surrogates": [surrogate], "holdout": pool, "dataset": dataset, **replaced}
        settings = {"protected_class": 3, "others": 50, "validate": True, "batch_size": 64}
        threat = Threat(10, pixels=pixels)
        return read_data(
            arguments["dataset"], threat, arguments["surrogates"], arguments["holdout"], generator=generator, **settings
        )

    return run


def test_outer_set_has_protected_images_of_pool_and_training_set(read, dataset, pool):
    data = read()
    in_pool, in_training = ((labels_of(data) == 3).sum() for data in (pool, dataset))
    validation = (data.validation.labels == 3).sum()
    assert (data.outer.labels == 3).sum() == in_pool + in_training - validation
    assert len(data.protected) == in_pool - validation
    assert (labels_of(pool)[data.protected] == 3).all()
    assert (data.outer.labels != 3).sum() + (data.validation.labels != 3).sum() == 50
    assert [len(rows) for rows in data.outer.features] == [len(data.outer.labels)]
    assert data.classes == 10


def test_features_match_labels(read, dataset):
    data = read()
    (features,) = data.training.features
    assert features[:, :-1].square().mean() == pytest.approx(1, rel=1e-4)
    torch.testing.assert_close(data.maps[0].detached(data.images(torch.arange(len(dataset)))), features)
    outer = data.maps[0].detached(data.pool(data.protected))
    assert (torch.cdist(outer, data.outer.features[0][data.outer.labels == 3]).min(1).values < 1e-2).all()


def test_head_data_selects_kept_samples(read, dataset):
    data = read()
    keep = torch.arange(len(dataset)) > 4
    (head_data,) = data.head_data(keep)
    assert torch.equal(head_data.training, data.training.features[0][5:])
    assert torch.equal(head_data.training_labels, labels_of(dataset)[5:])


def test_each_surrogate_has_its_own_features(read, surrogate):
    other = Surrogate(surrogate.model, "7")
    data = read(surrogates=[surrogate, other])
    assert [rows.shape[1] for rows in data.training.features] == [33, 11]


@pytest.mark.parametrize(
    ("replaced", "message"),
    [({"surrogates": []}, "at least one model to craft on"), ({"holdout": None}, "a pool of protected images")],
)
def test_refuses_missing_surrogates_and_pool(read, replaced, message):
    with pytest.raises(ValueError, match=message):
        read(**replaced)


def test_refuses_images_outside_pixel_range(read, digits):
    bright = TensorDataset(digits.tensors[0] * 16, digits.tensors[1])
    with pytest.raises(ValueError, match="values from 0 to 16"):
        read(dataset=bright)
    with pytest.raises(ValueError, match="values from 0 to 16"):
        read(holdout=bright)


class TestDrawBases:
    def test_numbers_of_poisons_per_base_differ_by_at_most_one(self, generator):
        bases = draw_bases(LABELS, 4, 25, poisons_per_base=3, generator=generator)
        assert (LABELS[bases] == 4).all()
        counts = bases.unique(return_counts=True)[1]
        assert sorted(counts.tolist()) == [2] * 5 + [3] * 5

    def test_bases_are_distinct_by_default(self, generator):
        assert len(draw_bases(LABELS, 4, 10, poisons_per_base=1, generator=generator).unique()) == 10

    def test_refuses_budget_above_limit_of_class(self, generator):
        with pytest.raises(ValueError, match=r"at most 20, as class 4 has 10 samples .* but got 21") as error:
            draw_bases(LABELS, 4, 21, poisons_per_base=2, generator=generator)
        assert "`poisons_per_base=3`" in str(error.value)

    def test_refuses_absent_class(self):
        with pytest.raises(ValueError, match=r"`shield_class` to be a class of the training set \(0, 1, 2"):
            positions_of_class(LABELS, 7, "shield_class", "training set")


class TestSplitPool:
    def test_uses_all_protected_images_and_some_others(self, generator):
        pool = split_pool(LABELS, 2, others=20, validate=False, generator=generator)
        assert (LABELS[pool.outer] == 2).sum() == 10
        assert len(pool.outer.unique()) == 30
        assert not len(pool.validation)

    def test_holds_out_validation_part(self, generator):
        pool = split_pool(LABELS, 2, others=20, validate=True, generator=generator)
        assert (LABELS[pool.validation] == 2).sum() == 3
        assert len(pool.validation) == 8
        assert len(torch.cat([pool.outer, pool.validation]).unique()) == 30

    def test_refuses_pool_without_protected_class(self, generator):
        with pytest.raises(ValueError, match="`protected_class` to be a class of the held-out set"):
            split_pool(LABELS, 6, others=20, validate=False, generator=generator)

    @pytest.mark.parametrize(("labels", "validate"), [([2, 2], False), ([2, 1, 1], True)])
    def test_refuses_pool_that_cannot_be_split(self, generator, labels, validate):
        with pytest.raises(ValueError, match="pool of protected images and others"):
            split_pool(torch.tensor(labels), 2, others=20, validate=validate, generator=generator)
