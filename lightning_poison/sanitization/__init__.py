"""From scores to a decision: `sanitize`, its judges with and without trusted data, and the verdict."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
