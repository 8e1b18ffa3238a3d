"""A filter for streams: thresholds, judgments, and files without pickle."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_poison.data.views import SanitizedDataset
from lightning_poison.errors import InconclusiveError, NotFittedError
from lightning_poison.sanitization.pipeline import sanitize
from lightning_poison.sanitization.stream_filter import StreamFilter
from lightning_poison.scorers.combined import CombinedScorer
from lightning_poison.scorers.pixel_counting import PixelCountingScorer
from lightning_poison.scorers.spectral_signatures import SpectralSignatureScorer
from lightning_poison.statistics.share_drift import ReferenceCounts
from lightning_poison.statistics.thresholds import class_thresholds
from lightning_poison.testing.tiny_images import TinyImages


@pytest.fixture
def trusted(blobs):
    return blobs(1200)


@pytest.fixture
def stream_filter(centroid_scorer, trusted):
    return StreamFilter.fit(centroid_scorer(), trusted)


def test_fits_on_one_part_and_calibrates_on_the_other(stream_filter, trusted, centroid_scorer):
    (fitted_on,) = stream_filter.scorer.fits
    held_out = ~torch.isin(trusted.tensors[0][:, 0], fitted_on[:, 0])
    assert (len(fitted_on), int(held_out.sum())) == (840, 360)
    inputs, labels = (each[held_out] for each in trusted.tensors)
    scores = stream_filter.scorer.score_batch(inputs, labels).double()
    expected = class_thresholds(scores, labels, num_classes=3)
    assert torch.allclose(stream_filter.thresholds, expected)
    removed = int((scores > stream_filter.thresholds[labels]).sum())
    assert (stream_filter.reference.judged, stream_filter.reference.fewest) == (360, removed)
    assert stream_filter.reference.most == pytest.approx(0.01 * 363)


def test_the_scorer_that_is_passed_is_not_changed(centroid_scorer, trusted):
    scorer = centroid_scorer()
    assert StreamFilter.fit(scorer, trusted).scorer is not scorer
    assert not scorer.is_fitted


def test_a_fitted_scorer_is_calibrated_on_all_samples(centroid_scorer, blobs, trusted):
    scorer = centroid_scorer().fit(blobs(300, seed=1))
    made = StreamFilter.fit(scorer, trusted)
    assert made.scorer is scorer
    assert made.reference.judged == 1200


@pytest.mark.parametrize("rate", [0.01, 0.1])
def test_removes_the_stated_share_of_clean_samples(centroid_scorer, blobs, rate):
    made = StreamFilter.fit(centroid_scorer(), blobs(6000), false_positive_rate=rate)
    judgment = made.judge(*blobs(9000, seed=2).tensors)
    assert judgment.judged.all()
    assert float(judgment.suspicious.double().mean()) == pytest.approx(rate, rel=0.35)


def test_wrong_labels_are_suspicious(stream_filter, blobs):
    data = blobs(600, seed=3, flipped=60)
    suspicious = stream_filter.judge(*data.tensors).suspicious
    assert suspicious[-60:].all()
    assert int(suspicious[:-60].sum()) < 25


def test_samples_are_judged_one_by_one(stream_filter, blobs):
    inputs, labels = blobs(90, flipped=9).tensors
    whole = stream_filter.judge(inputs, labels)
    for index in (0, 40, 89):
        alone = stream_filter.judge(inputs[index : index + 1], labels[index : index + 1])
        assert torch.equal(alone.scores[0], whole.scores[index])


def test_labels_without_a_threshold_are_not_judged(stream_filter, blobs):
    inputs, labels = blobs(6, flipped=6).tensors
    judgment = stream_filter.judge(inputs, torch.tensor([-1, 3, 1000, 0, 1, 2]))
    assert judgment.judged.tolist() == [False, False, False, True, True, True]
    assert not judgment.suspicious[:3].any()
    assert not stream_filter.judge(inputs[:0], labels[:0]).judged.any()


def test_a_class_that_the_calibration_lacks_is_not_judged(centroid_scorer, blobs):
    inputs, labels = blobs(1200).tensors
    made = StreamFilter.fit(centroid_scorer(), TensorDataset(inputs, torch.where(labels == 1, 5, labels)))
    assert made.thresholds.isfinite().tolist() == [True, False, True, False, False, True]
    assert made.judge(inputs[:3], torch.tensor([0, 1, 5])).judged.tolist() == [True, False, True]


def test_unlabeled_trusted_samples_are_left_out(centroid_scorer, blobs):
    inputs, labels = blobs(1203).tensors
    labels = torch.where(torch.arange(1203) < 3, -1, labels)
    assert StreamFilter.fit(centroid_scorer(), TensorDataset(inputs, labels)).reference.judged == 360
    with pytest.raises(ValueError, match="`trusted` to be samples with labels, but got 3 without"):
        StreamFilter.fit(centroid_scorer(), TensorDataset(inputs[:3], labels[:3]))


def test_takes_a_loader_and_what_was_kept_of_earlier_data(centroid_scorer, blobs, trusted):
    earlier = blobs(1200, flipped=120)
    kept = SanitizedDataset(earlier, sanitize(earlier, centroid_scorer()).keep)
    for data in (DataLoader(trusted, batch_size=7), kept):
        judgment = StreamFilter.fit(centroid_scorer(), data).judge(*blobs(90, seed=4, flipped=9).tensors)
        assert judgment.suspicious[-9:].all()


def test_from_a_verdict(centroid_scorer, blobs, trusted):
    scorer = centroid_scorer().fit(blobs(300, seed=1))
    earlier = blobs(900, seed=5, flipped=45)
    verdict = sanitize(earlier, scorer, trusted=trusted)
    made = StreamFilter.from_verdict(verdict, scorer)
    assert torch.equal(made.judge(*earlier.tensors).suspicious, ~verdict.keep)
    assert made.reference == ReferenceCounts(900, len(verdict.removed), len(verdict.removed))
    assert StreamFilter.from_verdict(verdict.with_kept(verdict.removed[:20]), scorer).reference == made.reference
    with pytest.raises(ValueError, match="made with the fitted scorer that is passed"):
        StreamFilter.from_verdict(verdict, centroid_scorer().fit(blobs(300, seed=2)))
    with pytest.raises(NotFittedError, match=r"Expected a fitted scorer[\s\S]*`StreamFilter.fit\(scorer, trusted\)`"):
        StreamFilter.from_verdict(verdict, centroid_scorer())
    with pytest.raises(
        ValueError, match=r"calibrated on trusted data, but got 'wrong-label null'\.\nFit and calibrate"
    ):
        StreamFilter.from_verdict(sanitize(earlier, scorer), scorer)


def test_a_verdict_of_a_scorer_that_sanitize_fitted_has_no_filter(centroid_scorer, blobs, trusted):
    verdict = sanitize(blobs(300, seed=5), centroid_scorer(), trusted=trusted)
    with pytest.raises(ValueError, match="fitted otherwise or by `sanitize` itself"):
        StreamFilter.from_verdict(verdict, centroid_scorer().fit(trusted))


def test_file_round_trip(tmp_path):
    images = TinyImages(1200)
    made = StreamFilter.fit(PixelCountingScorer(), images, false_positive_rate=0.05)
    made.save(tmp_path / "filter.safetensors")
    loaded = StreamFilter.load(tmp_path / "filter.safetensors", PixelCountingScorer())
    assert torch.equal(loaded.thresholds, made.thresholds)
    assert (loaded.false_positive_rate, loaded.reference) == (0.05, made.reference)
    inputs, labels = torch.stack([image for image, _ in images]), images.targets
    assert torch.equal(loaded.judge(inputs, labels).scores, made.judge(inputs, labels).scores)


def test_a_file_of_another_scorer_or_kind_is_refused(tmp_path, stream_filter, centroid_scorer):
    stream_filter.save(tmp_path / "filter.safetensors")
    with pytest.raises(ValueError, match="contains the centroid scorer"):
        StreamFilter.load(tmp_path / "filter.safetensors", PixelCountingScorer())
    with pytest.raises(FileNotFoundError, match="a stream filter file"):
        StreamFilter.load(tmp_path / "none", centroid_scorer())
    content = (tmp_path / "filter.safetensors").read_bytes()
    (tmp_path / "damaged").write_bytes(content[:-3] + b"\x01\x02\x03")
    with pytest.raises(ValueError, match="checksum"):
        StreamFilter.load(tmp_path / "damaged", centroid_scorer())


@pytest.mark.parametrize(
    ("scorer", "kind", "message"),
    [
        (
            lambda own: SpectralSignatureScorer(),
            TypeError,
            "`scorer` to be a `Scorer`, which scores single samples, such as `L[\\s\\S]*has no whole set",
        ),
        (lambda own: CombinedScorer([own(), SpectralSignatureScorer()]), TypeError, "has no whole set"),
        (lambda own: own, TypeError, "the class CentroidScorer"),
        (lambda own: "balanced", TypeError, "a scorer such as"),
    ],
    ids=["set", "combination", "class", "preset"],
)
def test_refuses_scorers_that_need_a_whole_set(centroid_scorer, trusted, scorer, kind, message):
    with pytest.raises(kind, match=message):
        StreamFilter.fit(scorer(centroid_scorer), trusted)


def test_refuses_a_scorer_that_has_learned_nothing(centroid_scorer, trusted):
    shuffled = trusted.tensors[1][torch.randperm(1200, generator=torch.Generator().manual_seed(0))]
    with pytest.raises(InconclusiveError, match="the scorer has not learned the labels"):
        StreamFilter.fit(centroid_scorer(), TensorDataset(trusted.tensors[0], shuffled))


def test_warns_of_few_samples(centroid_scorer, blobs):
    with pytest.warns(UserWarning, match="calibrated on 30 held-out trusted samples in the smallest class"):
        StreamFilter.fit(centroid_scorer(), blobs(300))


@pytest.mark.parametrize(
    ("thresholds", "message"),
    [
        (torch.full((3,), torch.inf).double(), "finite for a class at least"),
        (torch.tensor([1.0, torch.nan]).double(), "finite or infinity"),
        (torch.ones(3), "float64, one for each class"),
    ],
)
def test_refuses_impossible_thresholds(stream_filter, thresholds, message):
    with pytest.raises(ValueError, match=message):
        StreamFilter(stream_filter.scorer, thresholds, 0.01, stream_filter.reference)


def test_scores_that_are_not_finite_are_an_error(stream_filter, blobs):
    inputs, labels = blobs(3).tensors
    inputs[1] = 1e30
    with pytest.raises(ValueError, match="score"):
        stream_filter.judge(inputs, labels)


def test_describes_itself(stream_filter):
    assert str(stream_filter) == "centroid on 3 classes, calibrated on 360 samples, stated false-positive rate 1 %"
