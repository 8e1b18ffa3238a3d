"""`StepWrappers`: the wrappers that several callbacks put around a module's `training_step`."""

from collections.abc import Callable, Hashable
from functools import partial, update_wrapper
from inspect import signature
from operator import itemgetter
from typing import Any, TypeAlias

from torch import nn

Wrapper: TypeAlias = Callable[..., Any]


class StepWrappers:
    """Replaces a module's `training_step` by a callable that runs it inside the wrappers of several callbacks.

    A module has one such object, however many callbacks use it, so that wrappers can be removed in any order. Lightning
    tears callbacks down in the order in which it set them up; callbacks that each restored the method they had found
    would leave stale wrappers behind. Removing the last wrapper restores the module. A `training_step` that was an
    instance attribute, as `torch.compile` leaves it, is restored as one.

    Lightning inspects the signature to decide whether a step takes `batch_idx`, and the code to decide whether a hook
    is overridden. It looks through one `__wrapped__`, which leads to the original method.

    A copy or pickle of the module, such as the copies made by weight averaging, gets the plain `training_step` of its
    class.

    Example:
        >>> class Module(nn.Module):
        ...     def training_step(self, batch):
        ...         return sum(batch)
        >>> def double(call_next, batch, *args, **kwargs):
        ...     return 2 * call_next([*batch, 1], *args, **kwargs)
        >>> module = Module()
        >>> StepWrappers.add(module, "double", double)
        >>> module.training_step([1, 2])
        8
        >>> StepWrappers.remove(module, "double")
        >>> module.training_step([1, 2])
        3
    """

    def __init__(self, module: nn.Module, method: str) -> None:
        self._module, self._method = module, method
        self._was_instance_attribute = method in module.__dict__
        self._original: Callable[..., Any] = getattr(module, method)
        self._wrappers: dict[Hashable, tuple[Wrapper, bool]] = {}
        update_wrapper(self, self._original)
        self.__wrapped__ = getattr(self._original, "__wrapped__", self._original)

    @classmethod
    def add(
        cls,
        module: nn.Module,
        key: Hashable,
        wrapper: Wrapper,
        *,
        innermost: bool = False,
        method: str = "training_step",
    ) -> None:
        """Add a wrapper around a module's `training_step`.

        Args:
            module: The module, changed in place.
            key: Identifies the wrapper for `remove`; a wrapper under the same key is replaced.
            wrapper: `wrapper(call_next, batch, *args, **kwargs)`, which returns the output of the step. It may pass
                another batch to `call_next`, but must not modify its own. The first wrapper added is the outermost.
            innermost: Run inside all other wrappers, on the batch that the step itself gets.
            method: The method to wrap.
        """
        wrappers = module.__dict__.get(_attribute(method))
        if not isinstance(wrappers, cls):
            wrappers = cls(module, method)
            module.__dict__[_attribute(method)] = module.__dict__[method] = wrappers
        wrappers._wrappers[key] = wrapper, innermost

    @classmethod
    def remove(cls, module: nn.Module, key: Hashable, *, method: str = "training_step") -> None:
        """Remove the wrapper under `key`, if any; removing the last one restores the method."""
        wrappers = module.__dict__.get(_attribute(method))
        if not isinstance(wrappers, cls):
            return
        wrappers._wrappers.pop(key, None)
        if not wrappers._wrappers:
            del module.__dict__[_attribute(method)]
            wrappers._restore()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the step inside all wrappers."""
        step = self._original
        outside_in = sorted(self._wrappers.values(), key=itemgetter(1))
        for wrapper, _ in reversed(outside_in):
            step = partial(wrapper, step)
        return step(*args, **kwargs)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[nn.Module, str]]:
        """Copy and pickle as the method of the module's class, bound to the copy."""
        return getattr, (self._module, self._method)

    def _restore(self) -> None:
        """Restore the module's own method, unless other code has wrapped this object in the meantime."""
        attributes = self._module.__dict__
        if attributes.get(self._method) is not self:
            return
        if self._was_instance_attribute:
            attributes[self._method] = self._original
        else:
            del attributes[self._method]


def check_takes_batch(module: Any) -> None:
    """Refuse a module whose `training_step` iterates over batches itself.

    Raises:
        TypeError: If the step takes `dataloader_iter`.
    """
    if "dataloader_iter" in signature(module.training_step).parameters:
        raise TypeError(
            "Expected a `training_step` that takes a batch, but got one that takes `dataloader_iter`.\n"
            "Use the signature `(self, batch, batch_idx)`."
        )


def _attribute(method: str) -> str:
    """Return the module attribute that stores the wrappers of a method."""
    return f"_lightning_poison_{method}_wrappers"
