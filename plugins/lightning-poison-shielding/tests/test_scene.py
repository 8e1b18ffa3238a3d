import pytest
import torch
from torch.utils.data import TensorDataset

from lightning_poison import Surrogate, Threat
from lightning_poison.data import labels_of
from lightning_poison_shielding.scene import look


@pytest.fixture
def seen(dataset, pool, surrogate, pixels, generator):
    """Return a function that looks, with parts that a test may replace."""

    def run(**replaced):
        given = {"surrogates": [surrogate], "holdout": pool, "dataset": dataset, **replaced}
        settings = {"protected_class": 3, "others": 50, "validate": True, "batch_size": 64}
        threat = Threat(10, pixels=pixels)
        return look(given["dataset"], threat, given["surrogates"], given["holdout"], generator=generator, **settings)

    return run


def test_what_the_loss_is_measured_on(seen, dataset, pool):
    scene = seen()
    in_pool, in_training = ((labels_of(data) == 3).sum() for data in (pool, dataset))
    kept_back = (scene.validation.labels == 3).sum()
    assert (scene.outer.labels == 3).sum() == in_pool + in_training - kept_back
    assert len(scene.protected) == in_pool - kept_back
    assert (labels_of(pool)[scene.protected] == 3).all()
    assert (scene.outer.labels != 3).sum() + (scene.validation.labels != 3).sum() == 50
    assert [len(rows) for rows in scene.outer.features] == [len(scene.outer.labels)]
    assert scene.classes == 10


def test_features_belong_to_their_labels(seen, dataset):
    scene = seen()
    (features,) = scene.training.features
    assert features[:, :-1].square().mean() == pytest.approx(1, rel=1e-4)
    torch.testing.assert_close(scene.maps[0].known(scene.images(torch.arange(len(dataset)))), features)
    outer = scene.maps[0].known(scene.pool(scene.protected))
    assert (torch.cdist(outer, scene.outer.features[0][scene.outer.labels == 3]).min(1).values < 1e-2).all()


def test_known_samples_are_those_that_stay(seen, dataset):
    scene = seen()
    keep = torch.arange(len(dataset)) > 4
    (known,) = scene.known(keep)
    assert torch.equal(known.training, scene.training.features[0][5:])
    assert torch.equal(known.training_labels, labels_of(dataset)[5:])


def test_each_surrogate_has_features_of_its_own(seen, surrogate):
    other = Surrogate(surrogate.model, "7")
    scene = seen(surrogates=[surrogate, other])
    assert [rows.shape[1] for rows in scene.training.features] == [33, 11]


@pytest.mark.parametrize(
    ("replaced", "said"),
    [({"surrogates": []}, "at least one model to craft on"), ({"holdout": None}, "the owner's pool")],
)
def test_what_is_missing(seen, replaced, said):
    with pytest.raises(ValueError, match=said):
        seen(**replaced)


def test_images_outside_of_the_range(seen, digits):
    bright = TensorDataset(digits.tensors[0] * 16, digits.tensors[1])
    with pytest.raises(ValueError, match="values from 0 to 16"):
        seen(dataset=bright)
    with pytest.raises(ValueError, match="values from 0 to 16"):
        seen(holdout=bright)
