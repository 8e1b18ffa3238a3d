"""`SanitizerSettings`: the arguments that the `Sanitizer` callback and `SanitizedDataModule` share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self

from lightning_poison.checks import boolean, expected, instance, is_integer, local_path, one_of, printable
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.sanitization.pipeline import check_scorer_argument, known_verdict
from lightning_poison.sanitization.settings import DecisionSettings
from lightning_poison.sanitization.stream_filter import StreamFilter
from lightning_poison.sanitization.verdict import Verdict
from lightning_poison.scorers.recommended import scorer_from

Action = Literal["remove", "flag"]

_MAX_NAME = 100
"""Bytes of the longest `name`, which is the name of a folder."""


@dataclass(frozen=True, kw_only=True)
class SanitizerSettings:
    """The arguments of `Sanitizer`, with those of the decision in `decision`; see there for values and errors."""

    scorer: Any = "balanced"
    trusted: Any = None
    action: Action = "remove"
    sample: SampleSpec | None = None
    score_dataset: Any = None
    loaders: Sequence[str | int] | None = None
    known: Verdict | str | Path | None = None
    manifest: str | Path | None = None
    dirpath: str | Path | None = None
    cache: bool = True
    report: bool = True
    stream_filter: StreamFilter | None = None
    name: str = "sanitizer"
    decision: DecisionSettings = field(default_factory=DecisionSettings)

    def __post_init__(self) -> None:
        object.__setattr__(self, "scorer", scorer_from(self.scorer))
        check_scorer_argument(self.scorer)
        one_of("action", self.action, ("remove", "flag"))
        if self.sample is not None:
            hint = "Name the parts by their paths: `sample=SampleSpec(inputs=..., labels=...)`."
            instance("sample", self.sample, SampleSpec, hint=hint)
        self._check_loaders()
        hints = {"manifest": "Copy the file first.", "dirpath": "Copy the files from a local folder after training."}
        for name, hint in hints.items():
            if getattr(self, name) is not None:
                local_path(name, getattr(self, name), hint=hint)
        object.__setattr__(self, "known", known_verdict(self.known))
        hint = "The cache is in `<default_root_dir>/sanitizer_cache/`, or in `cache/` below `dirpath` if that is given."
        boolean("cache", self.cache, hint=hint)
        boolean("report", self.report, hint="The report is `report.html` beside the manifest.")
        if self.stream_filter is not None:
            hint = "Fit and calibrate one: `StreamFilter.fit(LikelihoodScorer(), trusted)`."
            instance("stream_filter", self.stream_filter, StreamFilter, hint=hint)
        _check_name(self.name)

    def _check_loaders(self) -> None:
        given = self.loaders
        if given is None:
            return
        if isinstance(given, list | tuple):
            given = [str(int(each)) if is_integer(each) else each for each in given]
            object.__setattr__(self, "loaders", given)
        is_list = isinstance(given, Sequence) and not isinstance(given, str)
        if not is_list or not given or not all(isinstance(each, str) for each in given):
            hint = "Write their keys or positions in the collection, as in `loaders=['labeled']` or `loaders=[0]`."
            what = "a list of keys or positions of training loaders"
            raise ValueError(expected("loaders", what, printable(repr(given)), hint))

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any]) -> Self:
        """Build the settings from the arguments of `Sanitizer` or `SanitizedDataModule` by name; ignore all others."""
        decision = {each.name: arguments[each.name] for each in fields(DecisionSettings)}
        own = {each.name: arguments[each.name] for each in fields(cls) if each.name != "decision"}
        return cls(**own, decision=DecisionSettings(**decision))


def _check_name(name: Any) -> None:
    instance("name", name, str)
    if not name.replace("-", "").replace("_", "").isalnum():
        raise ValueError(expected("name", "letters, digits, - and _", repr(printable(name))))
    if len(name.encode()) > _MAX_NAME:
        raise ValueError(
            expected("name", f"at most {_MAX_NAME} bytes, since it names a folder", f"{len(name.encode())}")
        )
