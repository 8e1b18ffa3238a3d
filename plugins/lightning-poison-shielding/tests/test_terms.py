import pytest
import torch

from lightning_poison import PixelRange, Threat
from lightning_poison.data import labels_of
from lightning_poison_shielding import ClassShielding
from lightning_poison_shielding.terms import Terms

PIXELS = PixelRange(mean=(0.5,), std=(0.25,))


def terms(**settings):
    return Terms.of(ClassShielding(**{"protected_class": 3, "others": 50, "batch_size": 64, **settings}))


@pytest.mark.parametrize(("placement", "indices"), [("append", [10, 11]), ("replace", [4, 7])])
def test_where_the_poison_goes(placement, indices):
    poison = terms(placement=placement).poison(
        torch.tensor([0.0, 1.0]).view(2, 1, 1, 1),
        torch.tensor([4, 7]),
        5,
        threat=Threat(2, pixels=PIXELS),
        length=10,
        attack="shield",
        settings={"shield_class": None},
    )
    assert poison.indices.tolist() == indices
    assert poison.labels.tolist() == [5, 5]
    assert poison.inputs.flatten().tolist() == [-2.0, 2.0]
    assert poison.settings == {"shield_class": 5}
    assert poison.objective.settings() == {"protected_class": 3, "target_class": -1}
    assert (poison.base_indices is None) == (placement == "replace")


@pytest.mark.parametrize("validate", [False, True])
def test_the_scene_is_what_the_terms_say(dataset, pool, surrogate, pixels, generator, validate):
    threat = Threat(10, pixels=pixels)
    with terms().scene(dataset, threat, [surrogate], pool, validate=validate, generator=generator) as scene:
        measured, kept_back = scene.outer.labels, scene.validation.labels
    assert (measured != 3).sum() + (kept_back != 3).sum() == 50
    assert bool(len(kept_back)) == validate
    assert len(scene.protected) + (kept_back == 3).sum() == (labels_of(pool) == 3).sum()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"protected_class": -1}, "got -1"),
        ({"shield_class": -2}, "got -2"),
        ({"shield_class": 3}, r"another class than `protected_class` \(3\), but got the same"),
        ({"placement": "beside"}, "'append', 'replace'"),
        ({"poisons_per_base": 0}, "`poisons_per_base`"),
        ({"placement": "replace", "poisons_per_base": 2}, "Copies can only be appended"),
    ],
)
def test_settings_that_cannot_be(settings, said):
    with pytest.raises(ValueError, match=said):
        terms(**settings)


def test_appending_where_it_is_forbidden(dataset, pool, surrogate, generator):
    threat = Threat(1, may_append=False)
    scene = terms().scene(dataset, threat, [surrogate], pool, validate=False, generator=generator)
    with pytest.raises(ValueError, match='Set `placement="replace"`'), scene:
        pass
