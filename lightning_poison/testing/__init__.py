"""Conformance tests that authors of attack and scorer plug-ins run on their own code."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
