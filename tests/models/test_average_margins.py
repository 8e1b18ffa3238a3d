import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from lightning_poison.models.average_margins import AverageMargins
from lightning_poison.models.fitting import FitSettings, fit_module
from lightning_poison.scorers.confidence import ConfidenceScorer

FEW = FitSettings(epochs=3, batch_size=10, learning_rate=0.05, min_steps=0, noise=0)


class Constant(nn.Module):
    """Returns the inputs as logits, whatever its weight."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, inputs):
        return inputs + 0 * self.weight


def test_average_of_known_margins():
    logits = torch.tensor([[3.0, 1.0, 0.0], [3.0, 1.0, 0.0], [0.0, 5.0, 4.0]])
    labels = torch.tensor([0, 1, 2])
    margins = AverageMargins(4)
    for indices in ([0, 1, 2], [2, 1]):
        margins.at(torch.tensor(indices))
        loss = margins(nn.Identity(), logits[indices], labels[indices])
        assert torch.equal(loss, F.cross_entropy(logits[indices], labels[indices]))
    assert margins.average().tolist() == [2, -2, -1, (2 - 2 - 1 - 2 - 1) / 5]


def test_no_step_at_all():
    assert AverageMargins(2).average().tolist() == [0, 0]


def test_every_epoch_of_a_fit_counts():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(40, 3, generator=generator), torch.arange(40) % 3
    margins = AverageMargins(40)
    fit_module(Constant(), TensorDataset(logits, labels), margins, settings=FEW, before_step=margins.at)
    own = logits.gather(1, labels[:, None])[:, 0]
    other = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    assert torch.allclose(margins.average(), (own - other).double())
    assert margins.state_dict()["counts"].tolist() == [3] * 40


def test_state_continues():
    first, second = AverageMargins(3), AverageMargins(3)
    first.at(torch.tensor([0, 2]))
    first(nn.Identity(), torch.eye(2), torch.tensor([0, 0]))
    second.load_state_dict(first.state_dict())
    assert second.average().tolist() == [1, 0, -1]


@pytest.fixture(scope="module")
def flipped():
    labels = torch.arange(300) % 3
    inputs = F.one_hot(labels, 6).float() + 0.3 * torch.randn(300, 6, generator=torch.Generator().manual_seed(0))
    wrong = torch.arange(300) % 10 == 0
    return TensorDataset(inputs, torch.where(wrong, (labels + 1) % 3, labels)), wrong


def test_fit_of_a_scorer_learns_wrong_labels_less(flipped):
    data, wrong = flipped
    settings = FitSettings(epochs=6, batch_size=30, min_steps=0)
    scorer = ConfidenceScorer(feature_size=8, fit_settings=settings)
    assert scorer.training_margins is None
    margins = scorer.fit(data).training_margins
    assert margins.shape == (300,)
    assert float(margins[wrong].mean()) < float(margins[~wrong].quantile(0.1))
    assert scorer.rehearse(data, steps=1) == settings.total_steps(300)
    assert torch.equal(scorer.training_margins, margins), "a rehearsal records nothing"
    assert "margins" not in " ".join(scorer.state())


def test_margins_do_not_change_a_fit(flipped):
    data, _ = flipped

    def plain(network, inputs, labels):
        return F.cross_entropy(network(inputs), labels)

    fitted = []
    for margins in (None, AverageMargins(300)):
        torch.manual_seed(0)
        at = None if margins is None else margins.at
        fitted.append(fit_module(nn.Linear(6, 3), data, margins or plain, settings=FEW, before_step=at))
    assert torch.equal(fitted[0].weight, fitted[1].weight)
