"""Adversarial training: PGD, FGSM, training recipes and the guard against catastrophic overfitting."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
