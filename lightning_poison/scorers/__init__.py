"""Scorers: one file and one paper each. Larger scores are always more suspicious."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
