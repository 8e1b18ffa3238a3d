"""Statistics on tensors: thresholds, p-values, contamination estimates, intervals and groups."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
