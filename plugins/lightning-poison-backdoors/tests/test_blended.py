import pytest
import torch

from lightning_poison_backdoors import Blended


def test_the_key_is_blended_into_the_whole_image(images, poison_of):
    key = torch.arange(64, dtype=torch.uint8).view(8, 8)
    poison = poison_of(Blended(1, key=key, amplitude=0.25), images)
    before = images.data[poison.indices].double()
    assert torch.equal(poison.inputs, (0.75 * before + 0.25 * key).round().to(torch.uint8))
    assert (poison.labels == 1).all()


def test_another_ratio_at_test_time(images, poison_of):
    key = torch.full((1, 8, 8), 200, dtype=torch.uint8)
    poison = poison_of(Blended(key=key, amplitude=0.1, test_amplitude=0.5), images)
    image, true, wanted = poison.objective.evaluation_set(images)[0]
    expected = (images.data[1].double() / 2 + 100).round()  # sample 0 is of the target class
    assert (true, wanted) == (1, 0)
    assert ((255 * image).double() - expected).abs().max() <= 0.51
    assert poison.objective.trigger.amplitude == 0.5


def test_noise_is_drawn_from_the_generator(colors, poison_of):
    one, same, other = (poison_of(Blended(), colors, seed=seed).objective.trigger.pattern for seed in (0, 0, 1))
    assert one.shape == (3, 8, 8)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert int(one.max()) - int(one.min()) > 200


def test_all_to_all(images, poison_of):
    poison = poison_of(Blended("next"), images, budget=96)
    assert torch.equal(poison.labels, (images.targets + 1) % 3)


@pytest.mark.parametrize("shape", [(9, 8), (1, 8, 7), (3, 8, 8), (2, 2)])
def test_a_key_of_another_size(images, poison_of, shape):
    key = torch.zeros(shape, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"`key` to be an image like those of the data set, \(1, 8, 8\)[\s\S]*Resize"):
        poison_of(Blended(key=key), images)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"amplitude": 1.5}, "`amplitude`"),
        ({"test_amplitude": 0}, "`test_amplitude`"),
        ({"target_class": 2, "source_class": 2}, "both are 2"),
    ],
)
def test_settings_out_of_range(settings, said):
    with pytest.raises(ValueError, match=said):
        Blended(**settings)


def test_the_threat(images, poison_of):
    with pytest.raises(ValueError, match="clean_label=True"):
        poison_of(Blended(), images, clean_label=True)
    with pytest.raises(ValueError, match=r"epsilon of 0\.01"):
        poison_of(Blended(), images, epsilon=0.01)
