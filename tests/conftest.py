"""Shared fixtures: plain data, real digits, ranks in threads, and a scorer with a closed form."""

import os
import threading
from unittest import mock

import pytest
import torch
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset

from lightning_poison.checks import describe_error
from lightning_poison.data.blocks import read_blocks
from lightning_poison.data.labels import labels_of
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.errors import RankFailedError
from lightning_poison.runtime import LocalRuntime
from lightning_poison.scorers.protocol import Scorer

LIGHTNINGS_OWN_WARNINGS = (
    "ignore:The '.*_dataloader' does not have many workers:UserWarning",
    "ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning:lightning.pytorch.utilities._pytree",
    "ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning:pytorch_lightning.utilities._pytree",
)
"""Advice to load with more workers, and a deprecated torch call in Lightning."""


def pytest_configure(config):
    # By default jsonargparse warns of each deprecation once a process: only in the test that happens to come first.
    os.environ["JSONARGPARSE_DEPRECATION_WARNINGS"] = "all"
    for line in LIGHTNINGS_OWN_WARNINGS:
        config.addinivalue_line("filterwarnings", line)


@pytest.fixture(autouse=True)
def environment_as_before():
    """Restore the environment: Lightning sets variables for ranks and ports that would affect the next test."""
    with mock.patch.dict(os.environ):
        yield


class CentroidScorer(Scorer):
    """Half the squared distance to a class mean: the negative log-likelihood of a unit normal, without training."""

    name = "centroid"
    scores_labels = True
    fitted_tensors = ("means",)

    def __init__(self):
        self.fits = []

    def __deepcopy__(self, memo):
        twin = type(self)()
        vars(twin).update(vars(self))  # all copies share one list of fits
        return twin

    def fit(self, trusted, *, runtime=None, generator=None):
        labels = labels_of(trusted)
        block = next(read_blocks(trusted, [torch.arange(len(labels))], sample=SampleSpec(), seed=0))
        self.fits.append(block.inputs)
        sums = torch.zeros(int(labels.max()) + 1, block.inputs[0].numel()).index_add(0, labels, block.inputs.flatten(1))
        counts = labels.bincount()[:, None]
        self.means = torch.where(counts > 0, sums / counts.clamp_min(1), 1e3)
        return self

    def score_labels(self, inputs):
        self.check_fitted()
        return 0.5 * (inputs.flatten(1)[:, None] - self.means).square().sum(2)


@pytest.fixture
def centroid_scorer():
    return CentroidScorer


@pytest.fixture
def blobs():
    """Return a factory of unit-normal classes, 6 apart; the last `flipped` labels are wrong."""

    def make(count=600, *, classes=3, flipped=0, seed=0, features=4):
        generator = torch.Generator().manual_seed(seed)
        truth = torch.arange(count) % classes
        points = torch.randn(count, features, generator=generator) + 6 * torch.eye(features)[truth]
        wrong = torch.arange(count) >= count - flipped
        return TensorDataset(points, torch.where(wrong, (truth + 1) % classes, truth))

    return make


@pytest.fixture(scope="session")
def digits():
    """scikit-learn's 1,797 handwritten digits, in [0, 1] on 17 levels, `(1, 8, 8)`."""
    images, labels = load_digits(return_X_y=True)
    return TensorDataset(torch.tensor(images / 16).float().view(-1, 1, 8, 8), torch.tensor(labels).long())


@pytest.fixture(scope="session")
def mislabeled_digits(digits):
    """1,400 digits as rows, every tenth mislabeled, with the true labels, and 397 clean digits."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(digits), generator=generator)
    images, truth = digits.tensors[0].flatten(1)[order], digits.tensors[1][order]
    labels = truth[:1400].clone()
    labels[::10] = (labels[::10] + torch.randint(1, 10, (140,), generator=generator)) % 10
    return images[:1400], labels, truth[:1400], images[1400:], truth[1400:]


@pytest.fixture
def single_thread():
    """Use one thread and a fixed seed, and destroy leftover process groups."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    torch.set_num_threads(threads)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.fixture
def two_threads():
    """Use two threads, so that a test notices if their number is not restored from one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


class Rank(LocalRuntime):
    """One of several ranks in threads of this process. One of them works at a time, until a collective."""

    def __init__(self, rank, world):
        super().__init__(precision="32", threads=1)
        self.rank, self.world, self.world_size = rank, world, len(world.values)

    def reduce_sum(self, tensor):
        return sum(self.world.exchange(self.rank, tensor.clone()))

    def broadcast(self, value):
        return self.world.exchange(self.rank, value)[0]

    def all_true(self, flag):
        return all(self.world.exchange(self.rank, flag))

    def share(self, count):
        return (unit for unit in range(count) if self.world.owner(unit) == self.rank)

    def agree(self, error=None):
        errors = self.world.exchange(self.rank, error)
        failed = [rank for rank, each in enumerate(errors) if each is not None]
        if error is None and failed:
            raise RankFailedError(failed[0], describe_error(errors[failed[0]]))


class World:
    """Runs the same work on several ranks and returns what each returned or raised."""

    def __init__(self, size, owner):
        self.values = [None] * size
        self.owner = owner
        self.shared = []
        self.turn = threading.Condition()
        self.arrived = self.round = self.ended = 0

    def exchange(self, rank, value):
        """Return the values of all ranks. Raise if another rank ended without a value."""
        self.values[rank] = value
        self.arrived += 1
        current = self.round
        if self.arrived == len(self.values):
            self.shared, self.arrived, self.round = list(self.values), 0, current + 1
            self.turn.notify_all()
        self.turn.wait_for(lambda: self.round > current or self.ended)
        if self.round == current:
            raise threading.BrokenBarrierError(f"rank {rank} waits for a rank that has ended")
        return self.shared

    def run(self, work):
        results = [None] * len(self.values)

        def on(rank):
            with self.turn:
                try:
                    results[rank] = work(Rank(rank, self))
                except BaseException as error:  # noqa: BLE001 (an interrupt counts as the result of this rank)
                    results[rank] = error
                self.ended += 1
                self.turn.notify_all()

        threads = [threading.Thread(target=on, args=(rank,)) for rank in range(len(self.values))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


@pytest.fixture
def several_ranks():
    """Return a function that does work on several ranks and lists what each returned or raised.

    `owner` maps the number of a unit of work to the rank that takes it. Default: they take turns.
    """

    def run(size, work, *, owner=None):
        return World(size, owner or (lambda unit: unit % size)).run(work)

    return run


def pytest_ignore_collect(collection_path):
    """Skip the MNIST tests unless LIGHTNING_POISON_DATA is set."""
    return True if collection_path.name == "test_mnist.py" and "LIGHTNING_POISON_DATA" not in os.environ else None
