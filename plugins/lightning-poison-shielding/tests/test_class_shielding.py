from dataclasses import dataclass
from importlib.metadata import entry_points

import pytest
import torch
from torch import nn
from torch.utils.data import Subset, TensorDataset

import lightning_poison_shielding
from lightning_poison import PixelRange, Surrogate, Threat, available_attacks, craft, get_attack
from lightning_poison.data import labels_of
from lightning_poison.entry_points import GROUP
from lightning_poison.testing import check_attack
from lightning_poison_shielding import ClassShielding, ClassShieldingGenerator
from lightning_poison_shielding.bilevel import Shield

FINE = PixelRange(levels=None)
QUICK = {"ridge_steps": 2, "logistic_steps": 2}


def optimizer(**settings):
    return ClassShielding(**{"protected_class": 3, "shield_class": 9, **QUICK, **settings})


def generator_attack(**settings):
    return ClassShieldingGenerator(
        **{"protected_class": 3, "shield_class": 9, "super_batch": 30, "learning_rate": 0.01, **QUICK, **settings}
    )


@pytest.fixture
def shielded(dataset, pool, surrogate, pixels):
    """Return a function that crafts and checks the poison, with defaults that a test may replace."""

    def run(attack, *, budget=20, epsilon=0.3, seed=0, threat=None, **replaced):
        arguments = {"surrogates": [surrogate], "holdout": pool, **replaced}
        data = arguments.pop("dataset", dataset)
        threat = threat or Threat(budget, epsilon, pixels=pixels)
        return craft(attack, data, threat, generator=torch.Generator().manual_seed(seed), **arguments)

    return run


def test_entry_point_offers_attacks():
    found = {offer.name: offer for offer in available_attacks() if offer.source.plugin == "shielding"}
    assert set(found) == {"class-shielding", "class-shielding-generator"}
    assert found["class-shielding"].source.distribution == "lightning-poison-shielding"
    assert found["class-shielding"].summary.startswith("Class shielding by bilevel optimization")
    assert isinstance(get_attack("class-shielding", protected_class=3), ClassShielding)
    (point,) = entry_points(group=GROUP, name="shielding")
    assert point.load() is lightning_poison_shielding


@pytest.mark.parametrize(
    "attack",
    [
        pytest.param(ClassShielding(protected_class=0, **QUICK), marks=pytest.mark.slow, id="choosing"),
        pytest.param(
            ClassShielding(protected_class=0, shield_class=2, placement="replace", **QUICK),
            marks=pytest.mark.slow,
            id="replacing",
        ),
        pytest.param(
            ClassShieldingGenerator(protected_class=0, shield_class=2, super_batch=12, **QUICK),
            marks=pytest.mark.slow,
            id="unet",
        ),
        pytest.param(
            ClassShieldingGenerator(protected_class=0, shield_class=2, super_batch=12, architecture="paper", **QUICK),
            marks=pytest.mark.slow,
            id="paper",
        ),
    ],
)
def test_satisfies_attack_contract(attack):
    check_attack(attack)


@dataclass(frozen=True, kw_only=True)
class FixedShield(ClassShielding):
    """An attack with a given result."""

    def _craft_shield(self, data, threat, generator):
        return Shield(5, torch.tensor([4, 7]), torch.tensor([0.0, 1.0]).view(2, 1, 1, 1))


@pytest.mark.parametrize(("placement", "indices"), [("append", [300, 301]), ("replace", [4, 7])])
def test_returns_normalized_poison_at_its_positions(dataset, pool, surrogate, generator, placement, indices):
    half = PixelRange(mean=(0.5,), std=(0.5,))
    normalized, normalized_pool = (
        TensorDataset(half.from_raw(torch.stack([image for image, _ in data])), labels_of(data))
        for data in (dataset, pool)
    )
    poison = FixedShield(protected_class=3, placement=placement).craft(
        normalized, Threat(2, pixels=half), surrogates=[surrogate], holdout=normalized_pool, generator=generator
    )
    assert poison.indices.tolist() == indices
    assert poison.labels.tolist() == [5, 5]
    assert poison.inputs.flatten().tolist() == [-1.0, 1.0]
    assert poison.settings["shield_class"] == 5
    assert poison.objective.settings() == {"protected_class": 3, "target_class": -1}
    assert (poison.base_indices is None) == (placement == "replace")


@pytest.mark.parametrize("build", [optimizer, generator_attack])
class TestPoison:
    def test_appended_poison_has_label_of_shield_class(self, shielded, dataset, build):
        poison = shielded(build())
        assert poison.indices.tolist() == list(range(300, 320))
        assert (labels_of(dataset)[poison.base_indices] == 9).all()
        assert (poison.labels == 9).all()
        assert poison.settings["protected_class"] == 3

    @pytest.mark.slow
    def test_poison_replaces_bases(self, shielded, dataset, build):
        poison = shielded(build(placement="replace"), threat=Threat(12, may_append=False))
        assert poison.base_indices is None
        assert (labels_of(dataset)[poison.indices] == 9).all()

    @pytest.mark.slow
    def test_copies_are_optimized_separately(self, shielded, build):
        poison = shielded(build(poisons_per_base=4), threat=Threat(100, 0.3, pixels=FINE))
        assert len(poison.inputs.unique(dim=0)) > 95  # a pair may come twice

    @pytest.mark.slow
    def test_objective_is_misclassification_of_protected_class(self, shielded, test_set, build):
        objective = shielded(build()).objective
        assert objective.settings() == {"protected_class": 3, "target_class": -1}
        assert len(objective.evaluation_set(test_set)) == (labels_of(test_set) == 3).sum()

    @pytest.mark.slow
    @pytest.mark.parametrize("epsilon", [1 / 16, 0.2, None])
    def test_poison_stays_within_radius(self, shielded, dataset, build, epsilon):
        poison = shielded(build(), epsilon=epsilon)
        bases = torch.stack([dataset[index][0] for index in poison.base_indices.tolist()])
        assert 0 < (poison.inputs - bases).abs().max() <= (epsilon or 1) + 1e-6

    @pytest.mark.slow
    def test_uses_all_surrogates(self, shielded, surrogate, build):
        threat = Threat(20, 0.3, pixels=FINE)
        poison = shielded(build(), surrogates=[surrogate, Surrogate(surrogate.model, "7")], threat=threat)
        assert not torch.equal(poison.inputs, shielded(build(), threat=threat).inputs)

    @pytest.mark.slow
    def test_supports_any_number_of_outputs(self, shielded, surrogate, build):
        wider = nn.Sequential(*surrogate.model[:7], nn.Linear(32, 1000))
        torch.testing.assert_close(
            shielded(build(), surrogates=[Surrogate(wider, "6")]).inputs, shielded(build()).inputs
        )

    @pytest.mark.parametrize(
        ("replaced", "message"),
        [
            ({"protected_class": 11}, "`protected_class` to be a class of the held-out set"),
            ({"shield_class": 11}, "`shield_class` to be a class of the training set"),
        ],
    )
    def test_refuses_absent_class(self, shielded, build, replaced, message):
        with pytest.raises(ValueError, match=message):
            shielded(build(**replaced))

    def test_refuses_training_set_without_protected_class(self, shielded, dataset, build):
        others = Subset(dataset, (labels_of(dataset) != 3).nonzero().flatten().tolist())
        message = r"`protected_class` to be a class of the training set \(0, 1, 2, 4, 5, 6, 7, 8, 9\), but got 3"
        with pytest.raises(ValueError, match=message):
            shielded(build(), dataset=others)

    def test_refuses_budget_above_limit_of_class(self, shielded, dataset, build):
        count = int((labels_of(dataset) == 9).sum())
        with pytest.raises(ValueError, match=f"at most {count}, as class 9 has {count} samples"):
            shielded(build(), budget=count + 1)

    def test_refuses_unknown_layer(self, shielded, surrogate, build):
        with pytest.raises(ValueError, match="one of the layers of Sequential"):
            shielded(build(), surrogates=[Surrogate(surrogate.model, "body")])

    def test_refuses_radius_in_gray_levels(self, shielded, build):
        with pytest.raises(ValueError, match="write `epsilon=8 / 255`"):
            shielded(build(), epsilon=8)

    def test_refuses_missing_surrogates_and_pool(self, shielded, build):
        with pytest.raises(ValueError, match="at least one model"):
            shielded(build(), surrogates=[])
        with pytest.raises(ValueError, match="a pool of protected images"):
            shielded(build(), holdout=None)

    def test_refuses_appending_if_threat_forbids_it(self, shielded, build):
        with pytest.raises(ValueError, match='Set `placement="replace"`'):
            shielded(build(), threat=Threat(5, may_append=False))

    @pytest.mark.parametrize("setting", ["protected_weight", "ridge_steps", "logistic_steps", "others", "batch_size"])
    def test_refuses_zero_settings(self, build, setting):
        with pytest.raises(ValueError, match=f"`{setting}`"):
            build(**{setting: 0})

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"protected_class": -1}, "got -1"),
            ({"shield_class": -2}, "got -2"),
            ({"shield_class": 3}, r"another class than `protected_class` \(3\), but got the same"),
            ({"placement": "beside"}, "'append', 'replace'"),
            ({"poisons_per_base": 0}, "`poisons_per_base`"),
            ({"placement": "replace", "poisons_per_base": 2}, "Copies can only be appended"),
        ],
    )
    def test_refuses_settings_out_of_range(self, build, settings, message):
        with pytest.raises(ValueError, match=message):
            build(**settings)


@pytest.mark.slow
def test_settings_have_chosen_shield_class(shielded):
    poison = shielded(optimizer(shield_class=None, poisons_per_base=2))
    assert poison.settings["shield_class"] == int(poison.labels[0]) != 3


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"architecture": "gan"}, "'paper', 'unet'"),
        ({"super_batch": 2}, "`super_batch`"),
        ({"learning_rate": 0}, "rate"),
    ],
)
def test_refuses_generator_settings_out_of_range(setting, message):
    with pytest.raises(ValueError, match=message):
        generator_attack(**setting)


def test_generator_requires_images(shielded, generator):
    rows = torch.rand(60, 12, generator=generator)
    data = TensorDataset(rows, torch.arange(60) % 10)
    model = nn.Sequential(nn.Linear(12, 4))
    with pytest.raises(ValueError, match=r"images \(C, H, W\) of at least 4 x 4 pixels, but got samples \(12,\)"):
        shielded(generator_attack(), budget=5, dataset=data, holdout=data, surrogates=[Surrogate(model, "0")])
    shielded(optimizer(), budget=5, dataset=data, holdout=data, surrogates=[Surrogate(model, "0")])
