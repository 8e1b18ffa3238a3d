from importlib.metadata import entry_points

import pytest
import torch
from torch import nn
from torch.utils.data import Subset

import lightning_poison_shielding
from lightning_poison import PixelRange, Surrogate, Threat, available_attacks, craft, get_attack
from lightning_poison.data import labels_of
from lightning_poison.entry_points import GROUP
from lightning_poison.testing import check_attack
from lightning_poison_shielding import ClassShielding, ClassShieldingGenerator

FINE = PixelRange(levels=None)
QUICK = {"ridge_steps": 2, "logistic_steps": 2}


def optimizer(**settings):
    return ClassShielding(**{"protected_class": 3, "shield_class": 9, **QUICK, **settings})


def learned(**settings):
    return ClassShieldingGenerator(
        **{"protected_class": 3, "shield_class": 9, "super_batch": 30, "learning_rate": 0.01, **QUICK, **settings}
    )


@pytest.fixture
def shielded(dataset, pool, surrogate, pixels):
    """Return a function that crafts through the door, with defaults which a test may replace."""

    def run(attack, *, budget=20, epsilon=0.3, seed=0, threat=None, **replaced):
        given = {"surrogates": [surrogate], "holdout": pool, **replaced}
        data = given.pop("dataset", dataset)
        limits = threat or Threat(budget, epsilon, pixels=pixels)
        return craft(attack, data, limits, generator=torch.Generator().manual_seed(seed), **given)

    return run


def test_both_are_found_through_the_entry_point():
    found = {offer.name: offer for offer in available_attacks() if offer.source.plugin == "shielding"}
    assert set(found) == {"class-shielding", "class-shielding-generator"}
    assert found["class-shielding"].source.distribution == "lightning-poison-shielding"
    assert found["class-shielding"].summary.startswith("Class shielding: images of a shield class")
    assert isinstance(get_attack("class-shielding", protected_class=3), ClassShielding)
    (point,) = entry_points(group=GROUP, name="shielding")
    assert point.load() is lightning_poison_shielding


@pytest.mark.parametrize(
    "attack",
    [
        ClassShielding(protected_class=0, **QUICK),
        ClassShielding(protected_class=0, shield_class=2, placement="replace", **QUICK),
        ClassShieldingGenerator(protected_class=0, shield_class=2, super_batch=12, **QUICK),
        ClassShieldingGenerator(protected_class=0, shield_class=2, super_batch=12, architecture="paper", **QUICK),
    ],
    ids=["choosing", "replacing", "unet", "paper"],
)
def test_they_keep_the_contract(attack):
    check_attack(attack)


@pytest.mark.parametrize("build", [optimizer, learned])
class TestPoison:
    def test_appended_poison_keeps_the_label_of_the_shield_class(self, shielded, dataset, build):
        poison = shielded(build())
        assert poison.indices.tolist() == list(range(300, 320))
        assert (labels_of(dataset)[poison.base_indices] == 9).all()
        assert (poison.labels == 9).all()
        assert poison.settings["protected_class"] == 3

    def test_poison_may_replace_its_bases(self, shielded, dataset, build):
        poison = shielded(build(placement="replace"), threat=Threat(12, may_append=False))
        assert poison.base_indices is None
        assert (labels_of(dataset)[poison.indices] == 9).all()

    def test_copies_are_moved_each_on_its_own(self, shielded, build):
        poison = shielded(build(poisons_per_base=4), threat=Threat(100, 0.3, pixels=FINE))
        assert len(poison.inputs.unique(dim=0)) > 95  # a pair may come twice

    def test_the_objective_is_that_the_protected_class_is_misread(self, shielded, test_set, build):
        objective = shielded(build()).objective
        assert objective.settings() == {"protected_class": 3, "target_class": -1}
        assert len(objective.evaluation_set(test_set)) == (labels_of(test_set) == 3).sum()

    @pytest.mark.parametrize("epsilon", [1 / 16, 0.2, None])
    def test_the_radius_is_used_and_kept(self, shielded, dataset, build, epsilon):
        poison = shielded(build(), epsilon=epsilon)
        bases = torch.stack([dataset[index][0] for index in poison.base_indices.tolist()])
        assert 0 < (poison.inputs - bases).abs().max() <= (epsilon or 1) + 1e-6

    def test_several_surrogates(self, shielded, surrogate, build):
        threat = Threat(20, 0.3, pixels=FINE)
        poison = shielded(build(), surrogates=[surrogate, Surrogate(surrogate.model, "7")], threat=threat)
        assert not torch.equal(poison.inputs, shielded(build(), threat=threat).inputs)

    def test_a_surrogate_of_any_number_of_outputs(self, shielded, surrogate, build):
        wider = nn.Sequential(*surrogate.model[:7], nn.Linear(32, 1000))
        torch.testing.assert_close(
            shielded(build(), surrogates=[Surrogate(wider, "6")]).inputs, shielded(build()).inputs
        )

    @pytest.mark.parametrize(
        ("replaced", "said"),
        [
            ({"protected_class": 11}, "`protected_class` to be a class of the held-out set"),
            ({"shield_class": 11}, "`shield_class` to be a class of the training set"),
        ],
    )
    def test_a_class_without_samples(self, shielded, build, replaced, said):
        with pytest.raises(ValueError, match=said):
            shielded(build(**replaced))

    def test_a_protected_class_that_is_not_trained_on(self, shielded, dataset, build):
        others = Subset(dataset, (labels_of(dataset) != 3).nonzero().flatten().tolist())
        said = "`protected_class` to be a class of the training set, which holds 0, 1, 2, 4, 5, 6, 7, 8, 9, but got 3"
        with pytest.raises(ValueError, match=said):
            shielded(build(), dataset=others)

    def test_a_budget_beyond_the_class(self, shielded, dataset, build):
        count = int((labels_of(dataset) == 9).sum())
        with pytest.raises(ValueError, match=f"at most {count}, as class 9 has {count} samples"):
            shielded(build(), budget=count + 1)

    def test_a_layer_that_is_not_there(self, shielded, surrogate, build):
        with pytest.raises(ValueError, match="one of the layers of Sequential"):
            shielded(build(), surrogates=[Surrogate(surrogate.model, "body")])

    def test_a_radius_in_gray_levels(self, shielded, build):
        with pytest.raises(ValueError, match="write `epsilon=8 / 255`"):
            shielded(build(), epsilon=8)

    def test_what_is_missing(self, shielded, build):
        with pytest.raises(ValueError, match="at least one model"):
            shielded(build(), surrogates=[])
        with pytest.raises(ValueError, match="the owner's pool"):
            shielded(build(), holdout=None)

    def test_appending_where_it_is_forbidden(self, shielded, build):
        with pytest.raises(ValueError, match='Set `placement="replace"`'):
            shielded(build(), threat=Threat(5, may_append=False))

    @pytest.mark.parametrize("setting", ["protected_weight", "ridge_steps", "logistic_steps", "others", "batch_size"])
    def test_settings_out_of_range(self, build, setting):
        with pytest.raises(ValueError, match=f"`{setting}`"):
            build(**{setting: 0})

    def test_the_same_class_twice(self, build):
        with pytest.raises(ValueError, match="another class than `protected_class`"):
            build(shield_class=3)


def test_the_chosen_shield_is_said(shielded):
    poison = shielded(optimizer(shield_class=None, poisons_per_base=2))
    assert poison.settings["shield_class"] == int(poison.labels[0]) != 3


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"architecture": "gan"}, "'paper', 'unet'"),
        ({"super_batch": 2}, "`super_batch`"),
        ({"learning_rate": 0}, "rate"),
    ],
)
def test_settings_of_the_generator(setting, said):
    with pytest.raises(ValueError, match=said):
        learned(**setting)


def test_the_generator_is_for_images(shielded, generator):
    rows = torch.rand(60, 12, generator=generator)
    data = torch.utils.data.TensorDataset(rows, torch.arange(60) % 10)
    model = nn.Sequential(nn.Linear(12, 4))
    with pytest.raises(ValueError, match=r"images \(C, H, W\) of at least 4 x 4, but got samples \(12,\)"):
        shielded(learned(), budget=5, dataset=data, holdout=data, surrogates=[Surrogate(model, "0")])
    shielded(optimizer(), budget=5, dataset=data, holdout=data, surrogates=[Surrogate(model, "0")])
