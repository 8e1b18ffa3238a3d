"""The hooks that a plug-in implements: both return names and factories.

A plug-in is a module with functions of these names, marked with `hookimpl`, and one line in the metadata of its
distribution:

    [project.entry-points."lightning_poison.plugins"]
    frogs = "my_frogs"

It may state the version of this interface that it was written for, as `LIGHTNING_POISON_API = (1, 0)`. The major number
must be that of `API_VERSION` and the minor number at most that one.
"""

from collections.abc import Callable, Mapping

import pluggy

from lightning_poison.attacks.poison import Attack
from lightning_poison.entry_points import GROUP as GROUP
from lightning_poison.scorers.protocol import FeatureScorer, Scorer

PROJECT = "lightning_poison"
API_VERSION = (1, 0)
"""Major and minor version of the hooks and of what they return."""

AttackFactory = Callable[..., Attack]
ScorerFactory = Callable[..., Scorer | FeatureScorer]

hookspec = pluggy.HookspecMarker(PROJECT)

hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a plug-in's implementation of a hook: `@hookimpl`."""


@hookspec
def lightning_poison_attacks() -> Mapping[str, AttackFactory]:  # type: ignore[empty-body]
    """Return attacks by name, each with a factory whose arguments are its settings.

    The first line of the factory's docstring is what `lightning-poison attacks` prints.

    Example:
        >>> class Frog:
        ...     "Move an image toward a target in feature space."
        >>> class MyFrogs:  # most often a module, whose functions have no `self`
        ...     @hookimpl
        ...     def lightning_poison_attacks(self):
        ...         return {"my-frog": Frog}
        >>> manager = pluggy.PluginManager(PROJECT)
        >>> name = manager.register(MyFrogs())
        >>> manager.hook.lightning_poison_attacks()
        [{'my-frog': <class '...Frog'>}]
    """


@hookspec
def lightning_poison_scorers() -> Mapping[str, ScorerFactory]:  # type: ignore[empty-body]
    """Return scorers by name, each with a factory whose arguments are its settings.

    Example:
        >>> from lightning_poison.scorers.pixel_counting import PixelCountingScorer
        >>> class MyScorers:  # most often a module, whose functions have no `self`
        ...     @hookimpl
        ...     def lightning_poison_scorers(self):
        ...         return {"pixel-counting": PixelCountingScorer}
        >>> manager = pluggy.PluginManager(PROJECT)
        >>> name = manager.register(MyScorers())
        >>> [list(offered) for offered in manager.hook.lightning_poison_scorers()]
        [['pixel-counting']]
    """
