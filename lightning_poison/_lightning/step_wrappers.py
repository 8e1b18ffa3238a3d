"""`StepChain`: what several callbacks put around a module's `training_step`, in one wrapper."""

from collections.abc import Callable, Hashable
from functools import partial, update_wrapper
from operator import itemgetter
from typing import Any, TypeAlias

from torch import nn

Around: TypeAlias = Callable[..., Any]


class StepChain:
    """Takes the place of a module's `training_step` and runs it inside of what callbacks put around it.

    There is one chain for a module, however many callbacks use it, so that they can leave in any order: Lightning tears
    callbacks down in the order in which it set them up, and wrappers that each put back what they found would leave
    stale ones behind. When the last one leaves, the module is as it was found; a `training_step` that was an attribute
    of the instance (as `torch.compile` leaves it) is put back as such.

    Lightning decides by the signature whether a step wants `batch_idx`, and by the code whether a hook is overridden.
    It looks through one `__wrapped__`, and finds there what it would have found without the chain.

    A copy or a pickle of the module (weight averaging makes copies) gets its class's own `training_step`.

    Example:
        >>> class Module(nn.Module):
        ...     def training_step(self, batch):
        ...         return sum(batch)
        >>> def doubled(call_next, batch, *args, **kwargs):
        ...     return 2 * call_next([*batch, 1], *args, **kwargs)
        >>> module = Module()
        >>> StepChain.add(module, "mine", doubled)
        >>> module.training_step([1, 2])
        8
        >>> StepChain.remove(module, "mine")
        >>> module.training_step([1, 2])
        3
    """

    def __init__(self, module: nn.Module, method: str) -> None:
        self._module, self._method = module, method
        self._of_instance = method in module.__dict__
        self._original: Callable[..., Any] = getattr(module, method)
        self._arounds: dict[Hashable, tuple[Around, bool]] = {}
        update_wrapper(self, self._original)
        self.__wrapped__ = getattr(self._original, "__wrapped__", self._original)

    @classmethod
    def add(
        cls,
        module: nn.Module,
        key: Hashable,
        around: Around,
        *,
        innermost: bool = False,
        method: str = "training_step",
    ) -> None:
        """Put something around a module's `training_step`.

        Args:
            module: the module; its instance gets the chain as `training_step` where it has none yet.
            key: names the caller for `remove`; what was there under the same key is replaced.
            around: `around(call_next, batch, *args, **kwargs)`, which returns what the step is to return; it may hand
                another batch to `call_next`, and must not change the one it got. The first one added is outermost.
            innermost: run inside of all that are not; for what must see the batch that the step itself gets.
            method: another method to be wrapped in the same way.
        """
        chain = module.__dict__.get(_attribute(method))
        if not isinstance(chain, cls):
            chain = cls(module, method)
            module.__dict__[_attribute(method)] = module.__dict__[method] = chain
        chain._arounds[key] = around, innermost

    @classmethod
    def remove(cls, module: nn.Module, key: Hashable, *, method: str = "training_step") -> None:
        """Take away what was put there under `key`, if anything, and the chain itself with the last one."""
        chain = module.__dict__.get(_attribute(method))
        if not isinstance(chain, cls):
            return
        chain._arounds.pop(key, None)
        if not chain._arounds:
            del module.__dict__[_attribute(method)]
            chain._put_back()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the step inside of everything that was put around it."""
        step = self._original
        outside_in = sorted(self._arounds.values(), key=itemgetter(1))
        for around, _ in reversed(outside_in):
            step = partial(around, step)
        return step(*args, **kwargs)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[nn.Module, str]]:
        """Copy and pickle as the method of the module's class, bound to the copy."""
        return getattr, (self._module, self._method)

    def _put_back(self) -> None:
        """Restore the module's own method, unless somebody else has wrapped the chain in the meantime."""
        attributes = self._module.__dict__
        if attributes.get(self._method) is not self:
            return
        if self._of_instance:
            attributes[self._method] = self._original
        else:
            del attributes[self._method]


def _attribute(method: str) -> str:
    """Return the name under which a module holds the chain around one of its methods."""
    return f"_lightning_poison_{method}_chain"
