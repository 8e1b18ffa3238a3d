from dataclasses import replace

import pytest
import torch
from torch.utils.data import TensorDataset, default_collate

from lightning_poison.data.copies import Copies, first_places
from lightning_poison.data.labeled_data import read_labeled
from lightning_poison.data.reading import ReadSettings
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.data.source import open_source
from lightning_poison.runtime import LocalRuntime
from lightning_poison.sanitization.judged_part import detection_notes, judged_part
from lightning_poison.sanitization.pipeline import sanitize
from lightning_poison.scorers.likelihood import LikelihoodScorer
from lightning_poison.scorers.pixel_counting import PixelCountingScorer
from lightning_poison.scorers.protocol import SetScorer


def read(labels):
    labels = torch.tensor(labels)
    points = torch.arange(2.0 * len(labels)).view(-1, 2)
    return read_labeled(open_source(TensorDataset(points, labels), sample=None), runtime=LocalRuntime(), name="data")


def part(labels, scorer=None, *, folds=3, trusted=None):
    data = read(labels)
    known = None if trusted is None else read(trusted)
    return judged_part(data, scorer or LikelihoodScorer(), folds=folds, trusted=known, length=len(data))


def test_everything_is_judged():
    found = part([0, 1] * 5)
    assert len(found.data) == 10
    assert (found.classes.tolist(), found.notes) == ([0, 1], ())


def test_unlabeled_samples_are_not_judged():
    found = part([0, -1, 1] * 5)
    assert found.data.labels.tolist() == [0, 1] * 5
    assert found.data.positions.tolist() == [0, 2, 3, 5, 6, 8, 9, 11, 12, 14]
    assert found.notes == ("5 samples without a label are kept and not judged.",)


@pytest.mark.parametrize("count", [24, 600])
def test_samples_that_are_none_are_told_from_those_without_a_label(count):
    def collate(samples):
        return default_collate([each for each in samples if each is not None])

    labels = [0, 1, -1, None] * (count // 4)
    pairs = [None if label is None else (torch.rand(2), label) for label in labels]
    source = open_source(pairs, sample=None, settings=ReadSettings(collate_fn=collate))
    data = read_labeled(source, runtime=LocalRuntime(), name="data")
    found = judged_part(data, LikelihoodScorer(), folds=3, trusted=None, length=count)
    assert found.notes == (
        f"{count // 4} samples that are `None` are kept and not judged.",
        f"{count // 4} samples without a label are kept and not judged.",
    )
    assert len(found.data) == count // 2


def test_small_classes_are_named():
    found = part([0, 1] * 5 + [2, 2, 7])
    assert found.classes.tolist() == [0, 1]
    way = "A class needs a sample in each of the 3 folds: use fewer `folds`, or pass `trusted=` data."
    assert found.notes == (f"The 3 samples of classes 2, 7 are kept and not judged: too few of a class. {way}",)


def test_classes_with_too_few_groups_are_named():
    data = read([0, 1, 2] * 6)
    copies = Copies(torch.arange(18), first_places(torch.arange(18) % 3 * 100 + torch.arange(18) // 9))
    found = judged_part(replace(data, copies=copies), LikelihoodScorer(), folds=2, trusted=None, length=18)
    assert found.notes == ()
    way = "name smaller groups in `groups=`, use fewer `folds`, or pass `trusted=` data"
    with pytest.raises(ValueError, match=f"18 samples of classes 0, 1, 2 .* too few groups .* of the 3 folds: {way}"):
        judged_part(replace(data, copies=copies), LikelihoodScorer(), folds=3, trusted=None, length=18)
    groups = torch.arange(18)
    groups[data.labels == 2] = 2
    copies = Copies(torch.arange(18), groups)
    found = judged_part(replace(data, copies=copies), LikelihoodScorer(), folds=3, trusted=None, length=18)
    assert "The 6 samples of class 2 are kept and not judged: too few groups of a class." in found.notes[0]


def test_long_tails_are_listed_in_part():
    found = part([0, 1] * 5 + list(range(2, 32)))
    assert found.notes[0].startswith("The 30 samples of classes 2, 3, 4, 5, 6, 7, 8, 9 and 22 more are kept")


def test_with_trusted_data_a_class_may_be_small():
    found = part([0, 1] * 5 + [2], trusted=[0, 1, 2] * 5)
    assert (len(found.data), found.notes) == (11, ())


def test_classes_are_numbered_without_gaps():
    found = part([4, 999_999] * 5, trusted=[4, 9, 999_999] * 5)
    assert found.classes.tolist() == [4, 9, 999_999]
    assert found.data.labels.tolist() == [0, 2] * 5
    assert found.trusted.labels.tolist() == [0, 1, 2] * 5


def test_classes_of_a_fitted_scorer_keep_their_numbers(centroid_scorer, blobs):
    found = part([0, 2] * 5, centroid_scorer().fit(blobs(90)))
    assert found.data.labels.tolist() == [0, 2] * 5
    assert found.classes.tolist() == [0, 1, 2]


def test_classes_that_a_set_scorer_refuses_are_not_judged():
    class Demanding(SetScorer):
        name = "demanding"
        scores_labels = True

        def score_features(self, features, labels):
            return features[:, 0]

        def score_feature_labels(self, features, labels):
            return features

        def check_set(self, labels):
            if int(torch.bincount(labels)[torch.unique(labels)].min()) < 6:
                raise ValueError("too few")

    found = part([0, 1] * 8 + [2] * 4, Demanding())
    assert found.classes.tolist() == [0, 1]
    assert "class 2" in found.notes[0]


@pytest.mark.parametrize(("labels", "message"), [([0] * 9, "class 0 alone"), ([-1] * 9, "none"), ([0, 1], "none")])
def test_refuses_fewer_than_two_classes(labels, message):
    with pytest.raises(ValueError, match=f"data of at least two classes, but got {message}"):
        part(labels)


def numbered(sample=None, count=40):
    pairs = [(torch.tensor([0.5, index]), index) for index in range(count)]
    return read_labeled(open_source(pairs, sample=sample), runtime=LocalRuntime(), name="data")


def test_detected_label_that_looks_like_an_index_is_named():
    message = (
        r"`1`, which was detected .* each of the 40 samples: .* like an index .*\n.*SampleSpec\('0', labels=\.\.\.\)`"
    )
    for trusted in (None, numbered(count=30)):
        with pytest.raises(ValueError, match=message):
            judged_part(numbered(), LikelihoodScorer(), folds=3, trusted=trusted, length=40)


def test_labels_that_are_named_or_trusted_or_few_are_no_indices():
    with pytest.raises(ValueError, match="at least two classes, but got none"):
        judged_part(numbered(SampleSpec(0, 1)), LikelihoodScorer(), folds=3, trusted=None, length=40)
    with pytest.raises(ValueError, match="at least two classes, but got none"):
        judged_part(numbered(count=15), LikelihoodScorer(), folds=3, trusted=None, length=15)
    assert len(judged_part(numbered(), LikelihoodScorer(), folds=3, trusted=numbered(), length=40).data) == 40


@pytest.mark.parametrize(
    ("sample", "spec", "is_named"),
    [
        (lambda index: {"pixels": torch.rand(4), "kind": index % 2}, None, True),
        (lambda index: {"pixels": torch.rand(4), "kind": index % 2}, SampleSpec("pixels", "kind"), False),
        (lambda index: {"pixels": torch.rand(4), "Label": index % 2}, None, False),
        (lambda index: (torch.rand(4), index % 2, index), None, False),
        (lambda index: (index, torch.rand(4), index % 2), None, True),
    ],
)
def test_detected_label_without_a_usual_name_or_place_is_named(sample, spec, is_named):
    source = open_source([sample(index) for index in range(40)], sample=spec)
    notes = detection_notes(read_labeled(source, runtime=LocalRuntime(), name="data"))
    assert bool(notes) == is_named


@pytest.mark.filterwarnings("ignore:The false-positive rate is calibrated")
def test_verdict_says_which_part_was_detected_as_the_label():
    def samples(seed):
        noise = torch.rand(80, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
        return [{"pixels": image / 4 + index % 2 / 2, "kind": index % 2} for index, image in enumerate(noise)]

    trusted = samples(1)
    verdict = sanitize(samples(0), PixelCountingScorer().fit(trusted), trusted=trusted, max_removed=1)
    assert "\nThe label was detected as the part `kind` of a sample." in str(verdict)
