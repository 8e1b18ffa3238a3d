"""Context managers that put back exactly what they found, on every exit."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Put modules into evaluation mode; each submodule's own `training` flag comes back.

    Example:
        >>> model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2).eval())
        >>> with evaluating(model):
        ...     model[0].training
        False
        >>> [part.training for part in model]
        [True, False]
    """
    flags = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for part, training in flags:
            part.training = training


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Switch off the gradients of all parameters; each one's own `requires_grad` comes back.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> model.bias.requires_grad = False
        >>> with frozen(model):
        ...     model(torch.ones(1, 2)).requires_grad
        False
        >>> model.weight.requires_grad, model.bias.requires_grad
        (True, False)
    """
    flags = [(parameter, parameter.requires_grad) for module in modules for parameter in module.parameters()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, requires_grad in flags:
            parameter.requires_grad_(requires_grad)


@contextmanager
def untracked(*modules: nn.Module) -> Iterator[None]:
    """Let batch norm in training mode normalise by the batch and leave its running statistics as they are.

    Example:
        >>> model = nn.BatchNorm1d(2)
        >>> with untracked(model):
        ...     _ = model(torch.ones(4, 2))
        >>> model.running_mean, int(model.num_batches_tracked), model.track_running_stats
        (tensor([0., 0.]), 0, True)
    """
    found = [
        (part, part.track_running_stats)
        for module in modules
        for part in module.modules()
        if isinstance(part, nn.modules.batchnorm._NormBase)
    ]
    try:
        for part, _ in found:
            part.track_running_stats = False
        yield
    finally:
        for part, tracked in found:
            part.track_running_stats = tracked


@contextmanager
def reproducible_kernels(device: torch.device, threads: int) -> Iterator[None]:
    """Compute with kernels that do not depend on how many processes share the machine.

    On the CPU the order of a sum depends on the number of threads, and launchers choose that number by the number of
    processes; on CUDA, cuDNN may choose another algorithm at each run. Both are fixed here and put back afterwards.

    Example:
        >>> found = torch.get_num_threads()
        >>> with reproducible_kernels(torch.device("cpu"), threads=1):
        ...     torch.get_num_threads(), torch.backends.cudnn.deterministic
        (1, True)
        >>> torch.get_num_threads() == found
        True
    """
    cudnn = torch.backends.cudnn
    found = torch.get_num_threads(), cudnn.benchmark, cudnn.deterministic
    try:
        if device.type == "cpu":
            torch.set_num_threads(threads)
        cudnn.benchmark, cudnn.deterministic = False, True
        yield
    finally:
        torch.set_num_threads(found[0])
        cudnn.benchmark, cudnn.deterministic = found[1:]


@contextmanager
def seeded_rng(*seed: int) -> Iterator[None]:
    """Seed Python's, NumPy's and torch's CPU random states from integers, and put all three back afterwards.

    Example:
        >>> state = torch.get_rng_state()
        >>> with seeded_rng(0, 3):
        ...     first = random.random(), torch.rand(2).tolist()
        >>> with seeded_rng(0, 3):
        ...     first == (random.random(), torch.rand(2).tolist())
        True
        >>> torch.get_rng_state().equal(state)
        True
    """
    found = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 (the transforms' own)
    words = np.random.SeedSequence(seed).generate_state(3)
    try:
        random.seed(int(words[0]))
        np.random.seed(int(words[1]))  # noqa: NPY002
        torch.default_generator.manual_seed(int(words[2]))
        yield
    finally:
        random.setstate(found[0])
        np.random.set_state(found[1])  # noqa: NPY002
        torch.set_rng_state(found[2])


@contextmanager
def isolated_rng(seed: int, device: torch.device) -> Iterator[None]:
    """Seed all random states, a CUDA device's among them, and put them back afterwards.

    Example:
        >>> state = torch.get_rng_state()
        >>> with isolated_rng(0, torch.device("cpu")):
        ...     first = torch.rand(2)
        >>> with isolated_rng(0, torch.device("cpu")):
        ...     torch.rand(2).equal(first)
        True
        >>> torch.get_rng_state().equal(state)
        True
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), seeded_rng(seed):
        if devices:
            torch.cuda.manual_seed(seed)
        yield
