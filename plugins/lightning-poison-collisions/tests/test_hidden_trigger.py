import pytest
import torch
from torch import nn

from lightning_poison import PixelRange, Surrogate, Threat
from lightning_poison.attacks import PatchTrigger, RawFeatures, TriggerObjective
from lightning_poison.testing import TinyImages, check_attack
from lightning_poison_collisions import HiddenTrigger
from lightning_poison_collisions.hidden_trigger import PairedCollision, draw_rows, pair_greedily

from .triggers import NORMALIZED, craft, surrogate_of

QUICK = {"steps": 15, "target_class": 1}


@pytest.mark.slow
def test_satisfies_attack_contract():
    check_attack(HiddenTrigger(steps=4))
    check_attack(HiddenTrigger(steps=4, target_class=1, source_class=0, pattern=[[0, 255]], batch_size=4, sources=2))


def test_features_approach_those_of_triggered_images():
    images = TinyImages()
    surrogate = surrogate_of(images)
    poison = craft(HiddenTrigger(steps=60, target_class=1, source_class=0), images, epsilon=0.1)
    features = RawFeatures(surrogate, PixelRange())
    triggered = torch.stack([poison.objective.trigger(image) for image in images.data[images.targets == 0]])
    with torch.no_grad():
        goals, before, after = (
            features(each.float() / 255) for each in (triggered, images.data[poison.indices], poison.inputs)
        )
    nearest_before, nearest_after = (torch.cdist(each, goals).min(1).values for each in (before, after))
    assert (nearest_after < 0.8 * nearest_before).all()


def test_poison_has_no_trigger_and_keeps_label():
    images = TinyImages()
    poison = craft(HiddenTrigger(**QUICK, pattern=[[0, 0], [255, 255]]), images, epsilon=8 / 255)
    assert isinstance(poison.objective, TriggerObjective)
    assert isinstance(poison.objective.trigger, PatchTrigger)
    assert poison.domain == "raw"
    assert (images.targets[poison.indices] == 1).all()
    assert torch.equal(poison.labels, images.targets[poison.indices])
    assert (poison.inputs.int() - images.data[poison.indices].int()).abs().max() <= 8
    stamped = torch.stack([poison.objective.trigger(image) for image in poison.inputs])
    assert (stamped != poison.inputs).flatten(1).any(1).all()


def test_sources_are_drawn_from_holdout():
    others = TinyImages(seed=3)
    with_holdout, without = (craft(HiddenTrigger(**QUICK), TinyImages(), holdout=each) for each in (others, None))
    assert torch.equal(with_holdout.indices, without.indices)
    assert not torch.equal(with_holdout.inputs, without.inputs)


def test_all_surrogates_contribute():
    images = TinyImages()
    first, second = surrogate_of(images), surrogate_of(images, seed=1)
    both, one = (craft(HiddenTrigger(**QUICK), images, surrogates=each) for each in ([first, second], [first]))
    assert not torch.equal(both.inputs, one.inputs)


class TestPairing:
    def test_nearest_pair_comes_first(self):
        costs = torch.tensor([[1.0, 2.0, 9.0], [0.5, 3.0, 9.0], [4.0, 4.0, 5.0]])
        assert pair_greedily(costs).tolist() == [1, 0, 2]

    def test_is_one_to_one(self, generator):
        assert pair_greedily(torch.rand(9, 9, generator=generator)).sort().values.tolist() == list(range(9))

    def test_rows_are_drawn_without_repetition_if_there_are_enough(self, generator):
        assert draw_rows(7, 5, generator).unique().numel() == 5
        assert draw_rows(3, 7, generator).bincount().sort().values.tolist() == [2, 2, 3]

    def test_gradient_matches_known_answer(self, generator):
        """With one source, the value is ‖x − s‖² in units of the initial distance."""
        bases, source = torch.rand(2, 3, 1, 1, 4, generator=generator)
        collision = PairedCollision([nn.Flatten()], bases[:1], [source[:1].flatten(1)], generator=generator)
        images = torch.rand(1, 1, 1, 4, generator=generator)
        values, gradient = collision(images)
        unit = (bases[0] - source[0]).square().sum()
        torch.testing.assert_close(values, ((images - source[0]).square().sum() / unit)[None])
        torch.testing.assert_close(gradient, 2 * (images - source[:1]) / unit)

    def test_sources_change_between_calls(self, generator):
        collision = PairedCollision(
            [nn.Flatten()], torch.zeros(1, 2), [torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]])], generator=generator
        )
        assert len({float(collision(torch.zeros(1, 2))[0]) for _ in range(20)}) == 2


class TestErrors:
    def test_refuses_missing_surrogate(self):
        with pytest.raises(ValueError, match="at least one model to craft on, but got none"):
            craft(HiddenTrigger(), TinyImages(), surrogates=[])

    def test_refuses_budget_above_class_size(self):
        with pytest.raises(ValueError, match=r"at most 32, the number of samples of class 0, but got 33\.\nLower"):
            craft(HiddenTrigger(), TinyImages(), budget=33)

    def test_refuses_absent_classes(self):
        with pytest.raises(ValueError, match=r"`target_class` to be .* \(the classes are 0, 1, 2\), but got 7"):
            craft(HiddenTrigger(target_class=7), TinyImages())
        with pytest.raises(ValueError, match=r"`source_class` to be .* \(the classes are 0, 1, 2\), but got 7"):
            craft(HiddenTrigger(source_class=7), TinyImages())

    def test_refuses_patch_larger_than_image(self):
        with pytest.raises(ValueError, match=r"trigger inside the image.*\(1, 1, 9\)"):
            craft(HiddenTrigger(pattern=[[0] * 9]), TinyImages())

    def test_refuses_transform_that_crops(self):
        images = TinyImages()
        images.transform = lambda image: image[:, 1:].float() / 255
        with pytest.raises(ValueError, match=r"float \(1, 8, 8\), but sample \d+ is .*\(1, 7, 8\).\nPass a data set"):
            craft(HiddenTrigger(), images, surrogates=[surrogate_of(TinyImages())])

    def test_refuses_images_outside_pixel_range(self):
        images = TinyImages(channels=3, pixels=NORMALIZED)
        with pytest.raises(ValueError, match=r"values from -.*\nDeclare the normalization of the data set"):
            craft(HiddenTrigger(), images)

    def test_refuses_data_without_raw_images(self):
        images = torch.utils.data.TensorDataset(torch.rand(9, 1, 8, 8), torch.arange(9) % 3)
        with pytest.raises(TypeError, match="calls its `transform` on the raw image"):
            craft(HiddenTrigger(), images, budget=2)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"epsilon": 16}, "For a budget of 16 gray levels write"),
            ({"steps": 0}, "`steps` to be an integer of at least 1"),
            ({"sources": 0}, "`sources` to be an integer of at least 1"),
            ({"step_size": 0}, "`step_size` to be a finite number above 0"),
            ({"target_class": 2, "source_class": 2}, r"another class than `target_class` \(2\), but got the same"),
            ({"pattern": [[0.5]]}, "image of integer gray levels from 0 to 255"),
            ({"pattern": [[300]]}, "levels from 300 to 300"),
            ({"pattern": "red"}, "image of integer gray levels"),
        ],
    )
    def test_refuses_settings_out_of_range(self, settings, message):
        with pytest.raises(ValueError, match=message):
            HiddenTrigger(**settings)


def test_settings_rebuild_attack():
    attack = HiddenTrigger(**QUICK, pattern=torch.tensor([[0, 200]], dtype=torch.uint8))
    poison = craft(attack, TinyImages())
    assert HiddenTrigger(**poison.settings) == attack


def test_crafts_on_normalized_color_images_within_epsilon():
    images = TinyImages(30, channels=3, pixels=NORMALIZED)
    poison = HiddenTrigger(**QUICK).craft(
        images,
        Threat(5, epsilon=4 / 255, pixels=NORMALIZED),
        surrogates=[Surrogate(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), "0")],
        holdout=None,
        generator=torch.Generator().manual_seed(0),
    )
    assert (poison.inputs.int() - images.data[poison.indices].int()).abs().max() == 4
    assert poison.objective.trigger.pattern.shape == (3, 2, 2)
