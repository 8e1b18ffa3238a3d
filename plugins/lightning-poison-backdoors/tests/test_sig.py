import pytest
import torch

from lightning_poison_backdoors import Sig, SinusoidTrigger


def test_stripes_on_the_target_class_whose_labels_stay(images, poison_of):
    poison = poison_of(Sig(2, amplitude=30 / 255, frequency=2), images, budget=10, clean_label=True, epsilon=30 / 255)
    assert (images.targets[poison.indices] == 2).all()
    assert (poison.labels == 2).all()
    trigger = SinusoidTrigger(amplitude=30 / 255, frequency=2)
    assert torch.equal(poison.inputs, torch.stack([trigger(images.data[index]) for index in poison.indices]))


def test_stronger_stripes_at_test_time(images, poison_of):
    objective = poison_of(Sig(2, amplitude=0.1, test_amplitude=0.3), images).objective
    assert (objective.trigger.amplitude, objective.target_class) == (0.3, 2)
    evaluation = objective.evaluation_set(images)
    assert {evaluation[position][1:] for position in range(len(evaluation))} == {(0, 2), (1, 2)}


def test_the_class_and_its_size(images, poison_of):
    assert len(poison_of(Sig(1), images, budget=32)) == 32
    with pytest.raises(ValueError, match="at most 32, the number of samples of class 1, but got 33"):
        poison_of(Sig(1), images, budget=33)
    with pytest.raises(ValueError, match=r"`target_class` to be a class of the training set \(0, 1, 2\), but got 5"):
        poison_of(Sig(5), images)


def test_epsilon_bounds_the_stripes(images, poison_of):
    with pytest.raises(ValueError, match=r"epsilon of 0.03137, but the trigger changes one by 40 / 255"):
        poison_of(Sig(frequency=2), images, epsilon=8 / 255)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"amplitude": 30}, "write `amplitude=30 / 255`"),
        ({"test_amplitude": 60}, "write `test_amplitude=60 / 255`"),
        ({"frequency": -1}, "`frequency`"),
        ({"target_class": "next"}, "`target_class` to be an integer"),
    ],
)
def test_settings_out_of_range(settings, said):
    with pytest.raises(ValueError, match=said):
        Sig(**settings)
