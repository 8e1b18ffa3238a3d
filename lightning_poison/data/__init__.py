"""Reading data sets: where input and label are in a sample, blocks, views, pixel ranges and fingerprints."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
