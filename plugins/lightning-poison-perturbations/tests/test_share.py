import pytest
import torch

from lightning_poison_perturbations.share import draw_share

LABELS = torch.arange(60) % 3


def draw(budget=10, *, source_class=None, class_fraction=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return draw_share(LABELS, budget, source_class=source_class, class_fraction=class_fraction, generator=generator)


def test_as_many_of_the_class_as_the_budget():
    drawn = draw(source_class=2)
    assert len(set(drawn.tolist())) == 10
    assert (LABELS[drawn] == 2).all()
    assert torch.equal(drawn, drawn.sort().values)
    assert not torch.equal(drawn, draw(source_class=2, seed=1))


@pytest.mark.parametrize(("fraction", "count"), [(1.0, 20), (0.3, 6), (0.001, 1)])
def test_a_share_of_the_class(fraction, count):
    assert len(draw(20, source_class=1, class_fraction=fraction)) == count


def test_any_class():
    assert set(LABELS[draw(30)].tolist()) == {0, 1, 2}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"source_class": 3}, r"`source_class` to be a class of the data set \(0, 1, 2\), but got 3"),
        ({"source_class": 1, "budget": 21}, r"`budget` to be at most 20, the samples of class 1, but got 21.*\n.*1\.0"),
        ({"budget": 61}, "at most 60, the samples of the data set"),
        (
            {"source_class": 1, "class_fraction": 0.6},
            "at least 12, which is `class_fraction` 0.6 of class 1, but got 10",
        ),
    ],
)
def test_what_cannot_be_drawn(options, said):
    with pytest.raises(ValueError, match=said):
        draw(**options)
