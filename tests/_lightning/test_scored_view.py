"""`score_dataset` is reduced to the samples of the training set."""

import pytest
from torch.utils.data import DataLoader, Subset

from lightning_poison._lightning.scored_view import known_class_names, scored_view
from lightning_poison.testing import TinyImages

TRAIN, VIEW = [f"{number} augmented" for number in range(6)], list(range(6))


@pytest.mark.parametrize(
    ("view", "dataset", "scored"),
    [
        (None, VIEW, VIEW),
        (VIEW, TRAIN, VIEW),
        (VIEW, Subset(TRAIN, [4, 0]), [4, 0]),
        (VIEW, Subset(Subset(TRAIN, [4, 0, 2]), [2, 1]), [2, 0]),
        ([4, 0], Subset(TRAIN, [4, 0]), [4, 0]),
        ([4, 0, 2], Subset(Subset(TRAIN, [4, 0, 2]), [2, 1]), [2, 0]),
        (DataLoader(VIEW, batch_size=4), TRAIN, VIEW),
        (VIEW[:5], TRAIN, VIEW[:5]),
        (VIEW[:5], Subset(TRAIN, [4, 0]), VIEW[:5]),
    ],
    ids=["none", "same", "whole", "whole, nested", "own", "half", "loader", "other", "other than the whole"],
)
def test_samples_of_the_training_set(view, dataset, scored):
    assert list(scored_view(view, dataset)) == scored


def test_names_of_the_training_set_come_first():
    named, other = TinyImages(3), TinyImages(3)
    named.classes = ["cat", "dog", "frog"]
    assert known_class_names(other, Subset(named, [0]), None) == ("cat", "dog", "frog")
    assert known_class_names(named, TRAIN, None) == ("cat", "dog", "frog")
    assert known_class_names(TRAIN, TRAIN, None) == ()


def test_order_of_a_view_of_a_reordered_subset_must_be_stated():
    reordered = Subset(list("abc"), [2, 0, 1])
    with pytest.raises(ValueError, match=r"Expected `score_dataset` to be a `Subset`, .*\n.*subset\.indices"):
        scored_view(list("xyz"), reordered)
    assert list(scored_view(Subset(list("xyz"), reordered.indices), reordered)) == ["z", "x", "y"]
    assert scored_view(["x", "y", "z"], Subset(list("abc"), [0, 1, 2])) == ["x", "y", "z"]
