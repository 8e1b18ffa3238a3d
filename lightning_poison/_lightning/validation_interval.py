"""Check of `val_check_interval` against the batches that filtering leaves."""

from typing import Any

from torch.utils.data import BatchSampler, DataLoader, DistributedSampler


def check_validation_interval(original: DataLoader[Any], rebuilt: DataLoader[Any], ranks: int, trainer: Any) -> None:
    """Raise before Lightning does if an epoch has too few batches for `val_check_interval` since it is filtered.

    Args:
        original: The original loader.
        rebuilt: The loader of the kept samples.
        ranks: Number of ranks among which Lightning distributes the samples.
        trainer: The Trainer. `None`: nothing is checked.

    Raises:
        ValueError: If the original loader has enough batches, and the filtered one has too few.

    Example:
        >>> from types import SimpleNamespace
        >>> settings = {"val_check_interval": 10, "check_val_every_n_epoch": 1, "limit_val_batches": 1.0}
        >>> trainer = SimpleNamespace(**settings, limit_train_batches=1.0)
        >>> check_validation_interval(DataLoader(range(100), 10), DataLoader(range(90), 10), 1, trainer)
        Traceback (most recent call last):
        ValueError: Expected `val_check_interval` to be at most 9, the number of batches that filtering leaves in an
        epoch, but got 10.
        Write `Trainer(val_check_interval=1.0)` to validate after each epoch, or a number of at most 9.
    """
    interval = getattr(trainer, "val_check_interval", None)
    is_unlimited = trainer is None or trainer.check_val_every_n_epoch is None or not trainer.limit_val_batches
    if type(interval) is not int or is_unlimited or getattr(trainer, "_val_check_time_interval", None) is not None:
        return
    before, left = (_limited(_epoch_batches(each, ranks, trainer), trainer) for each in (original, rebuilt))
    if before is None or left is None or not 0 < left < interval <= before:
        return
    raise ValueError(
        f"Expected `val_check_interval` to be at most {left:,}, the number of batches that filtering leaves in an "
        f"epoch, but got {interval:,}.\nWrite `Trainer(val_check_interval=1.0)` to validate after each epoch, or a "
        f"number of at most {left:,}."
    )


def _limited(batches: int | None, trainer: Any) -> int | None:
    """Apply `limit_train_batches`, an int or a share, as Lightning does."""
    limit = trainer.limit_train_batches
    if batches is None:
        return None
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


def _epoch_batches(loader: DataLoader[Any], ranks: int, trainer: Any) -> int | None:
    """Return the number of batches of an epoch of one rank, or `None` if it is not known yet."""
    batches, connector = loader.batch_sampler, getattr(trainer, "_accelerator_connector", None)
    distributes = ranks > 1 and getattr(connector, "use_distributed_sampler", False)
    try:
        if not distributes or isinstance(loader.sampler, DistributedSampler):
            return len(loader)
        if type(batches) is not BatchSampler:
            return None
        samples = -(-len(batches.sampler) // ranks)  # type: ignore[arg-type]
    except TypeError:
        return None
    size = batches.batch_size
    return samples // size if batches.drop_last else -(-samples // size)
