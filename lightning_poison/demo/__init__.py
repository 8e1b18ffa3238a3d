"""The `lightning-poison demo` command: two attacks on a small data set, evaluated with a sanitizer."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
