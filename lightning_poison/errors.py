"""Exceptions that callers may want to catch. Every other fault raises a `ValueError` or `TypeError`."""

from typing import Any


class UnsupportedDataError(TypeError):
    """The training data cannot be filtered by index, such as an iterable data set or a loader other than torch's."""


class UnreadableSampleError(RuntimeError):
    """A sample cannot be read, contains NaN or infinite values, or differs from the others in shape."""


class DataChangedError(RuntimeError):
    """A stored decision belongs to a different data set."""


class NothingKeptError(RuntimeError):
    """A decision would leave too few samples to train on.

    Args:
        message: What was expected, and what came.
        verdict: The decision, a `Verdict`, so that scores can be inspected and saved. `None` if there is none.
    """

    def __init__(self, message: str, verdict: Any = None) -> None:
        super().__init__(message)
        self.verdict = verdict


class InconclusiveError(RuntimeError):
    """Without trusted data, the scorer is too inaccurate to separate poison from hard samples.

    Args:
        message: What was expected, and what came.
        scores: Suspicion score of each sample of the data set, float64 `(N,)`, larger is more suspicious: a ranking to
            look through, without a threshold. 0 for samples that were not judged; `None` if nothing was scored.
    """

    def __init__(self, message: str, scores: Any = None) -> None:
        super().__init__(message)
        self.scores = scores


class RankFailedError(RuntimeError):
    """Another rank has failed, was killed or is stopped, so this rank stops as well.

    Args:
        rank: Number of the rank that has failed, or `None` if it is unknown.
        reason: Its error.
        is_interrupt: Whether it was asked to end, by a signal.

    Example:
        >>> print(RankFailedError(1, "FileNotFoundError: /data/train is not on this node"))
        Expected every rank to finish its share of the work, but rank 1 failed: FileNotFoundError: /data/train is not on
        this node.
        See the log of rank 1.
    """

    def __init__(self, rank: int | None, reason: str = "", is_interrupt: bool = False) -> None:
        super().__init__(rank, reason, is_interrupt)
        self.rank, self.reason, self.is_interrupt = rank, reason, is_interrupt

    def __str__(self) -> str:
        """Return which rank has failed, and why."""
        name = "another rank" if self.rank is None else f"rank {self.rank}"
        what = f"{name} failed: {self.reason}" if self.reason else f"{name} failed"
        return f"Expected every rank to finish its share of the work, but {what}.\nSee the log of {name}."


class NotFittedError(RuntimeError):
    """A scorer must be fitted before it can score."""


class MissingEncoderError(ImportError):
    """A pretrained network, or the package that builds it, is not on this machine."""


class PluginError(RuntimeError):
    """A plug-in failed to load, or its attack or scorer returned something that breaks the contract."""


class ManifestError(ValueError):
    """A manifest cannot be read, or does not belong to the data set."""


class UnknownNameError(LookupError):
    """No installed plug-in provides an attack or scorer of this name."""


def is_signal(error: BaseException) -> bool:
    """Return whether an error asks the process to end, as Lightning's `SIGTERMException` does, and is no fault of code.

    A plain `SystemExit`, raised by `sys.exit()`, is a fault if it comes from a data set.

    Example:
        >>> class SIGTERMException(SystemExit):
        ...     pass
        >>> is_signal(SIGTERMException()), is_signal(SystemExit(3)), is_signal(ValueError())
        (True, False, False)
    """
    return isinstance(error, SystemExit) and type(error) is not SystemExit
