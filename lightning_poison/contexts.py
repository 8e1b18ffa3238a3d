"""Context managers that change a setting and restore it on every exit."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Disable autocast on devices that support it, so that statistics are not computed in bfloat16.

    Args:
        device: Device on which the statistics are computed.

    Example:
        >>> rows = torch.full((1, 2), 1 / 3)
        >>> with torch.autocast("cpu", dtype=torch.bfloat16), full_precision(rows.device):
        ...     (rows @ rows.T).dtype
        torch.float32
    """
    available = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if available else nullcontext()


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Put modules into evaluation mode and restore the `training` flag of each submodule on exit.

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
    """Disable the gradients of all parameters and restore each `requires_grad` flag on exit.

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
    """Let batch norm in training mode normalize by batch statistics without updating its running statistics.

    Example:
        >>> model = nn.BatchNorm1d(2)
        >>> with untracked(model):
        ...     _ = model(torch.ones(4, 2))
        >>> model.running_mean, int(model.num_batches_tracked), model.track_running_stats
        (tensor([0., 0.]), 0, True)
    """
    flags = [
        (part, part.track_running_stats)
        for module in modules
        for part in module.modules()
        if isinstance(part, nn.modules.batchnorm._NormBase)
    ]
    try:
        for part, _ in flags:
            part.track_running_stats = False
        yield
    finally:
        for part, track in flags:
            part.track_running_stats = track


@contextmanager
def reproducible_kernels(device: torch.device, threads: int) -> Iterator[None]:
    """Fix the number of CPU threads and the cuDNN algorithms, and restore both on exit.

    On the CPU, the order of a summation depends on the number of threads, which launchers derive from the number of
    processes. On CUDA, cuDNN may choose a different algorithm in each run.

    Args:
        device: Device on which the computation runs. The number of threads is fixed for the CPU only.
        threads: Number of CPU threads.

    Example:
        >>> before = torch.get_num_threads()
        >>> with reproducible_kernels(torch.device("cpu"), threads=1):
        ...     torch.get_num_threads(), torch.backends.cudnn.deterministic
        (1, True)
        >>> torch.get_num_threads() == before
        True
    """
    cudnn = torch.backends.cudnn
    before = torch.get_num_threads(), cudnn.benchmark, cudnn.deterministic
    try:
        if device.type == "cpu":
            torch.set_num_threads(threads)
        cudnn.benchmark, cudnn.deterministic = False, True
        yield
    finally:
        torch.set_num_threads(before[0])
        cudnn.benchmark, cudnn.deterministic = before[1:]
