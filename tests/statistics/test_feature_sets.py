import pytest
import torch

from lightning_poison.statistics.feature_sets import check_feature_set, check_features

FEATURES, LABELS = torch.arange(12.0).view(6, 2), torch.tensor([0, 0, 0, 2, 2, 2])


def test_accepts_valid_set_with_absent_class():
    check_feature_set(FEATURES, LABELS, per_class=3)
    check_feature_set(FEATURES.double(), LABELS)


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (FEATURES.long(), LABELS, "floating-point tensor"),
        (FEATURES[0], LABELS, "floating-point tensor"),
        (FEATURES[:0], LABELS[:0], "at least one sample"),
        ([[1.0]], LABELS, "floating-point tensor"),
        (FEATURES, LABELS.float(), "int64"),
        (FEATURES, LABELS[:5], "one for each of the 6 feature vectors, but got 5"),
        (FEATURES, LABELS - 1, "at least 0, but got -1 in row 0"),
        (torch.full((6, 2), 7.0), LABELS, "6 times the same vector"),
        (FEATURES, torch.tensor([0, 0, 0, 1, 2, 2]), "at least 2 samples per class, but got 1 of class 1"),
    ],
)
def test_refuses_invalid_set(features, labels, message):
    with pytest.raises(ValueError, match=message):
        check_feature_set(features, labels)


def test_error_names_small_class_and_reason():
    with pytest.raises(ValueError, match="1 of class 5\\.\nNo mean\\. Remove the class, or add samples of it\\."):
        check_feature_set(FEATURES, torch.tensor([0, 0, 0, 0, 5, 0]), why="No mean.")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("row", [0, 8191, 8192, 9000])
def test_finds_infinite_value_in_any_chunk(value, row):
    features = torch.rand(9001, 2)
    features[row, 1] = value
    with pytest.raises(ValueError, match=f"in row {row}\\."):
        check_features(features)


def test_accepts_single_different_vector_in_any_chunk():
    features = torch.zeros(9001, 1)
    features[9000] = 1
    check_feature_set(features, torch.zeros(9001, dtype=torch.int64))
