import json
import math

import pytest
import torch
from torch.utils.data import TensorDataset

from lightning_poison.errors import NotFittedError
from lightning_poison.scorers.combined import CombinedScorer
from lightning_poison.scorers.likelihood import LikelihoodScorer
from lightning_poison.testing.scorers import check_scorer


class Coordinate:
    """Scores by one coordinate, whatever the label."""

    is_control = False

    def __init__(self, place):
        self.place = place
        self.name = f"coordinate-{place}"
        self.count = 0

    @property
    def is_fitted(self):
        return bool(self.count)

    def fit(self, trusted, *, runtime=None, generator=None):
        self.count = len(trusted)
        return self

    def score_batch(self, inputs, labels):
        if not self.count:
            raise NotFittedError("Expected a fitted scorer.")
        return inputs.flatten(1)[:, self.place].float()

    def settings(self):
        return {"place": self.place}

    def state(self):
        return {"count": torch.tensor(self.count)}

    def load(self, state):
        self.count = int(state["count"])
        return self


def uniform(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.rand(count, 2, generator=generator), torch.arange(count) % 2)


def fitted(combine="max", count=4000):
    return CombinedScorer([Coordinate(0), Coordinate(1)], combine=combine).fit(uniform(count))


def test_scores_are_decades_of_known_p_values():
    points, labels = torch.tensor([[0.9, 0.5], [0.5, 0.99], [0.9, 0.9]]), torch.zeros(3).long()
    known = -torch.log10(1 - points)
    for how, expected in (("max", known.amax(1)), ("sum", known.sum(1))):
        scores = fitted(how, count=40_000).score_batch(points, labels)
        torch.testing.assert_close(scores, expected, atol=0.1, rtol=0)


def test_votes_name_who_accuses():
    scorer = fitted()
    votes = scorer.votes(torch.tensor([[0.5, 0.999]]), torch.tensor([1]))
    assert list(votes) == ["coordinate-0", "coordinate-1"]
    assert votes["coordinate-0"].exp().item() == pytest.approx(0.5, abs=0.05)
    assert votes["coordinate-1"].exp().item() < 0.01


def test_a_sample_that_one_member_alone_sees_is_found_by_the_larger():
    points, labels = uniform(2000, seed=1).tensors
    odd = points.clone()
    odd[:, 1] = 3.0
    clean, found = (fitted().score_batch(each, labels) for each in (points, odd))
    assert float(found.min()) > float(clean.quantile(0.99))


def test_unfitted_members_are_fitted_on_a_part_and_compared_with_the_rest():
    scorer = fitted(count=1000)
    assert [member.count for member in scorer.members.values()] == [700, 700]
    assert scorer.state()["reference.scores"].shape == (2, 300)


def test_fitted_members_are_compared_with_all():
    members = [Coordinate(place).fit(uniform(10)) for place in (0, 1)]
    scorer = CombinedScorer(members).fit(uniform(1000))
    assert [member.count for member in scorer.members.values()] == [10, 10]
    assert scorer.state()["reference.scores"].shape == (2, 1000)


def test_it_keeps_the_contract():
    check_scorer(CombinedScorer([Coordinate(0), Coordinate(20)]))


def test_members_of_one_name_are_numbered():
    scorer = CombinedScorer([LikelihoodScorer(), Coordinate(0), LikelihoodScorer("posterior"), LikelihoodScorer()])
    assert list(scorer.members) == ["likelihood", "coordinate-0", "likelihood-2", "likelihood-3"]
    assert json.loads(json.dumps(scorer.settings()))["members"]["likelihood-2"]["score"] == "posterior"


def test_a_control_makes_it_one():
    control = Coordinate(0)
    control.is_control = True
    assert CombinedScorer([control, Coordinate(1)]).is_control
    assert not CombinedScorer([Coordinate(0), Coordinate(1)]).is_control


class Total:
    name, is_control = "total", False

    def score_features(self, features, labels):
        return features.sum(1)


def test_what_must_see_the_whole_set_is_for_sanitize():
    with pytest.raises(ValueError, match=r"but total must see the whole set\.\nHand the combination to `sanitize`"):
        CombinedScorer([Coordinate(0), Total()]).fit(uniform(100))


@pytest.mark.parametrize(
    ("scorers", "error", "message"),
    [
        ([Coordinate(0)], ValueError, "two scorers or more, but got 1"),
        ([], ValueError, "two scorers or more, but got 0"),
        ([Coordinate(0), "likelihood"], TypeError, "but got 'likelihood'"),
        ([Coordinate(0), LikelihoodScorer], TypeError, "but got the class LikelihoodScorer"),
        ([Coordinate(0), CombinedScorer([Coordinate(0), Total()])], TypeError, "List its members instead"),
    ],
)
def test_refusals(scorers, error, message):
    with pytest.raises(error, match=message):
        CombinedScorer(scorers)


def test_refuses_how():
    with pytest.raises(ValueError, match="`combine` to be one of 'max', 'sum', but got mean"):
        CombinedScorer([Coordinate(0), Coordinate(1)], combine="mean")


def test_before_a_fit():
    scorer = CombinedScorer([Coordinate(0), Coordinate(1)])
    for ask in (lambda: scorer.score_batch(torch.zeros(1, 2), torch.zeros(1).long()), scorer.state):
        with pytest.raises(NotFittedError, match="nothing to compare with"):
            ask()


def test_the_state_of_another():
    scorer = fitted()
    with pytest.raises(ValueError, match="but got that of another scorer"):
        CombinedScorer([Coordinate(0), Coordinate(1), Coordinate(0)]).load(scorer.state())


def test_a_label_that_nobody_trusted_carries():
    with pytest.raises(ValueError, match="none of class"):
        fitted().score_batch(torch.zeros(1, 2), torch.tensor([5]))


def test_nothing_is_lost_in_the_tail():
    points = torch.tensor([[1e3, 0.0], [2e3, 0.0]])
    near, far = fitted().score_batch(points, torch.zeros(2).long()).tolist()
    assert far > near > 300
    assert math.isfinite(far)


class Named(Coordinate):
    def __init__(self, name):
        super().__init__(0)
        self.name = name


@pytest.mark.parametrize(
    ("names", "found"),
    [(("x", "x", "x-2"), ["x", "x-2", "x-2-2"]), (("x-2", "x", "x"), ["x-2", "x", "x-3"])],
)
def test_no_member_takes_the_place_of_another(names, found):
    assert list(CombinedScorer([Named(name) for name in names]).members) == found
