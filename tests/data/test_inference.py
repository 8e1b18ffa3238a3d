import re

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from lightning_poison import runtime as runtime_module
from lightning_poison.data import inference
from lightning_poison.data.blocks import BLOCK_SIZE
from lightning_poison.data.inference import score_set
from lightning_poison.data.sample_digests import SampleDigests
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.data.transfer import overlapped
from lightning_poison.errors import NotFittedError, PluginError, RankFailedError
from lightning_poison.runtime import LocalRuntime
from lightning_poison.sanitization.dataset_scores import score_samples
from lightning_poison.sanitization.units import FileUnits
from lightning_poison.scorers.spectral_signatures import SpectralSignatureScorer

SPEC = SampleSpec()


class Noisy(Dataset):
    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return index / 7 + torch.randn(4), index % 3


def network(outputs=3):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, outputs))


def score(runtime, *, count=700, model=None, indices=None, **arguments):
    model = model or network()
    indices = torch.arange(count) if indices is None else indices
    return score_set(
        Noisy(count), indices, lambda block: model(block.inputs), sample=SPEC, runtime=runtime, seed=3, **arguments
    )


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("count", [700, 200])
def test_ranks_agree_bit_for_bit(size, count, several_ranks):
    alone = score(LocalRuntime(precision="32", threads=1), count=count)
    for found in several_ranks(size, lambda runtime: score(runtime, count=count)):
        assert torch.equal(found, alone)


def test_ranks_agree_on_one_score_per_sample(several_ranks):
    first = network(1)
    alone = score(LocalRuntime(precision="32", threads=1), model=lambda inputs: first(inputs)[:, 0])
    assert alone.shape == (700,)
    for found in several_ranks(3, lambda runtime: score(runtime, model=lambda inputs: first(inputs)[:, 0])):
        assert torch.equal(found, alone)


def test_scores_do_not_depend_on_who_takes_which_block(several_ranks):
    alone = score(LocalRuntime(precision="32", threads=1))
    for owner in (lambda unit: 1, lambda unit: 1 - unit % 2):
        for found in several_ranks(2, score, owner=owner):
            assert torch.equal(found, alone)


@pytest.mark.parametrize("count", [1, 2, 300])
def test_there_may_be_more_ranks_than_samples_or_blocks(several_ranks, count):
    alone = score(LocalRuntime(precision="32", threads=1), count=count)
    for found in several_ranks(4, lambda runtime: score(runtime, count=count)):
        assert torch.equal(found, alone)


class Counted:
    """A network that counts its blocks, and is interrupted at one of them."""

    def __init__(self, last=None):
        self.network, self.blocks, self.last = network(), 0, last

    def __call__(self, inputs):
        self.blocks += 1
        if self.blocks == self.last:
            raise KeyboardInterrupt
        return self.network(inputs)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_stored_blocks_are_used_at_any_number_of_ranks(several_ranks, tmp_path, monkeypatch, size):
    """One of two ranks scores four of eight blocks, and the other one is interrupted at its second."""
    monkeypatch.setattr(runtime_module, "_SECONDS_BETWEEN_SAVES", 0)
    monkeypatch.setattr(runtime_module, "_TIMES_AS_LONG", 0)

    def run(runtime, model):
        runtime.units = FileUnits(tmp_path, SampleDigests(0), runtime.rank)
        return score(runtime, count=2000, model=model, unit="blocks")

    interrupted = Counted(last=6)
    found = several_ranks(2, lambda runtime: run(runtime, interrupted))
    assert {type(each) for each in found} == {KeyboardInterrupt, RankFailedError}
    assert {path.name.rpartition("-")[0] for path in tmp_path.glob("blocks*")} == {"blocks-part-0", "blocks-part-1"}
    resumed = Counted(last=2)  # killed again: what was stored stays
    several_ranks(size, lambda runtime: run(runtime, resumed))
    last = Counted()
    found = several_ranks(size, lambda runtime: run(runtime, last))
    assert last.blocks == 3 - (resumed.blocks - 1)
    alone = score(LocalRuntime(precision="32", threads=1), count=2000)
    assert all(torch.equal(each, alone) for each in found)


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_failing_rank_raises_on_all(failing, several_ranks):
    def work(runtime):
        def model(inputs):
            if runtime.rank == failing:
                raise KeyError("here")
            return inputs

        return score(runtime, model=model)

    for rank, error in enumerate(several_ranks(3, work)):
        assert isinstance(error, KeyError if rank == failing else RuntimeError)
        if rank != failing:
            assert re.search(r"rank \d failed: (KeyError|KeyboardInterrupt)", str(error))


def test_interrupted_rank_leaves_none_waiting(several_ranks):
    def work(runtime):
        def model(inputs):
            if runtime.rank == 1:
                raise KeyboardInterrupt
            return inputs

        return score(runtime, model=model)

    first, second, third = several_ranks(3, work)
    assert isinstance(second, KeyboardInterrupt)
    for error in (first, third):
        assert isinstance(error, RuntimeError)
        assert re.search(r"rank \d failed: (KeyError|KeyboardInterrupt)", str(error))


def test_scores_have_order_of_indices():
    data = TensorDataset(torch.arange(10.0)[:, None], torch.zeros(10).long())
    found = score_set(
        data, torch.tensor([7, 2, 9]), lambda block: block.inputs[:, 0], sample=SPEC, runtime=LocalRuntime(), seed=0
    )
    assert found.tolist() == [7, 2, 9]
    assert found.dtype == torch.float64


@pytest.mark.slow
def test_does_not_depend_on_number_of_workers():
    one, two = (score(LocalRuntime(precision="32", threads=1, num_workers=workers)) for workers in (0, 2))
    assert torch.equal(one, two)


def test_keeps_no_gradients():
    model = network()
    assert not score(LocalRuntime(), model=lambda inputs: model(inputs)).requires_grad
    assert model[0].weight.grad is None


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_refuses_scores_that_are_not_finite(value):
    def odd(inputs):
        scores = torch.zeros(len(inputs))
        scores[-1] = value
        return scores

    with pytest.raises(
        ValueError, match=r"`scores` to be finite, but got .* at sample 9 \(scoring\)\.\nThe scorer does not fit"
    ):
        score(LocalRuntime(), count=10, model=odd)


def test_refuses_other_number_of_scores():
    with pytest.raises(ValueError, match=r"one for each of 10 samples, but got a float32 tensor of shape \(4, 10\)"):
        score(LocalRuntime(), count=10, model=lambda inputs: inputs.T)


def test_refuses_samples_with_other_labels():
    labels = torch.arange(10) % 3
    assert len(score(LocalRuntime(), count=10, labels=labels)) == 10
    labels[7] = 2
    with pytest.raises(ValueError, match="sample 7 to carry the label 2 that its data set lists, but it carries 1"):
        score(LocalRuntime(), count=10, labels=labels)
    with pytest.raises(ValueError, match="sample 7 "):
        score(LocalRuntime(), count=10, labels=labels, indices=torch.tensor([9, 7, 8]))


def test_score_samples(blobs, centroid_scorer):
    scorer, data = centroid_scorer().fit(blobs(60)), blobs(30, seed=1)
    found = score_samples(scorer, data)
    torch.testing.assert_close(found, scorer.score_batch(*data.tensors).double())
    with pytest.raises(TypeError, match="SpectralSignatureScorer, which needs the whole set"):
        score_samples(SpectralSignatureScorer(), data)
    with pytest.raises(NotFittedError):
        score_samples(centroid_scorer(), data)
    scorer.score_batch = lambda inputs, _: inputs
    with pytest.raises(PluginError, match="score_batch"):
        score_samples(scorer, data)


@pytest.fixture
def late(monkeypatch):
    """Give the CPU the order of calls of a GPU: a block is started before the scores of the last are waited for."""
    other = torch.device("meta")
    monkeypatch.setattr(inference, "overlapped", lambda items, start, _: overlapped(items, start, other))


def test_scoring_ahead_changes_nothing(request):
    runtime = LocalRuntime(precision="32", threads=1)
    plain = score(runtime)
    request.getfixturevalue("late")
    assert torch.equal(score(runtime), plain)


@pytest.mark.parametrize("odd_block", [0, 1, 2])
def test_scoring_ahead_names_the_sample(late, odd_block):
    def odd(inputs):
        calls.append(len(inputs))
        return torch.full((len(inputs),), torch.nan if len(calls) == odd_block + 1 else 0.0)

    calls = []
    with pytest.raises(ValueError, match=f"NaN or infinite values at sample {256 * odd_block} "):
        score(LocalRuntime(), model=odd)
    assert len(calls) == min(odd_block + 2, 3)


def test_no_block_is_scored_twice_whatever_the_world_sizes_of_interrupted_runs(tmp_path, monkeypatch, several_ranks):
    """Ranks share a folder. Three ranks, two, and one are interrupted after two blocks each, and three ranks end it."""
    monkeypatch.setattr("lightning_poison.runtime.SaveTimer.is_due", lambda self: True)
    data = TensorDataset(torch.arange(12 * BLOCK_SIZE).float()[:, None], torch.zeros(12 * BLOCK_SIZE).long())
    scored = []

    def run(rank, stop_after=100):
        begun = len(scored)

        def score(block):
            if len(scored) - begun == stop_after:
                raise KeyboardInterrupt
            scored.append(int(block.indices[0]))
            return block.inputs[:, 0]

        rank.units = FileUnits(tmp_path, SampleDigests(0), rank.rank).within("member-0")
        everything = torch.arange(len(data))
        return score_set(data, everything, score, sample=SampleSpec(), runtime=rank, seed=0, unit="blocks")

    for world, blocks in ((3, 6), (2, 10), (1, 12)):
        several_ranks(world, lambda rank: run(rank, stop_after=2))
        assert len(scored) == blocks
    for found in several_ranks(3, run):
        assert torch.equal(found, torch.arange(len(data)).double())
    assert sorted(scored) == [BLOCK_SIZE * number for number in range(12)]
