"""Figures: score histograms, ROC curves, features in two dimensions, and samples."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
