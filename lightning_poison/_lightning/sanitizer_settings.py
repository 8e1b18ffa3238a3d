"""`SanitizerSettings`: the arguments that the `Sanitizer` callback and `SanitizedDataModule` share."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self

from lightning_poison.checks import boolean, describe, expected, instance, one_of, printable
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.sanitization.pipeline import check_scorer_argument
from lightning_poison.sanitization.settings import DecisionSettings
from lightning_poison.scorers.inspection import AnyScorer

Action = Literal["remove", "flag"]

_MAX_NAME = 100
"""Bytes of the longest `name`, which is the name of a folder."""


@dataclass(frozen=True, kw_only=True)
class SanitizerSettings:
    """The arguments of `Sanitizer`, with those of the decision in `decision`; see there for values and errors."""

    scorer: AnyScorer
    trusted: Any = None
    action: Action = "remove"
    sample: SampleSpec | None = None
    score_dataset: Any = None
    loaders: Sequence[str] | None = None
    manifest: str | Path | None = None
    dirpath: str | Path | None = None
    cache: bool = True
    name: str = "sanitizer"
    decision: DecisionSettings = field(default_factory=DecisionSettings)

    def __post_init__(self) -> None:
        check_scorer_argument(self.scorer)
        one_of("action", self.action, ("remove", "flag"))
        if self.sample is not None:
            hint = "Name the parts by their paths: `sample=SampleSpec(inputs=..., labels=...)`."
            instance("sample", self.sample, SampleSpec, hint=hint)
        self._check_loaders()
        for name in ("manifest", "dirpath"):
            _check_path(name, getattr(self, name))
        if "://" in str(self.dirpath):
            hint = "Copy the files from there after training."
            raise ValueError(expected("dirpath", "a folder of a local file system", printable(self.dirpath), hint))
        boolean("cache", self.cache)
        _check_name(self.name)

    def _check_loaders(self) -> None:
        given = self.loaders
        if given is None:
            return
        is_list = isinstance(given, Sequence) and not isinstance(given, str)
        if not is_list or not given or not all(isinstance(each, str) for each in given):
            hint = "Write the keys of loaders in their collection, as in `loaders=['labeled']`."
            raise ValueError(expected("loaders", "a list of at least one text", printable(repr(given)), hint))

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any]) -> Self:
        """Build the settings from the arguments of `Sanitizer` or `SanitizedDataModule` by name; ignore all others."""
        decision = {each.name: arguments[each.name] for each in fields(DecisionSettings)}
        own = {each.name: arguments[each.name] for each in fields(cls) if each.name != "decision"}
        return cls(**own, decision=DecisionSettings(**decision))


def _check_path(name: str, value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str):
        raise TypeError(expected(name, "a path, as `str` or `Path`", describe(value)))
    try:
        is_usable = str(value) != "" and b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        is_usable = False
    if not is_usable:
        raise ValueError(expected(name, "a path of the file system", repr(printable(value))))


def _check_name(name: Any) -> None:
    instance("name", name, str)
    if not name.replace("-", "").replace("_", "").isalnum():
        raise ValueError(expected("name", "letters, digits, - and _", repr(printable(name))))
    if len(name.encode()) > _MAX_NAME:
        raise ValueError(
            expected("name", f"at most {_MAX_NAME} bytes, since it names a folder", f"{len(name.encode())}")
        )
