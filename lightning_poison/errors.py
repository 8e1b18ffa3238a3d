"""Exceptions that callers may want to catch. Every other fault raises a `ValueError` or `TypeError`."""


class UnsupportedDataError(TypeError):
    """The training data cannot be filtered by index, such as an iterable data set or a loader other than torch's."""


class UnreadableSampleError(RuntimeError):
    """A sample cannot be read, contains NaN or infinite values, or differs from the others in shape."""


class DataChangedError(RuntimeError):
    """A stored decision belongs to a different data set."""


class NothingKeptError(RuntimeError):
    """A decision would leave too few samples to train on."""


class InconclusiveError(RuntimeError):
    """Without trusted data, the scorer is too inaccurate to separate poison from hard samples."""


class NotFittedError(RuntimeError):
    """A scorer must be fitted before it can score."""


class PluginError(RuntimeError):
    """A plug-in failed to load, or its attack or scorer returned something that breaks the contract."""


class ManifestError(ValueError):
    """A manifest cannot be read, or does not belong to the data set."""


class UnknownNameError(LookupError):
    """No installed plug-in provides an attack or scorer of this name."""
