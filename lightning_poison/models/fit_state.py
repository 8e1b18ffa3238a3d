"""`FitState`: saves a running fit from time to time, and continues an interrupted one bit for bit."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_poison.data.fingerprints import digest_of
from lightning_poison.runtime import NoUnits, Runtime, SaveTimer


class FitState:
    """Everything that changes during a fit, stored in the units of a runtime.

    A fit is identified by the state in which it starts, so that no other fit continues from its unit.

    Args:
        modules: Modules that are trained, by name.
        optimizers: Their optimizers.
        generators: Generators that the fit draws from, by name.
        runtime: Stores units.
        settings: What else determines the fit, as JSON values.
        extras: Other objects with `state_dict` and `load_state_dict` of numbers and tensors, by name. Optional.

    Example:
        >>> from lightning_poison.runtime import LocalRuntime
        >>> module = nn.Linear(2, 2)
        >>> state = FitState({"module": module}, [torch.optim.Adam(module.parameters())], {}, LocalRuntime(), {})
        >>> state.resume() is None
        True
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        optimizers: Sequence[torch.optim.Optimizer],
        generators: Mapping[str, torch.Generator],
        runtime: Runtime,
        settings: Mapping[str, Any],
        extras: Mapping[str, Any] | None = None,
    ) -> None:
        self._modules = modules
        self._optimizers = optimizers
        self._generators = generators
        self._extras = extras or {}
        self._runtime = runtime
        self._timer = SaveTimer()
        self._name: str | None = None
        lazy = any(
            is_lazy(value) for module in modules.values() for value in module.state_dict(keep_vars=True).values()
        )
        if not lazy and not isinstance(runtime.units, NoUnits):
            head = bytearray(json.dumps(settings, sort_keys=True, default=str).encode())
            start = {**self._tensors(), "settings": torch.frombuffer(head, dtype=torch.uint8)}
            self._name = f"fit-{digest_of(start)[:24]}"

    def resume(self) -> tuple[int, ...] | None:
        """Restore the state of an interrupted fit and return its position; `None` if there is none."""
        found = self._runtime.units.load(self._name) if self._name is not None else None
        if found is None:
            return None
        tensors, meta = found
        self._restore(tensors, meta)
        return tuple(meta["position"])

    @property
    def is_due(self) -> bool:
        """Whether it is time to save the state."""
        return self._name is not None and self._timer.is_due()

    def save(self, position: Sequence[int], *, now: bool = False) -> None:
        """Save the state if it is time to, or `now`.

        Args:
            position: Where in the fit this is, for `resume`.
            now: Whether to save in any case.
        """
        if self._name is None or not (now or self._timer.is_due()):
            return
        with self._timer.saving():
            groups = [[_group(each) for each in optimizer.param_groups] for optimizer in self._optimizers]
            self._runtime.units.save(self._name, self._tensors(), {"position": list(position), "groups": groups})

    def _tensors(self) -> dict[str, Tensor]:
        found = {"global": torch.get_rng_state()}
        if self._runtime.device.type == "cuda":
            found["global.cuda"] = torch.cuda.get_rng_state(self._runtime.device)
        for name, generator in self._generators.items():
            found[f"generator.{name}"] = generator.get_state()
        for name, module in self._modules.items():
            found |= {f"module.{name}.{key}": value for key, value in module.state_dict().items()}
        for number, optimizer in enumerate(self._optimizers):
            for key, state in optimizer.state_dict()["state"].items():
                found |= {f"optimizer.{number}.{key}.{name}": torch.as_tensor(value) for name, value in state.items()}
        for name, extra in self._extras.items():
            found |= {f"extra.{name}.{key}": torch.as_tensor(value) for key, value in extra.state_dict().items()}
        return found

    def _restore(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        for name, module in self._modules.items():
            module.load_state_dict(_below(tensors, f"module.{name}."))
        for number, optimizer in enumerate(self._optimizers):
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in _below(tensors, f"optimizer.{number}.").items():
                parameter, name = key.split(".", 1)
                state.setdefault(int(parameter), {})[name] = value
            own = optimizer.state_dict()["param_groups"]
            groups = [
                {name: tuple(value) if isinstance(value, list) else value for name, value in saved.items()} | group
                for saved, group in zip(
                    meta["groups"][number], ({"params": each["params"]} for each in own), strict=True
                )
            ]
            optimizer.load_state_dict({"state": state, "param_groups": groups})
            _match_layout(optimizer)
        for name, extra in self._extras.items():
            extra.load_state_dict(_below(tensors, f"extra.{name}."))
        for name, generator in self._generators.items():
            generator.set_state(tensors[f"generator.{name}"])
        torch.set_rng_state(tensors["global"])
        if "global.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["global.cuda"], self._runtime.device)


def _match_layout(optimizer: torch.optim.Optimizer) -> None:
    """Give averages the memory layout of their parameters: with another, kernels round differently."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _group(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}
