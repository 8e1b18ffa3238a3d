"""The quarantine manifest: written, read, matched to a data set, compared and edited."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
