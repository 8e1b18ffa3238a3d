"""Units of work that ranks share: each takes the next one as soon as it is free."""

from collections.abc import Callable, Iterator

from lightning_poison._lightning.rank_link import RankLink


def shared_units(link: RankLink, count: int, *, check: Callable[[], None] = lambda: None) -> Iterator[int]:
    """Return an iterator over units that no other rank has taken, in increasing order.

    Between two agreements, all ranks call it equally often, in the same order.

    Args:
        link: The link of this rank.
        count: Number of units.
        check: Called while waiting for the store; may raise.

    Raises:
        RankFailedError: From the iterator, if another rank has failed.

    Example:
        >>> from torch.distributed import HashStore
        >>> link = RankLink(HashStore, 0, 1, announce=print)
        >>> with link.active():
        ...     list(shared_units(link, 3)), list(shared_units(link, 2))
        ([0, 1, 2], [0, 1])
    """
    return _untaken(link, link.next_share(), count, check)


def _untaken(link: RankLink, name: str, count: int, check: Callable[[], None]) -> Iterator[int]:
    while (unit := link.request(lambda board: board.take(name), check=check)) < count:
        yield unit
