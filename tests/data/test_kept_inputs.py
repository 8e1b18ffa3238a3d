import pickle

import pytest
import torch
from torchvision.transforms import ToTensor, v2

from lightning_poison.data import kept_inputs
from lightning_poison.data.blocks import MemoryDataset
from lightning_poison.data.kept_inputs import SCALINGS, InputCollector, KeptInputs, are_levels, levels_of, looked_up
from lightning_poison.data.packed_inputs import InputLayout, PackedInputs

LEVELS = torch.arange(256, dtype=torch.uint8)
DIVIDED, MULTIPLIED = SCALINGS
TRANSFORMS = [ToTensor, lambda: v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])]


def bits(tensor):
    return tensor.contiguous().view(torch.int32)


def same_bits(one, other):
    return one.dtype == other.dtype == torch.float32 and torch.equal(bits(one), bits(other))


def random_levels(*shape):
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def eight_bit(count=10, scaling=DIVIDED, side=5):
    return scaling(random_levels(count, 3, side, side))


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("shape", [(256, 1, 1, 1), (3, 3, 7, 11), (1, 1, 1, 3)])
def test_levels_lead_back_to_the_same_bits(scaling, shape):
    given = random_levels(*shape) if shape[0] != 256 else LEVELS.view(shape)
    for layout in (torch.contiguous_format, torch.channels_last):
        levels, found = levels_of(scaling(given).contiguous(memory_format=layout))
        assert scaling in found
        assert torch.equal(levels, given)


@pytest.mark.parametrize(("make", "scaling"), list(zip(TRANSFORMS, SCALINGS, strict=True)), ids=["ToTensor", "ToDtype"])
def test_scalings_are_those_of_torchvision(make, scaling):
    image = LEVELS.view(16, 16).numpy()
    found = make()(image[:, :, None])
    assert same_bits(found.as_subclass(torch.Tensor), scaling(LEVELS).view(1, 16, 16))
    assert levels_of(found.as_subclass(torch.Tensor)[None])[1] == (scaling,)


NEXT_TO_A_LEVEL = float(torch.nextafter(torch.tensor(0.2), torch.tensor(1.0)))


@pytest.mark.parametrize("value", [-0.0, -1 / 255, 256 / 255, 1.5, 1e30, -1e30, 0.5, 1e-45, NEXT_TO_A_LEVEL])
@pytest.mark.parametrize("place", [(0, 0, 0, 0), (9, 2, 4, 4)])
def test_one_other_pixel_is_noticed(value, place):
    images = eight_bit()
    images[place] = value
    assert levels_of(images)[1] == ()
    assert not are_levels([eight_bit(), images])


def test_only_images_are_levels():
    layout = InputLayout.of((torch.zeros(2), torch.zeros(3)))
    for inputs in (torch.zeros(4, 5), torch.zeros(4, 5, 5), PackedInputs.of(torch.zeros(4, 5), layout)):
        assert levels_of(inputs)[1] == ()
    assert levels_of(torch.zeros(4, 1, 5, 5))[1] == SCALINGS


def kept(scaling):
    return KeptInputs(random_levels(10, 3, 5, 5), scaling)


@pytest.mark.parametrize("scaling", [*SCALINGS, None])
def test_inputs_are_the_images(scaling):
    images = eight_bit(scaling=scaling or DIVIDED)
    inputs = kept(scaling) if scaling else KeptInputs(images)
    places = torch.tensor([7, 0, 7])
    assert len(inputs) == 10
    assert inputs.num_bytes == images.numel() * (1 if scaling else 4)
    assert same_bits(inputs.all(), images)
    assert same_bits(inputs.at(places), images[places])
    assert same_bits(inputs.one(3), images[3])
    assert same_bits(inputs.select(places).all(), images[places])
    assert same_bits(inputs.to(torch.device("cpu")).all(), images)
    inputs.at(places).zero_()
    assert same_bits(inputs.all(), images)


@pytest.mark.parametrize(("one", "two"), [(DIVIDED, DIVIDED), (DIVIDED, MULTIPLIED), (None, None), (MULTIPLIED, None)])
def test_two_parts_follow_each_other(one, two):
    parts = [kept(each) if each else KeptInputs(eight_bit()) for each in (one, two)]
    joined = parts[0].followed_by(parts[1])
    assert same_bits(joined.all(), torch.cat([eight_bit(scaling=each or DIVIDED) for each in (one, two)]))
    assert (joined.scaling is None) == (one is None or one is not two)
    samples = [MemoryDataset(each, torch.arange(10) + 10 * number) for number, each in enumerate(parts)]
    both = samples[0].subset(torch.tensor([1, 2])).followed_by(samples[1].subset(torch.arange(9, 1, -1)))
    assert both.targets.tolist() == [1, 2, *range(19, 11, -1)]
    assert same_bits(both.inputs, joined.all()[both.targets])


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_devices_look_up_the_same_bits(scaling, device):
    levels = random_levels(40, 3, 9, 9)
    found = looked_up(levels.to(device), scaling(LEVELS).to(device))
    assert same_bits(found.cpu(), scaling(levels))
    moved = KeptInputs(levels, scaling).to(torch.device(device))
    assert same_bits(moved.at(torch.tensor([3, 2], device=device)).cpu(), scaling(levels[[3, 2]]))


def test_levels_on_another_device_are_not_computed_on_the_cpu():
    moved = kept(DIVIDED).to(torch.device("meta"))
    found = moved.at(torch.arange(2, device="meta"))
    assert (found.device.type, found.dtype, found.shape) == ("meta", torch.float32, (2, 3, 5, 5))


def test_samples_with_levels_can_be_pickled():
    data = MemoryDataset(kept(MULTIPLIED), torch.arange(10))
    copy = pickle.loads(pickle.dumps(data))  # noqa: S301
    assert same_bits(copy[3][0], data[3][0])


def collect(images, limit=10**6, size=4):
    collector = InputCollector(len(images), limit)
    for start in range(0, len(images), size):
        collector.add(start, images[start : start + size])
    return collector.result()


@pytest.mark.parametrize("scaling", SCALINGS)
def test_eight_bit_images_take_a_byte_for_each_pixel(scaling):
    images = eight_bit(scaling=scaling)
    found = collect(images, limit=images.numel())
    assert found.values.dtype == torch.uint8
    assert same_bits(found.all(), images)
    assert collect(images, limit=images.numel() - 1) is None


@pytest.mark.parametrize("place", [0, 3, 4, 9])
def test_one_other_image_makes_all_float(place):
    images = eight_bit()
    images[place, 0, 0, 0] = 0.5
    found = collect(images)
    assert found.scaling is None
    assert same_bits(found.all(), images)
    assert same_bits(collect(images, limit=4 * images.numel()).all(), images)
    assert collect(images, limit=4 * images.numel() - 1) is None


def test_black_and_white_images_decide_about_no_scaling():
    """0 and 1 are levels under both scalings; later images decide."""
    images = torch.cat([torch.ones(4, 3, 5, 5), eight_bit(8, MULTIPLIED)])
    found = collect(images)
    assert found.values.dtype == torch.uint8
    assert same_bits(found.all(), images)
    mixed = torch.cat([images, eight_bit(4, DIVIDED)])
    assert collect(mixed).scaling is None
    assert same_bits(collect(mixed).all(), mixed)


def test_many_images_become_float_in_parts():
    images = eight_bit(700, side=2)
    images[-1] += 1e-6
    assert same_bits(collect(images, size=64).all(), images)


def test_others_are_not_tested_again(monkeypatch):
    tested = []
    monkeypatch.setattr(kept_inputs, "levels_of", lambda *given: tested.append(1) or levels_of(*given))
    assert same_bits(collect(eight_bit() + 0.1).all(), eight_bit() + 0.1)
    assert len(tested) == 1
    closed = InputCollector(10, 0)
    closed.add(0, eight_bit(4))
    closed.add(4, eight_bit(4))
    assert not closed.is_open
    assert closed.result() is None
    assert len(tested) == 2
