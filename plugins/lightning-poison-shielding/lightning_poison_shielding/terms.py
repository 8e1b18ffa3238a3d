"""`Terms`: the settings that both attacks share, what follows from them before crafting, and the poison at the end."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_poison import Poison, Surrogate, Threat, checks
from lightning_poison.attacks import ProtectedClassObjective
from lightning_poison.contexts import evaluating, frozen
from lightning_poison_shielding.scene import Scene, look


@dataclass(frozen=True, kw_only=True)
class Terms:
    """The settings that both attacks share.

    Args:
        protected_class: the class to be misread.
        shield_class: the class whose images carry the poison; `None` where it has to be chosen.
        protected_weight: t, what the protected class counts for in the loss.
        ridge_steps: how many steps are taken against least squares.
        logistic_steps: how many against logistic regression after that.
        others: on how many images of other classes the loss is measured at most.
        poisons_per_base: how often an image of the shield class may serve as a base.
        placement: `"append"` adds the poison to the training set, `"replace"` puts it in the place of its bases.
        batch_size: how many images are read and mapped at once.

    Raises:
        ValueError: where an argument is out of its range, the classes are the same, or copies shall replace one base.
    """

    protected_class: int
    shield_class: int | None
    protected_weight: float
    ridge_steps: int
    logistic_steps: int
    others: int
    poisons_per_base: int
    placement: Literal["append", "replace"]
    batch_size: int

    def __post_init__(self) -> None:
        checks.positive_int("protected_class", self.protected_class, minimum=0)
        if self.shield_class is not None:
            checks.positive_int("shield_class", self.shield_class, minimum=0)
        if self.shield_class == self.protected_class:
            what = f"another class than `protected_class` ({self.protected_class})"
            raise ValueError(checks.expected("shield_class", what, "the same"))
        checks.one_of("placement", self.placement, ("append", "replace"))
        checks.positive("protected_weight", self.protected_weight)
        for name in ("ridge_steps", "logistic_steps", "others", "poisons_per_base", "batch_size"):
            checks.positive_int(name, getattr(self, name))
        if self.placement == "replace" and self.poisons_per_base > 1:
            hint = 'Copies can only be appended: `placement="append"`.'
            what = 'one where `placement` is "replace"'
            raise ValueError(checks.expected("poisons_per_base", what, self.poisons_per_base, hint))

    @classmethod
    def of(cls, attack: object) -> Self:
        """Return the terms of an attack with settings of these names."""
        return cls(**{field.name: getattr(attack, field.name) for field in fields(cls)})

    @contextmanager
    def scene(
        self,
        dataset: "Dataset[Any]",
        threat: Threat,
        surrogates: Sequence[Surrogate],
        holdout: "Dataset[Any] | None",
        *,
        validate: bool,
        generator: torch.Generator,
    ) -> Iterator[Scene]:
        """Look at the data; meanwhile the surrogates are frozen in evaluation mode, afterwards as they were.

        Args:
            dataset: the training set.
            threat: says how samples are normalized, and whether poison may be appended.
            surrogates: one at least.
            holdout: the owner's pool: protected images and others that are not trained on.
            validate: whether a part of the pool is kept back.
            generator: draws the parts of the pool.

        Raises:
            ValueError: where the threat forbids to append, and as `look`.
        """
        if self.placement == "append" and not threat.may_append:
            raise ValueError('Expected a threat that may append, but got one that may not.\nSet `placement="replace"`.')
        models = [surrogate.model for surrogate in surrogates]
        with evaluating(*models), frozen(*models):
            yield look(
                dataset,
                threat,
                surrogates,
                holdout,
                protected_class=self.protected_class,
                others=self.others,
                validate=validate,
                batch_size=self.batch_size,
                generator=generator,
            )

    def poison(
        self,
        images: Tensor,
        bases: Tensor,
        shield_class: int,
        *,
        threat: Threat,
        length: int,
        attack: str,
        settings: Mapping[str, Any],
    ) -> Poison:
        """Return the poison.

        Args:
            images: raw `(P, ...)` in [0, 1].
            bases: int64 `(P,)`, what they were made from.
            shield_class: their label.
            threat: says how samples are normalized.
            length: how many training samples there are.
            attack: its name.
            settings: what it was built with; the shield class is set to the one that was used.
        """
        appends = self.placement == "append"
        return Poison(
            indices=length + torch.arange(len(bases)) if appends else bases,
            base_indices=bases if appends else None,
            inputs=threat.pixels.from_raw(images.cpu()),
            labels=torch.full((len(bases),), shield_class),
            objective=ProtectedClassObjective(self.protected_class),
            attack=attack,
            settings={**settings, "shield_class": shield_class},
        )
