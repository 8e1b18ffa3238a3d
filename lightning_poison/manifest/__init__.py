"""Quarantine manifests: write, read, edit and compare them, and match them to a data set."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
