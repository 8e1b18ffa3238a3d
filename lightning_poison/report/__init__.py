"""Figures for reports: score histograms, ROC curves, embeddings and sample grids."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
