import torch
import xxhash

from lightning_poison.data.sample_digests import SampleDigests, digest_samples


def test_digest_is_xxh3_of_shape_and_values():
    inputs = torch.arange(6.0).view(2, 3)
    expected = xxhash.xxh3_64_digest(inputs[1].numpy().tobytes(), seed=xxhash.xxh3_64_intdigest(b"(3,)"))
    assert int(digest_samples(inputs)[1]) == int.from_bytes(expected, "big", signed=True)


def test_empty_samples_have_one_digest():
    assert len(set(digest_samples(torch.zeros(3, 0)).tolist())) == 1


def test_digest_depends_on_shape_and_on_every_value():
    inputs = torch.zeros(1, 4)
    found = {
        int(digest_samples(each)) for each in (inputs, inputs.view(1, 2, 2), *(inputs + row for row in torch.eye(4)))
    }
    assert len(found) == 6


def test_digest_does_not_depend_on_memory_layout():
    images = torch.rand(2, 3, 4, 4)
    assert torch.equal(digest_samples(images), digest_samples(images.contiguous(memory_format=torch.channels_last)))


def test_first_digest_stays():
    digests = SampleDigests(4)
    digests.add(torch.tensor([1, 3]), torch.tensor([5, 6]))
    digests.add(torch.tensor([3, 0]), torch.tensor([7, 8]))
    assert digests.values.tolist() == [8, 5, 0, 6]
    assert digests.missing.tolist() == [2]
