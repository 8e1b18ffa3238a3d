import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import Dataset, Subset, TensorDataset

from lightning_poison.data.blocks import read_blocks
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.data.transfer import overlapped
from lightning_poison.errors import UnreadableSampleError
from lightning_poison.models import fitting
from lightning_poison.models.backbones import default_backbone
from lightning_poison.models.fitting import (
    FitSettings,
    _augmented,
    _mirrored,
    _shifted,
    fit_module,
    to_channels_last,
)
from lightning_poison.runtime import LocalRuntime

QUICK = FitSettings(epochs=2, batch_size=16, min_steps=0)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def cross_entropy(module, inputs, labels):
    return F.cross_entropy(module(inputs), labels)


class Noisy(Dataset):
    """Blobs behind a random transform."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        point, label = self.data[index]
        return point + torch.randn(point.shape), label


def weights(data, *, generator=None, workers=0, plan=QUICK, **arguments):
    network = default_backbone((4,), 3)
    runtime = LocalRuntime(precision="32", threads=1, num_workers=workers)
    fit_module(network, data, cross_entropy, settings=plan, runtime=runtime, generator=generator, **arguments)
    return torch.cat([value.detach().double().flatten() for value in network.state_dict().values()])


@pytest.mark.slow
def test_weights_depend_on_generator(blobs):
    data = Noisy(blobs(64))
    assert torch.equal(weights(data, generator=seeded(1)), weights(data, generator=seeded(1)))
    assert not torch.equal(weights(data, generator=seeded(1)), weights(data, generator=seeded(2)))
    assert torch.equal(weights(data), weights(data))


@pytest.mark.slow
def test_weights_do_not_depend_on_number_of_workers(blobs):
    data = Noisy(blobs(64))
    assert torch.equal(weights(data, generator=seeded(1)), weights(data, generator=seeded(1), workers=2))


def test_does_not_use_global_generator(blobs):
    before = torch.get_rng_state()
    weights(Noisy(blobs(64)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_learns_digits(digits):
    network = default_backbone((1, 8, 8), 10)
    plan = FitSettings(epochs=3, batch_size=64, min_steps=0)
    runtime = LocalRuntime(precision="32", threads=1)
    assert fit_module(network, Subset(digits, range(1300)), cross_entropy, settings=plan, runtime=runtime) is network
    assert not network.training
    images, labels = digits[1300:]
    assert float((network(images).argmax(1) == labels).double().mean()) > 0.9


@pytest.mark.parametrize(
    ("length", "arguments", "steps"),
    [
        (100, {"epochs": 3, "batch_size": 30, "min_steps": 0}, 9),
        (100, {"epochs": 3, "batch_size": 30, "min_steps": 10}, 12),
        (5, {"epochs": 3, "batch_size": 30, "min_steps": 0}, 3),
        (5, {"epochs": 3, "batch_size": 30, "min_steps": 7}, 7),
        (100_000, {}, 8 * 781),
    ],
)
def test_number_of_steps(length, arguments, steps):
    assert FitSettings(**arguments).total_steps(length) == steps


@pytest.mark.parametrize("epochs", [1, 2, 3, 4, 5, 6, 10])
def test_schedules_any_small_number_of_steps(epochs):
    rates = []

    def watch(module, inputs, labels):
        return cross_entropy(module, inputs, labels)

    class Bar(LocalRuntime):
        def progress(self, total, description):
            rates.append((total, description))
            return super().progress(total, description)

    plan = FitSettings(epochs=epochs, min_steps=0)
    data = TensorDataset(torch.randn(3, 4), torch.tensor([0, 1, 2]))
    fit_module(nn.Linear(4, 3), data, watch, settings=plan, runtime=Bar(precision="32"), description="x")
    assert rates == [(epochs, "x")]


@pytest.mark.parametrize("max_steps", [1, 3, 100])
def test_stops_after_max_steps(blobs, max_steps):
    sizes = []

    def count(module, inputs, labels):
        sizes.append(len(inputs))
        return cross_entropy(module, inputs, labels)

    fit_module(nn.Linear(4, 3), blobs(40), count, settings=QUICK, max_steps=max_steps)
    assert sizes == [16] * min(max_steps, 4)


def test_each_epoch_has_all_samples_in_new_order(blobs):
    seen = []

    def watch(module, inputs, labels):
        seen.append(inputs.detach().clone())
        return cross_entropy(module, inputs, labels)

    data = blobs(48)
    fit_module(nn.Linear(4, 3), data, watch, settings=QUICK)
    first, second = torch.cat(seen[:3]), torch.cat(seen[3:])
    assert torch.equal(first.sort(0).values, data.tensors[0].sort(0).values)
    assert torch.equal(second.sort(0).values, data.tensors[0].sort(0).values)
    assert not torch.equal(first, second)


def test_tiny_data_set(digits):
    network = default_backbone((1, 8, 8), 10)
    fit_module(network, Subset(digits, [0, 1]), cross_entropy, settings=FitSettings(epochs=2, min_steps=2))
    assert all(parameter.isfinite().all() for parameter in network.parameters())


def test_dict_samples(blobs):
    points, labels = blobs(32).tensors
    data = [{"left": x, "right": x, "y": int(y)} for x, y in zip(points, labels, strict=True)]
    with pytest.raises(ValueError, match="Name the two by their paths"):
        weights(data)
    plain = weights(TensorDataset(points, labels))
    assert torch.equal(weights(data, sample=SampleSpec("right", "y")), plain)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_divergence_raises(blobs, value):
    def diverge(module, inputs, labels):
        return cross_entropy(module, inputs, labels) * value

    with pytest.raises(
        FloatingPointError, match=r"`loss` to be finite, but got (nan|inf) at step 0\.\nLower `learning"
    ):
        fit_module(nn.Linear(4, 3), blobs(32), diverge, settings=QUICK)


def test_error_names_unreadable_sample(blobs):
    points, labels = blobs(32).tensors
    points[17] = torch.nan
    with pytest.raises(UnreadableSampleError, match="sample 17 contains NaN"):
        weights(TensorDataset(points, labels))


def test_uses_threads_of_runtime(blobs):
    used = []

    def watch(module, inputs, labels):
        used.append(torch.get_num_threads())
        return cross_entropy(module, inputs, labels)

    for threads in (1, 3):
        fit_module(nn.Linear(4, 3), blobs(32), watch, settings=QUICK, runtime=LocalRuntime(threads=threads))
    assert used == [1, 1, 1, 1, 3, 3, 3, 3]


def test_restores_threads_after_error(blobs):
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError):
        fit_module(nn.Linear(4, 3), blobs(32), lambda *_: 1 / 0, settings=QUICK, runtime=LocalRuntime(threads=3))
    assert torch.get_num_threads() == before


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 3), st.integers(0, 99))
def test_images_are_shifted_as_a_whole_within_limit(limit, seed):
    generator = seeded(seed)
    images = torch.rand(5, 2, 6, 7, generator=generator)
    shifted = _shifted(images, limit, generator)
    assert shifted.shape == images.shape
    padded = F.pad(images, (limit,) * 4, mode="replicate")
    places = [(row, column) for row in range(2 * limit + 1) for column in range(2 * limit + 1)]
    for old, new in zip(padded, shifted, strict=True):
        assert any(torch.equal(old[:, row : row + 6, column : column + 7], new) for row, column in places)


def test_shifts_cover_range_and_differ_between_images():
    images = torch.zeros(200, 1, 9, 9)
    images[:, :, 4, 4] = 1
    places = _shifted(images, 2, seeded())[:, 0].nonzero()[:, 1:] - 4
    assert sorted(set(places.flatten().tolist())) == [-2, -1, 0, 1, 2]
    assert len({tuple(place) for place in places.tolist()}) == 25


@pytest.mark.parametrize(("side", "limit"), [(6, 0), (8, 1), (28, 2), (32, 2), (60, 4)])
def test_default_shift_is_a_fifteenth_of_the_side(side, limit):
    images = torch.zeros(300, 1, side, side)
    images[:, :, side // 2, side // 2] = 1
    shifts = _shifted(images, None, seeded())[:, 0].nonzero()[:, 1:] - side // 2
    assert int(shifts.abs().max()) == limit


@given(st.integers(0, 2**31 - 1))
@settings(max_examples=20, deadline=None)
def test_half_of_photos_are_mirrored(seed):
    images = torch.arange(2.0).expand(400, 3, 4, 2)
    mirrored = _mirrored(images, None, seeded(seed))
    is_mirrored = (mirrored == images.flip(3)).flatten(1).all(1)
    assert torch.equal(mirrored[~is_mirrored], images[~is_mirrored])
    assert 140 < int(is_mirrored.sum()) < 260


def test_mirroring_is_a_setting():
    gray, vectors = torch.rand(9, 1, 4, 4), torch.rand(9, 4)
    assert _mirrored(gray, None, seeded()) is gray
    assert not torch.equal(_mirrored(gray, True, seeded()), gray)
    photos = gray.expand(9, 3, 4, 4)
    assert _mirrored(photos, False, seeded()) is photos
    assert _mirrored(vectors, True, seeded()) is vectors


def test_vectors_are_not_shifted():
    vectors = torch.rand(4, 5)
    assert _shifted(vectors, 3, seeded()) is vectors


@pytest.mark.parametrize(
    ("name", "value"),
    [("epochs", 0), ("batch_size", 1), ("learning_rate", 0.0), ("min_steps", -1), ("clip_norm", 0), ("shift", -1)],
)
def test_refuses_settings_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"Expected `{name}` to be"):
        FitSettings(**{name: value})


def test_only_image_networks_become_channels_last():
    images, volumes = nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv3d(3, 4, 3))
    assert to_channels_last(images) is images
    assert images.weight.is_contiguous(memory_format=torch.channels_last)
    assert to_channels_last(volumes) is volumes
    assert all(weight.is_contiguous() for weight in volumes.parameters())


@pytest.mark.parametrize(
    ("length", "batch_size", "steps"),
    [(40, 16, 80), (119, 16, 280), (400, 50, 304), (1023, 127, 304), (1198, 128, 306)],
)
def test_small_data_sets_get_small_batches_and_few_epochs(length, batch_size, steps):
    assert FitSettings().batch_size_for(length) == batch_size
    assert FitSettings().total_steps(length) == steps


@pytest.mark.slow
def test_vectors_are_standardized_whatever_their_scale(blobs):
    points, labels = blobs(120).tensors
    scale, shift = torch.tensor([1e-4, 1e5, 1.0, 30.0]), torch.tensor([0.0, 1e6, -3.0, 5.0])
    plan = FitSettings(epochs=20, batch_size=16, min_steps=0)
    for inputs in (points, points * scale + shift):
        network = default_backbone((4,), 3)
        runtime = LocalRuntime(precision="32", threads=1)
        fit_module(network, TensorDataset(inputs, labels), cross_entropy, settings=plan, runtime=runtime)
        assert float((network(inputs).argmax(1) == labels).double().mean()) > 0.97
        torch.testing.assert_close(network[0].center, inputs.mean(0), rtol=1e-3, atol=1e-5)


def test_noise_is_for_standardized_vectors_only(blobs):
    seen = []

    def watch(module, inputs, labels):
        seen.append(inputs)
        return cross_entropy(module, inputs, labels)

    data = blobs(64)
    for network, noise in ((nn.Linear(4, 3), 0.3), (default_backbone((4,), 3), 0.0), (default_backbone((4,), 3), 0.3)):
        seen.clear()
        fit_module(network, data, watch, settings=FitSettings(epochs=1, batch_size=64, min_steps=0, noise=noise))
        known = (seen[0][:, None] == data.tensors[0]).all(2).any(1)
        assert bool(known.all()) == (isinstance(network, nn.Linear) or not noise)


def former_augmentation(images, limit, generator):
    """Shift and mirror images on the CPU, one by one, with random numbers in the order of the first release."""
    count, _, height, width = images.shape
    padded = F.pad(images, (limit,) * 4, mode="replicate")
    rows, columns = (torch.randint(2 * limit + 1, (count, 1), generator=generator) for _ in range(2))
    chosen = torch.rand(count, generator=generator) < 0.5
    crops = [
        image[:, row : row + height, column : column + width]
        for image, row, column in zip(padded, rows.flatten().tolist(), columns.flatten().tolist(), strict=True)
    ]
    return torch.stack([crop.flip(2) if flip else crop for crop, flip in zip(crops, chosen.tolist(), strict=True)])


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
def test_augmentation_is_the_same_on_every_device(device):
    images, one, two = torch.rand(50, 3, 12, 10, generator=seeded(1)), seeded(2), seeded(2)
    found = _augmented(images.to(device), FitSettings(shift=3), torch.zeros(()), one)
    assert found.device.type == device
    assert torch.equal(found.cpu(), former_augmentation(images, 3, two))
    assert torch.equal(one.get_state(), two.get_state())


@pytest.mark.parametrize("device", DEVICES)
def test_noise_is_the_same_on_every_device(device):
    vectors, spread, one, two = torch.rand(50, 4, generator=seeded(1)), torch.arange(4.0), seeded(2), seeded(2)
    found = _augmented(vectors.to(device), FitSettings(), spread, one)
    assert torch.equal(found.cpu(), vectors + spread * torch.randn(50, 4, generator=two))
    assert torch.equal(one.get_state(), two.get_state())


@pytest.fixture
def late(monkeypatch):
    """Give the CPU the order of calls of a GPU: blocks are read one ahead, and losses are checked a step late."""
    other = torch.device("meta")

    def ahead(dataset, blocks, _, **how):
        return overlapped(read_blocks(dataset, blocks, **how), lambda block: lambda: block, other)

    monkeypatch.setattr(fitting, "read_on_device", ahead)
    monkeypatch.setattr(fitting, "_FiniteLosses", lambda _, kind=fitting._FiniteLosses: kind(other))


def test_reading_ahead_changes_nothing(blobs, request):
    data = Noisy(blobs(64))
    plain = weights(data)
    request.getfixturevalue("late")
    assert torch.equal(weights(data), plain)


@pytest.mark.parametrize("step", [0, 2, 3])
def test_late_check_names_the_step(blobs, late, step):
    calls = []

    def diverge(module, inputs, labels):
        calls.append(len(inputs))
        return cross_entropy(module, inputs, labels) * (torch.nan if len(calls) == step + 1 else 1)

    with pytest.raises(FloatingPointError, match=f"got nan at step {step}"):
        fit_module(nn.Linear(4, 3), blobs(32), diverge, settings=QUICK)
    assert len(calls) == min(step + 2, 4)


@pytest.mark.gpu
def test_divergence_on_cuda_is_found(blobs):
    def diverge(module, inputs, labels):
        return cross_entropy(module, inputs, labels) * torch.nan

    with pytest.raises(FloatingPointError, match="got nan at step 0"):
        fit_module(nn.Linear(4, 3), blobs(32), diverge, settings=QUICK, runtime=LocalRuntime("cuda"))
