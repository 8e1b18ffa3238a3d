import pytest
import torch
from torch.utils.data import TensorDataset

from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.runtime import LocalRuntime
from lightning_poison.scorers.discriminator.gan import Gans, GanSettings, _epoch, fit_gans, members_of, side_by_side
from lightning_poison.scorers.discriminator.gan_models import ClassDiscriminators

RUNTIME = LocalRuntime(precision="32", threads=1)


def fitted(data, *, seed=0, **settings):
    model = ClassDiscriminators((1, 8, 8), int(data.tensors[1].max()) + 1, width=2)
    return fit_gans(
        model,
        data,
        data.tensors[1],
        width=2,
        settings=GanSettings(**{"epochs": 1, "batch_size": 4, "learning_rate": 1e-3, **settings}),
        sample=SampleSpec(),
        runtime=RUNTIME,
        generator=torch.Generator().manual_seed(seed),
    )


@pytest.fixture
def images():
    return TensorDataset(torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 4)


def test_each_network_sees_its_own_class_alone(images, monkeypatch):
    inputs, labels = images.tensors
    painted = TensorDataset(torch.zeros_like(inputs) + labels[:, None, None, None] / 4, labels)
    seen = []
    step = Gans.step
    monkeypatch.setattr(Gans, "step", lambda self, real, noise: seen.append(real) or step(self, real, noise))
    fitted(painted)
    assert len(seen) == 10 // 4
    for real in seen:
        assert real.shape == (4, 4, 8, 8)
        assert torch.equal(real[:, :, 0, 0], (torch.arange(4) / 4).expand(4, 4))


def test_the_generator_decides_dropout_and_all_and_the_global_state_stays(images):
    found = torch.get_rng_state()
    one, two, other = (fitted(images, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(torch.get_rng_state(), found)


def test_an_epoch_sees_each_image_of_the_largest_class_once_and_the_smaller_more_often():
    labels = torch.tensor([0] * 12 + [1] * 5)
    settings = GanSettings(batch_size=4)
    steps = _epoch(members_of(labels, 2), settings, torch.Generator().manual_seed(0))
    assert [len(step) for step in steps] == [8, 8, 8]
    first, second = (torch.cat([step[part] for step in steps]) for part in (slice(4), slice(4, None)))
    assert first.sort().values.tolist() == list(range(12))
    assert set(second.tolist()) == set(range(12, 17))
    assert sorted(second.bincount(minlength=17)[12:].tolist()) == [2, 2, 2, 3, 3]


def test_images_of_a_class_lie_side_by_side_with_their_channels():
    images = torch.arange(2 * 3 * 2).view(6, 2, 1, 1)
    expected = [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]
    assert side_by_side(images, 2)[:, :, 0, 0].tolist() == expected


@pytest.mark.parametrize(("labels", "said"), [([0, 0, 1], "1 of class 1"), ([1, 1], "0 of class 0")])
def test_a_class_of_one_or_none_is_refused(labels, said):
    with pytest.raises(ValueError, match=rf"`trusted` to be .* but got {said}\.\nAdd samples of it"):
        members_of(torch.tensor(labels), 2)


def test_a_loss_that_is_not_finite(images):
    with pytest.raises(FloatingPointError, match=r"`loss` to be finite, but got .* at step \d+, class \d"):
        fitted(images, learning_rate=1e30, epochs=3)
