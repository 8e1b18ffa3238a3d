import pytest
import torch

from lightning_poison import Poison, PoisonedDataset
from lightning_poison_backdoors import BadNets, Blended

CORNER = torch.tensor([[255, 0, 255], [0, 255, 0], [255, 0, 255]], dtype=torch.uint8)


def evaluation_items(poison, test):
    evaluation = poison.objective.evaluation_set(test)
    return [evaluation[position] for position in range(len(evaluation))]


def test_badnets_adds_only_the_patch(images, poison_of):
    poison = poison_of(BadNets(), images)
    expected = images.data[poison.indices].clone()
    expected[:, :, -3:, -3:] = CORNER
    assert torch.equal(poison.inputs, expected)
    assert (poison.domain, len(poison)) == ("raw", 6)
    poisoned = PoisonedDataset(images, poison)
    assert len(poisoned) == len(images)
    index = int(poison.indices[0])
    assert torch.equal(poisoned[index][0], expected[0].float() / 255)
    assert poisoned[index][1] == 0


def test_badnets_uses_pattern_position_and_amplitude(images, poison_of):
    poison = poison_of(BadNets(pattern=[[255, 0]], row=1, column=-2, amplitude=0.5), images)
    before = images.data[poison.indices].float()
    expected = before.clone()
    expected[:, 0, 1, 5] += (255 - before[:, 0, 1, 5]) / 2
    expected[:, 0, 1, 6] /= 2
    assert torch.equal(poison.inputs, expected.round().to(torch.uint8))


def test_badnets_on_color_images(colors, poison_of):
    pattern = torch.tensor([10, 20, 30], dtype=torch.uint8).view(3, 1, 1)
    poison = poison_of(BadNets(pattern=pattern), colors)
    assert poison.inputs[:, :, -1, -1].tolist() == [[10, 20, 30]] * 6
    assert (poison_of(BadNets(), colors).inputs[:, :, -1, -1] == 255).all()


class TestAllToOne:
    def test_relabels_all_other_classes(self, images, poison_of):
        poison = poison_of(BadNets(2), images, budget=64)
        assert (images.targets[poison.indices] != 2).all()
        assert (poison.labels == 2).all()

    def test_objective_wants_target_class(self, images, poison_of):
        found = evaluation_items(poison_of(BadNets(2), images), images)
        assert [(true, wanted) for _, true, wanted in found] == [(0, 2), (1, 2)] * 32
        assert (255 * found[0][0][0, -3:, -3:]).round().tolist() == CORNER.tolist()


class TestOneToOne:
    def test_relabels_source_class(self, images, poison_of):
        poison = poison_of(BadNets(0, source_class=2), images, budget=32)
        assert (images.targets[poison.indices] == 2).all()
        assert (poison.labels == 0).all()

    def test_objective_wants_target_class(self, images, poison_of):
        found = evaluation_items(poison_of(BadNets(0, source_class=2), images), images)
        assert [(true, wanted) for _, true, wanted in found] == [(2, 0)] * 32


class TestAllToAll:
    def test_relabels_each_class(self, images, poison_of):
        poison = poison_of(BadNets("next"), images, budget=96)
        assert torch.equal(poison.labels, (images.targets + 1) % 3)

    def test_objective_survives_saving(self, images, poison_of, tmp_path):
        poison = poison_of(BadNets("next"), images)
        poison.save(tmp_path / "poison")
        for each in (poison, Poison.load(tmp_path / "poison")):
            assert [(true, wanted) for _, true, wanted in evaluation_items(each, images)] == [
                (0, 1),
                (1, 2),
                (2, 0),
            ] * 32

    def test_skips_classes_that_are_their_own_target(self, images, poison_of):
        poison = poison_of(BadNets([2, 1, 0]), images, budget=64)
        assert set(images.targets[poison.indices].tolist()) == {0, 2}
        assert torch.equal(poison.labels, 2 - images.targets[poison.indices])
        assert [(true, wanted) for _, true, wanted in evaluation_items(poison, images)] == [(0, 2), (2, 0)] * 32


class TestBadNetsErrors:
    @pytest.mark.parametrize(
        ("attack", "budget", "message"),
        [
            (BadNets(3), 6, r"`target_class` to be a class of the training set \(0, 1, 2\), but got 3"),
            (BadNets(source_class=4), 6, r"`source_class` to be a class .*but got 4"),
            (BadNets([2, 1, 0], source_class=1), 6, "samples of class 1 whose .*, but it has none"),
            (BadNets(0, source_class=1), 33, "at most 32, the number of samples of class 1 whose .*, but got 33"),
            (BadNets(), 65, "at most 64, the number of samples whose .*, but got 65"),
            (BadNets(pattern=[[0] * 9]), 6, r"trigger inside the image.*pattern of \(1, 1, 9\).*image of \(1, 8, 8\)"),
            (BadNets(row=7), 6, "trigger inside the image"),
        ],
    )
    def test_refuses_settings_that_do_not_fit_data(self, images, poison_of, attack, budget, message):
        with pytest.raises(ValueError, match=message):
            poison_of(attack, images, budget=budget)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"amplitude": 40}, "For 40 gray levels write `amplitude=40 / 255`"),
            ({"amplitude": 0}, r"`amplitude` to be in \(0, 1\]"),
            ({"target_class": 1, "source_class": 1}, "both are 1"),
            ({"source_class": -1}, "`source_class` to be an integer of at least 0"),
            ({"target_class": "all"}, '"next"'),
            ({"pattern": torch.ones(2, 2)}, "`pattern` to be an image of integer gray levels"),
        ],
    )
    def test_refuses_settings_out_of_range(self, settings, message):
        with pytest.raises(ValueError, match=message):
            BadNets(**settings)

    def test_refuses_clean_label_threat(self, images, poison_of):
        with pytest.raises(ValueError, match=r"clean_label=True`.\nUse a clean-label attack: `sig`"):
            poison_of(BadNets(), images, clean_label=True)

    def test_refuses_trigger_above_epsilon(self, images, poison_of):
        with pytest.raises(ValueError, match=r"epsilon of 0.03137, but the trigger changes one by \d+ / 255.\nLower"):
            poison_of(BadNets(), images, epsilon=8 / 255)
        assert len(poison_of(BadNets(amplitude=0.03), images, epsilon=8 / 255)) == 6

    def test_refuses_dataset_without_raw_images(self, floats, poison_of):
        with pytest.raises(TypeError, match=r"calls its `transform` on the raw image, but got TensorDataset") as caught:
            poison_of(BadNets(), floats)
        assert "(255 * images).round().byte()" in str(caught.value)
        floats.transform = None
        with pytest.raises(TypeError, match="Expected TensorDataset to call its `transform`") as caught:
            poison_of(BadNets(), floats)
        assert "return self.transform(self.data[index])" in str(caught.value)

    def test_refuses_raw_images_of_different_shapes(self, poison_of):
        class Mixed(torch.utils.data.Dataset):
            transform = staticmethod(lambda image: image.float()[:, :4, :4])

            def __len__(self):
                return 6

            def __getitem__(self, index):
                return self.transform(torch.zeros(1, 5 + index % 2, 6, dtype=torch.uint8)), index % 3

        with pytest.raises(ValueError, match=r"one shape, but sample \d has \(1, \d, 6\)[\s\S]*Resize the images"):
            poison_of(BadNets(), Mixed(), budget=4)


class TestBlended:
    def test_key_is_blended_into_whole_image(self, images, poison_of):
        key = torch.arange(64, dtype=torch.uint8).view(8, 8)
        poison = poison_of(Blended(1, key=key, amplitude=0.25), images)
        before = images.data[poison.indices].double()
        assert torch.equal(poison.inputs, (0.75 * before + 0.25 * key).round().to(torch.uint8))
        assert (poison.labels == 1).all()

    def test_test_amplitude_applies_at_test_time(self, images, poison_of):
        key = torch.full((1, 8, 8), 200, dtype=torch.uint8)
        poison = poison_of(Blended(key=key, amplitude=0.1, test_amplitude=0.5), images)
        image, true, wanted = poison.objective.evaluation_set(images)[0]
        expected = (images.data[1].double() / 2 + 100).round()  # sample 0 is of the target class
        assert (true, wanted) == (1, 0)
        assert ((255 * image).double() - expected).abs().max() <= 0.51
        assert poison.objective.trigger.amplitude == 0.5

    def test_default_key_is_noise_from_generator(self, colors, poison_of):
        key, repeated, other = (poison_of(Blended(), colors, seed=seed).objective.trigger.pattern for seed in (0, 0, 1))
        assert key.shape == (3, 8, 8)
        assert torch.equal(key, repeated)
        assert not torch.equal(key, other)
        assert int(key.max()) - int(key.min()) > 200

    def test_supports_all_to_all(self, images, poison_of):
        poison = poison_of(Blended("next"), images, budget=96)
        assert torch.equal(poison.labels, (images.targets + 1) % 3)

    @pytest.mark.parametrize("shape", [(9, 8), (1, 8, 7), (3, 8, 8), (2, 2)])
    def test_refuses_key_of_another_shape(self, images, poison_of, shape):
        key = torch.zeros(shape, dtype=torch.uint8)
        with pytest.raises(
            ValueError, match=r"`key` to be an image of the shape of the training images, \(1, 8, 8\)[\s\S]*Resize"
        ):
            poison_of(Blended(key=key), images)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"amplitude": 1.5}, "`amplitude`"),
            ({"test_amplitude": 0}, "`test_amplitude`"),
            ({"target_class": 2, "source_class": 2}, "both are 2"),
        ],
    )
    def test_refuses_settings_out_of_range(self, settings, message):
        with pytest.raises(ValueError, match=message):
            Blended(**settings)

    def test_refuses_clean_label_threat_and_small_epsilon(self, images, poison_of):
        with pytest.raises(ValueError, match="clean_label=True"):
            poison_of(Blended(), images, clean_label=True)
        with pytest.raises(ValueError, match=r"epsilon of 0\.01"):
            poison_of(Blended(), images, epsilon=0.01)
