import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import default_collate

from lightning_poison._lightning.loader_labels import drawn_labels
from lightning_poison.data.labeled_data import read_labeled
from lightning_poison.data.reading import ReadSettings
from lightning_poison.data.sample_parts import AmbiguousLabelError
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.data.source import open_source
from lightning_poison.errors import UnreadableSampleError
from lightning_poison.runtime import LocalRuntime

COUNT = 160
CLASSES = torch.randint(3, (COUNT,), generator=torch.Generator().manual_seed(0)).tolist()
SITES = torch.randint(3, (COUNT,), generator=torch.Generator().manual_seed(1)).tolist()
PIL = [Image.new("L", (4, 4), color=index) for index in range(COUNT)]


def rows(*parts):
    return [(PIL[index], *(part[index] for part in parts)) for index in range(COUNT)]


def to_tensors(samples):
    return default_collate([(torch.from_numpy(np.array(image)).float()[None] / 255, *rest) for image, *rest in samples])


def smoothed(samples):
    images, labels, *rest = to_tensors(samples)
    return images, nn.functional.one_hot(labels, 3) * 0.9 + 1 / 30, *rest


def opened(data, collate=to_tensors, sample=None):
    return open_source(data, sample=sample, settings=ReadSettings(collate_fn=collate))


def test_index_is_recognized_behind_a_collate_fn():
    source = opened(rows(CLASSES, range(COUNT)))
    assert (source.collated, source.sample) == (True, SampleSpec("0", "1"))
    data = read_labeled(source, runtime=LocalRuntime(), name="images")
    assert data.labels.tolist() == CLASSES


def test_one_hot_labels_of_a_collate_fn():
    def one_hot(samples):
        images, labels, sites = to_tensors(samples)
        return images, nn.functional.one_hot(labels, 3).float(), sites

    source = opened(rows(CLASSES, SITES), one_hot)
    assert read_labeled(source, runtime=LocalRuntime(), name="images").labels.tolist() == CLASSES


def texts(labels):
    return [["cat", "dog", "owl"][label] for label in labels]


@pytest.mark.parametrize("form", [lambda c: [bool(each) for each in c], lambda c: [float(each) for each in c], texts])
def test_label_of_another_form_stays_ambiguous_behind_a_collate_fn(form):
    with pytest.raises(
        AmbiguousLabelError, match=r"^Expected a sample(.|\n)*`1` and `2` could .*\n.*'0', '1'\)"
    ) as raised:
        opened(rows(form(CLASSES), SITES))
    assert "tried as well" not in str(raised.value)


def test_text_of_a_dict_stays_ambiguous_behind_a_collate_fn():
    data = [{"image": PIL[index], "kind": texts(CLASSES)[index], "site": SITES[index]} for index in range(COUNT)]

    def collate(samples):
        return {
            **default_collate([{**each, "image": 0} for each in samples]),
            "image": torch.zeros(len(samples), 1, 4, 4),
        }

    with pytest.raises(AmbiguousLabelError, match="`site` and `kind` could each be the label"):
        opened(data, collate)
    for each in data:
        each["kind"] = "train"
    assert opened(data, collate).sample == SampleSpec("image", "site")


def test_ambiguous_batch_is_named():
    def more(samples):
        images, labels = to_tensors(samples)
        return images, labels, labels.clone()

    message = (
        r"a PIL image\.\n.*\nThe loader's `collate_fn` was tried as well, but `1` and `2` could each be the "
        r"label in its batch\.\nName the two .* as `SampleSpec\('0', '1'\)` or"
    )
    with pytest.raises(UnreadableSampleError, match=message):
        opened(rows(CLASSES), more)


def test_label_of_an_ambiguous_batch_is_the_part_with_the_value_of_the_samples_label():
    def lengths_last(samples):
        images, labels = to_tensors([(image, label) for image, _, label in samples])
        return images, labels, torch.tensor([len(caption) for _, caption, _ in samples])

    data = [(image, f"caption {place} " + "x" * 9, label) for place, (image, label) in enumerate(rows(CLASSES))]
    assert opened(data, lengths_last).sample == SampleSpec("0", "1")


@pytest.mark.parametrize("sample", [None, SampleSpec()])
def test_soft_labels_are_named(sample):
    message = (
        r"a PIL image\.\n.*\nThe loader's `collate_fn` was tried as well, but its batch was refused: expected "
        r"a class index as the label of sample 0, but got .* \(a soft label\)\.\nPass .* `score_dataset=` of the"
    )
    with pytest.raises(UnreadableSampleError, match=message):
        opened(rows(CLASSES, range(COUNT)), smoothed, sample)


@pytest.mark.parametrize("sample", [None, SampleSpec()])
def test_labels_of_samples_are_read_if_their_collate_fn_softens_them(sample):
    settings = ReadSettings(collate_fn=smoothed)
    found = drawn_labels(rows(CLASSES, range(COUNT)), sample=sample, positions=None, settings=settings)
    assert found.tolist() == CLASSES


def test_error_of_a_collate_fn_is_named():
    def failing(samples):
        raise KeyError("mask")

    with pytest.raises(
        UnreadableSampleError, match=r"PIL image(.|\n)*as well, but it raised KeyError: 'mask' for a single"
    ):
        opened(rows(CLASSES), failing)
