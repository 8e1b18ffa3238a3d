"""Everything an attack plug-in needs: `Poison`, `Threat`, surrogates, objectives, triggers and `craft`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
