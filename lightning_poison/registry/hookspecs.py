"""Hook specifications of plug-ins: both hooks return factories by name.

A plug-in is a module that implements these functions, marked with `hookimpl`, and an entry point of its distribution:

    [project.entry-points."lightning_poison.plugins"]
    frogs = "my_frogs"
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from lightning_poison.attacks.poison import Attack
    from lightning_poison.scorers.inspection import AnyScorer

PROJECT = "lightning_poison"
"""Name of the pluggy project."""

AttackFactory = Callable[..., "Attack"]
ScorerFactory = Callable[..., "AnyScorer"]

hookspec = pluggy.HookspecMarker(PROJECT)

hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks the implementation of a hook in a plug-in: `@hookimpl`."""


@hookspec
def lightning_poison_attacks() -> Mapping[str, AttackFactory]:  # type: ignore[empty-body]
    """Return attack factories by name. The arguments of a factory are the settings of its attack.

    `lightning-poison attacks` prints the first line of the factory's docstring.

    Example:
        >>> class Frog:
        ...     "Move an image toward a target in feature space."
        >>> class MyFrogs:  # usually a module, whose functions have no `self`
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
    """Return scorer factories by name. The arguments of a factory are the settings of its scorer.

    Example:
        >>> from lightning_poison.scorers.pixel_counting import PixelCountingScorer
        >>> class MyScorers:  # usually a module, whose functions have no `self`
        ...     @hookimpl
        ...     def lightning_poison_scorers(self):
        ...         return {"pixel-counting": PixelCountingScorer}
        >>> manager = pluggy.PluginManager(PROJECT)
        >>> name = manager.register(MyScorers())
        >>> [list(factories) for factories in manager.hook.lightning_poison_scorers()]
        [['pixel-counting']]
    """
