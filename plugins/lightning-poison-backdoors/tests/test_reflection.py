import pytest
import torch

from lightning_poison import Poison, Threat
from lightning_poison.attacks import trigger_kinds
from lightning_poison.testing import TinyImages
from lightning_poison_backdoors import ReflectionTrigger, Refool
from lightning_poison_backdoors.reflection import blurred, contrasting_images, doubled


def noise(*shape, seed=0):
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


class TestTrigger:
    def test_adds_a_flat_reflection_of_known_strength(self):
        scenes = torch.full((1, 3, 4, 6), 100, dtype=torch.uint8)
        trigger = ReflectionTrigger(scenes, amplitude=(0.3, 0.3))
        assert torch.equal(trigger(torch.full((3, 4, 6), 20, dtype=torch.uint8)), torch.full((3, 4, 6), 50).byte())
        assert torch.equal(trigger(torch.full((3, 4, 6), 240, dtype=torch.uint8)), torch.full((3, 4, 6), 255).byte())

    def test_reflection_out_of_focus_is_blurred(self):
        scene = noise(3, 8, 8)
        image = torch.zeros(3, 8, 8, dtype=torch.uint8)
        drawn = ReflectionTrigger(scene[None], amplitude=(0.5, 0.5), blur=(0.7, 0.7), ghost_share=0)(image)
        assert torch.equal(drawn, (0.5 * blurred(scene.double(), 0.7)).round().to(torch.uint8))

    def test_ghost_is_the_scene_twice(self):
        scene = torch.zeros(1, 8, 8, dtype=torch.uint8)
        scene[0, 1, 1] = 200
        image = torch.zeros(1, 8, 8, dtype=torch.uint8)
        drawn = ReflectionTrigger(scene[None], amplitude=(0.5, 0.5), shift=(3, 3), ghost_share=1)(image)
        assert drawn[0].nonzero().tolist() == [[1, 1], [4, 4]]
        assert int(drawn.int().sum()) == pytest.approx(100, abs=1)

    def test_images_get_different_reflections(self):
        scenes = torch.tensor([50, 100, 150, 200]).view(4, 1, 1, 1).expand(4, 1, 6, 6).to(torch.uint8)
        trigger = ReflectionTrigger(scenes, amplitude=(1.0, 1.0))
        images = torch.arange(40).view(40, 1, 1, 1).expand(40, 1, 6, 6).to(torch.uint8)
        added = [int((trigger(image).int() - image.int())[0, 0, 0]) for image in images]
        assert {level: added.count(level) > 3 for level in set(added)} == dict.fromkeys((50, 100, 150, 200), True)

    def test_draws_shifts_and_strengths_from_their_whole_range(self):
        scene = torch.zeros(1, 8, 8, dtype=torch.uint8)
        scene[0, 1, 1] = 200
        trigger = ReflectionTrigger(scene[None], amplitude=(0.2, 0.9), shift=(1, 3), ghost_share=1)
        images = torch.zeros(60, 1, 8, 8, dtype=torch.uint8)
        images[:, 0, 7, 0] = torch.arange(60)  # where no reflection falls
        added = torch.stack([trigger(image).int() - image.int() for image in images])[:, 0]
        shifts = {int(each.diagonal().nonzero().max()) - 1 for each in added}
        strengths = added.amax((1, 2))
        assert shifts == {1, 2, 3}
        assert int(strengths.max()) > 2 * int(strengths.min())

    def test_is_a_function_of_the_image(self):
        trigger = ReflectionTrigger(noise(5, 1, 8, 8))
        image = noise(1, 8, 8, seed=1)
        before = image.clone()
        torch.manual_seed(0)
        first = trigger(image)
        torch.manual_seed(1)
        assert torch.equal(trigger(image.clone()), first)
        assert torch.equal(trigger(image.transpose(1, 2).contiguous().transpose(1, 2)), first)
        assert torch.equal(image, before)

    def test_survives_packing(self):
        trigger = ReflectionTrigger(noise(3, 3, 8, 8), amplitude=(0.1, 0.4), blur=(1, 2), shift=(1, 2), ghost_share=0.3)
        packed, tensors = trigger_kinds.pack(trigger)
        assert (packed["kind"], set(tensors)) == ("reflection", {"reflections"})
        unpacked = trigger_kinds.unpack(packed, tensors)
        assert repr(unpacked) == repr(trigger) == "ReflectionTrigger(3 reflections, amplitude=(0.1, 0.4))"
        for seed in range(5):
            image = noise(3, 8, 8, seed=seed)
            assert torch.equal(unpacked(image), trigger(image))

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"reflections": torch.rand(2, 1, 8, 8)}, r"`reflections` to be uint8 images \(R, C, H, W\)"),
            ({"reflections": noise(1, 8, 8)}, "`reflections` to be uint8 images"),
            ({"amplitude": (0.5, 0.4)}, r"`amplitude` to be the lower value first, but got \(0.5, 0.4\)"),
            ({"amplitude": 0.4}, "`amplitude` to be two values"),
            ({"amplitude": (10, 40)}, "`amplitude=10 / 255`"),
            ({"blur": (0, 1)}, "`blur`"),
            ({"shift": (0, 2)}, "`shift`"),
            ({"shift": (1.5, 2)}, "`shift`"),
            ({"ghost_share": 2}, "`ghost_share`"),
        ],
    )
    def test_refuses_settings_out_of_range(self, settings, message):
        with pytest.raises(ValueError, match=message):
            ReflectionTrigger(**{"reflections": noise(2, 1, 8, 8), **settings})

    def test_refuses_images_of_another_shape(self):
        with pytest.raises(ValueError, match=r"the shape of the reflections, \(1, 8, 8\), but got \(3, 8, 8\)"):
            ReflectionTrigger(noise(2, 1, 8, 8))(noise(3, 8, 8))


class TestAttack:
    def test_adds_reflection_and_target_label(self, images, poison_of):
        poison = poison_of(Refool(1), images, budget=20)
        assert bool((poison.labels == 1).all())
        assert bool((images.targets[poison.indices] != 1).all())
        assert bool((poison.inputs >= images.data[poison.indices]).all())
        assert bool((poison.inputs != images.data[poison.indices]).flatten(1).any(1).all())

    def test_test_images_get_other_reflections(self, images, poison_of):
        black, white = torch.zeros(1, 8, 8), torch.full((1, 8, 8), 100)
        scenes = torch.stack([black, white, black, white]).to(torch.uint8)
        poison = poison_of(Refool(1, reflections=scenes), images)
        assert torch.equal(poison.inputs, images.data[poison.indices])  # black reflections
        assert int(poison.objective.trigger.reflections.min()) == 100

    def test_reflections_come_from_holdout(self, images):
        holdout = TinyImages(90, seed=5)
        poison = Refool(1, pool=6).craft(
            images, Threat(6), surrogates=(), holdout=holdout, generator=torch.Generator().manual_seed(0)
        )
        scenes = poison.objective.trigger.reflections
        assert len(scenes) == 3
        assert all(bool((holdout.data == scene).flatten(1).all(1).any()) for scene in scenes)

    def test_clean_label_poisons_the_target_class(self, images, poison_of):
        poison = poison_of(Refool(1, clean_label=True), images, budget=20, clean_label=True)
        assert images.targets[poison.indices].tolist() == [1] * 20 == poison.labels.tolist()

    def test_saved_trigger_is_the_same(self, colors, poison_of, tmp_path):
        poison = poison_of(Refool(pool=4), colors)
        poison.save(tmp_path / "poison")
        loaded = Poison.load(tmp_path / "poison").objective.trigger
        assert torch.equal(loaded(colors.data[0]), poison.objective.trigger(colors.data[0]))

    @pytest.mark.parametrize(
        ("attack", "settings", "message"),
        [
            (Refool(reflections=[[[0]], [[1]]]), {}, r"shape of the training images, \(1, 8, 8\), but got \(1, 1, 1\)"),
            (Refool(), {"clean_label": True}, "clean_label=True"),
            (Refool(), {"epsilon": 8 / 255}, r"Lower the `amplitude`"),
        ],
    )
    def test_refuses_unfit_threat_and_data(self, images, poison_of, attack, settings, message):
        with pytest.raises(ValueError, match=message):
            poison_of(attack, images, **settings)

    @pytest.mark.parametrize(
        ("settings", "error", "message"),
        [
            ({"pool": 1}, ValueError, "`pool`"),
            ({"amplitude": (0.4, 0.2)}, ValueError, "`amplitude` to be the lower value first"),
            ({"reflections": [[[0]]]}, ValueError, "at least two images of one shape"),
            ({"reflections": [[[0]], [[1, 2]]]}, ValueError, "at least two images of one shape"),
            ({"reflections": 3}, ValueError, "at least two images of one shape"),
            ({"clean_label": True, "target_class": "next"}, ValueError, "one class, and no `source_class`"),
            ({"clean_label": True, "source_class": 2}, ValueError, "one class, and no `source_class`"),
            ({"clean_label": 1}, TypeError, "`clean_label`"),
            ({"target_class": 1, "source_class": 1}, ValueError, "both are 1"),
        ],
    )
    def test_refuses_settings_out_of_range(self, settings, error, message):
        with pytest.raises(error, match=message):
            Refool(**settings)


def test_contrasting_images_are_those_of_highest_contrast():
    dataset = TinyImages(60)
    dataset.data[9, 0, :4] = 0
    dataset.data[9, 0, 4:] = 255
    found = contrasting_images(dataset, 3, torch.Generator().manual_seed(0))
    assert torch.equal(found[0], dataset.data[9])
    contrast = found.double().flatten(1).std(1)
    assert torch.equal(contrast, contrast.sort(descending=True).values)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 9), (1, 1, 1)])
def test_blur_keeps_the_mean_of_flat_images_and_doubling_their_shape(shape):
    flat = torch.full(shape, 7.0)
    assert torch.allclose(blurred(flat, 1.5), flat)
    assert torch.equal(doubled(flat, 9, 0.25), flat)


def test_blur_is_symmetric_and_of_unit_weight():
    image = torch.zeros(1, 9, 9, dtype=torch.float64)
    image[0, 4, 4] = 1
    seen = blurred(image, 1.0)
    assert float(seen.sum()) == pytest.approx(1)
    assert torch.allclose(seen, seen.flip(1))
    assert torch.allclose(seen, seen.transpose(1, 2))
    assert float(seen[0, 4, 5] / seen[0, 4, 4]) == pytest.approx(0.60653, abs=1e-4)


def test_contrasting_images_are_all_of_a_small_data_set():
    assert len(contrasting_images(TinyImages(5), 9, torch.Generator().manual_seed(0))) == 5
    with pytest.raises(ValueError, match="at least two images to take reflections from, but it has 1"):
        contrasting_images(TinyImages(1), 9, torch.Generator().manual_seed(0))
