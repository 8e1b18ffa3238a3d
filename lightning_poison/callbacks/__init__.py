"""Lightning callbacks: the sanitizer, adversarial training, batch augmentation and the LGM injector."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
