"""Evaluation of attacks against defenses: the evaluation matrix, its controls, and metrics."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
