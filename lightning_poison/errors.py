"""The exceptions that a caller may want to catch; every other fault is a `ValueError` or `TypeError`."""


class UnsupportedDataError(TypeError):
    """The training data cannot be filtered by index: an iterable data set, or a loader that is none of torch's."""


class UnreadableSampleError(RuntimeError):
    """A sample could not be read, holds NaN or infinite values, or disagrees with the others in shape."""


class DataChangedError(RuntimeError):
    """A stored decision belongs to other data than those at hand."""


class NothingKeptError(RuntimeError):
    """A decision would leave too few samples to train on."""


class InconclusiveError(RuntimeError):
    """Without trusted data the scorer reads the samples too badly to tell poison from hard ones."""


class NotFittedError(RuntimeError):
    """A scorer was asked for scores before it was fitted."""


class PluginError(RuntimeError):
    """A plug-in failed to load, or what its attack or scorer returned breaks the contract."""


class ManifestError(ValueError):
    """A manifest cannot be read, or does not belong to the data set."""


class UnknownNameError(LookupError):
    """No installed plug-in offers an attack or scorer of this name."""
