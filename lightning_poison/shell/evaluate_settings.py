"""What `evaluate` is told by its arguments and its YAML file. Needs no torch."""

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import yaml

from lightning_poison import checks
from lightning_poison.checks import describe, expected, printable

BUILT_IN_DATA = ("digits", "mnist")

SettingsT = TypeVar("SettingsT")


@dataclass(frozen=True)
class DataSettings:
    """The data.

    Args:
        source: `digits`, `mnist`, what `scan` takes, or the class path of a LightningDataModule.
        root: Folder that contains `MNIST/raw`. Optional.
        label: See `open_named_source`.
        path: See `open_named_source`.
        image_size: See `open_named_source`.
        init_args: Arguments of the DataModule, as JSON.
        max_samples: Number of samples that are drawn in each seed, before they are divided. Default: all.
        mean: Mean of the normalization of the images, a value for each channel. Default: images in [0, 1].
        std: Its standard deviation.
    """

    source: str
    root: str | None = None
    label: str | None = None
    path: str | None = None
    image_size: int | None = None
    init_args: str = "{}"
    max_samples: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


@dataclass(frozen=True)
class ModelSettings:
    """The model and its training.

    Args:
        class_path: Class path of a LightningModule that maps inputs to logits. Default: a small network for images, a
            perceptron for vectors.
        init_args: Its arguments.
        feature_layer: Name of its layer whose output is the feature vector. Default: the last one before the logits.
        epochs: Number of epochs.
        batch_size: Number of samples per step.
    """

    class_path: str | None = None
    init_args: Mapping[str, Any] = field(default_factory=dict)
    feature_layer: str | None = None
    epochs: int = 10
    batch_size: int = 64


@dataclass(frozen=True)
class AttackSettings:
    """An attack.

    Args:
        name: Its name in tables and results.
        attack: Its name among the installed attacks. Default: `name`.
        poison_fraction: Share of the training set that the attacker controls, in (0, 1).
        budget: The number of samples instead.
        of_class: Number of a class of which `poison_fraction` is the share.
        epsilon: Largest change of a pixel, L∞, in (0, 1]. Default: the attack's own.
        clean_label: Whether poison must keep its labels.
        may_append: Whether samples may be added.
        settings: Arguments of the attack.
        against: Name of the defense that an adaptive attack knows. Only this one is evaluated.
    """

    name: str
    attack: str = ""
    poison_fraction: float = 0.05
    budget: int | None = None
    of_class: int | None = None
    epsilon: float | None = None
    clean_label: bool = False
    may_append: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)
    against: str | None = None


@dataclass(frozen=True)
class DefenseSettings:
    """A defense: `sanitize` with a scorer.

    Args:
        name: Its name in tables and results.
        scorer: A preset, the name of a scorer, or several names with commas between them. Default: `name`.
        settings: Arguments of the scorer.
        trusted: Whether it gets known-clean samples, a tenth of the data. Default: if the scorer needs them.
        false_positive_rate: See `sanitize`.
        natural_error_rate: See `sanitize`. Default: that of `sanitize`.
        folds: See `sanitize`.
        remove_without_evidence: See `sanitize`.
        max_removed: See `sanitize`.
    """

    name: str
    scorer: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    trusted: bool | None = None
    false_positive_rate: float = 0.01
    natural_error_rate: float | None = None
    folds: int = 3
    remove_without_evidence: bool = False
    max_removed: float = 0.5


@dataclass(frozen=True)
class EvaluationSettings:
    """An evaluation.

    Args:
        data: The data.
        model: The model.
        attacks: Attacks with different names.
        defenses: Defenses with different names.
        seeds: Seeds.
        adaptive: Whether adaptive attackers are added for the scorers that have one.
        results: File of the results.
        executor: `process` or `ray`.
        workers: Number of processes. Default: the number of CPU cores.
        ray_address: Address of a Ray cluster. Default: one of its own.
        gpus_per_cell: Number of GPUs of each task, for Ray.
    """

    data: DataSettings
    model: ModelSettings
    attacks: Sequence[AttackSettings]
    defenses: Sequence[DefenseSettings]
    seeds: Sequence[int] = (0, 1, 2)
    adaptive: bool = True
    results: Path = Path("evaluation.jsonl")
    executor: str = "process"
    workers: int | None = None
    ray_address: str | None = None
    gpus_per_cell: float = 0.0


_DATA_KEYS = ("data_root", "label", "path", "image_size", "max_samples", "pixels")
_TRAINING_KEYS = ("model", "epochs", "batch_size")
_RUN_KEYS = ("seeds", "adaptive", "results", "executor", "workers", "ray_address", "gpus_per_cell")
KEYS = ("data", *_DATA_KEYS, *_TRAINING_KEYS, "attacks", "defenses", *_RUN_KEYS)
"""Keys of the YAML file."""


def read_settings(config: Path | None, arguments: Mapping[str, Any]) -> EvaluationSettings:
    """Return the settings of a YAML file, of which arguments that are not `None` take precedence.

    Args:
        config: The file. Optional.
        arguments: Values by the keys of the file.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is no YAML, a key is unknown (the message names the nearest), a value is not valid, or data,
            attacks or defenses are missing.

    Example:
        >>> settings = read_settings(None, {"data": "digits", "attacks": ["badnets=0.02"], "defenses": ["fast"]})
        >>> settings.attacks[0].attack, settings.attacks[0].poison_fraction, settings.defenses[0].scorer
        ('badnets', 0.02, 'fast')
        >>> read_settings(None, {"data": "digits", "attacks": [{"name": "sig", "budgt": 5}], "defenses": ["fast"]})
        Traceback (most recent call last):
        ValueError: Expected a key of attacks[0] (name, ..., against), but got 'budgt'.
        Did you mean `budget`?
    """
    found: dict[str, Any] = {}
    where = "the arguments"
    if config is not None:
        where = printable(config)
        found = _read_yaml(config)
        _check_keys(found, KEYS, where)
    found |= {key: value for key, value in arguments.items() if value is not None}
    for key, hint in (("data", "`--data digits`"), ("attacks", "`--attack badnets`"), ("defenses", "`--defense fast`")):
        if not found.get(key):
            came = "none" if found.get(key) is None else describe(found[key])
            raise ValueError(f"Expected `{key}` in {where}, but got {came}.\nWrite {hint}, or set it in a YAML file.")
    attacks = [_attack(value, f"attacks[{number}]") for number, value in enumerate(_list(found, "attacks"))]
    defenses = [_defense(value, f"defenses[{number}]") for number, value in enumerate(_list(found, "defenses"))]
    _check_against(attacks, defenses)
    run = {key: found[key] for key in _RUN_KEYS if found.get(key) is not None}
    return _checked_run(EvaluationSettings(_data(found), _model(found), attacks, defenses, **run))


def as_json(settings: Any) -> dict[str, Any]:
    """Return settings as JSON values."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(settings)))
    return values


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(expected(printable(path), "a YAML file", printable(error, limit=300))) from error
    if not isinstance(found, dict):
        raise ValueError(expected(printable(path), "a YAML file with keys such as `data`", printable(describe(found))))
    return found


def _check_keys(found: Mapping[Any, Any], known: Sequence[str], where: str) -> None:
    for key in found:
        if key not in known:
            nearest = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            hint = f"Did you mean `{nearest[0]}`?" if nearest else ""
            what = f"a key of {where} ({', '.join(known)})"
            raise ValueError(f"Expected {what}, but got {printable(repr(key))}." + (f"\n{hint}" if hint else ""))


def _list(found: Mapping[str, Any], key: str) -> list[Any]:
    value = found[key]
    return list(value) if isinstance(value, list | tuple) else [value]


def _mapping(value: Any, where: str, kind: type) -> dict[str, Any]:
    """Return an entry of a list as a mapping with known keys: a name, or a mapping itself, also as text."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(expected(where, "valid YAML", printable(error, limit=300))) from error
    if isinstance(value, str):
        return {"name": value}
    if not isinstance(value, Mapping):
        raise ValueError(expected(where, "a name, or keys with values", printable(describe(value))))
    _check_keys(value, [each.name for each in fields(kind)], where)
    return dict(value)


def _attack(value: Any, where: str) -> AttackSettings:
    if isinstance(value, str) and not value.lstrip().startswith("{") and "=" in value:
        name, _, share = value.partition("=")
        value = {"name": name, "poison_fraction": _number(share, where)}
    given = _mapping(value, where, AttackSettings)
    given.setdefault("name", given.get("attack"))
    given.setdefault("attack", given["name"])
    return _built(AttackSettings, given, where, _ATTACK_CHECKS)


def _defense(value: Any, where: str) -> DefenseSettings:
    given = _mapping(value, where, DefenseSettings)
    given.setdefault("name", given.get("scorer"))
    given.setdefault("scorer", given["name"])
    return _built(DefenseSettings, given, where, _DEFENSE_CHECKS)


def _data(found: Mapping[str, Any]) -> DataSettings:
    source = found["data"]
    given: dict[str, Any] = {"source": source}
    if isinstance(source, Mapping):
        _check_keys(source, ("class_path", "init_args"), "data")
        given = {"source": source.get("class_path"), "init_args": json.dumps(source.get("init_args") or {})}
    for key in ("label", "path", "image_size", "max_samples"):
        if found.get(key) is not None:
            given[key] = found[key]
    if found.get("data_root") is not None:
        given["root"] = str(found["data_root"])
    if (pixels := found.get("pixels")) is not None:
        if not isinstance(pixels, Mapping):
            raise ValueError(expected("pixels", "the keys `mean` and `std`", printable(describe(pixels))))
        _check_keys(pixels, ("mean", "std"), "pixels")
        given |= {name: tuple(_number(value, "pixels") for value in _list(pixels, name)) for name in pixels}
    return _built(DataSettings, given, "data", _DATA_CHECKS)


def _model(found: Mapping[str, Any]) -> ModelSettings:
    model = found.get("model")
    given: dict[str, Any] = {}
    if isinstance(model, Mapping):
        _check_keys(model, ("class_path", "init_args", "feature_layer"), "model")
        given = dict(model)
    elif model is not None:
        given["class_path"] = model
    given |= {key: found[key] for key in ("epochs", "batch_size") if found.get(key) is not None}
    return _built(ModelSettings, given, "model", _MODEL_CHECKS)


Check = Callable[[str, Any], Any]


def _built(
    kind: Callable[..., SettingsT], given: Mapping[str, Any], where: str, checked: Mapping[str, Check]
) -> SettingsT:
    """Build settings from values that are not `None`, and check them."""
    values = {}
    for name, value in given.items():
        if value is None and name not in ("name", "source"):
            continue
        try:
            values[name] = checked[name](name, value)
        except (ValueError, TypeError) as error:
            message, _, hint = str(error).partition("\n")
            raise ValueError(f"In {where}: {message}" + (f"\n{hint}" if hint else "")) from error
    return kind(**values)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(expected(name, "a text", printable(describe(value))))
    return value


def _values(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError(expected(name, "keys with values", printable(describe(value))))
    try:
        json.dumps(value, allow_nan=False)
    except (ValueError, TypeError) as error:
        raise ValueError(expected(name, "made of numbers, texts, lists and keys", printable(error))) from error
    return dict(value)


def _number(value: Any, where: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(expected(where, "a number", printable(repr(value)))) from error


def _class_number(name: str, value: Any) -> int:
    return checks.positive_int(name, value, minimum=0)


_ATTACK_CHECKS: Mapping[str, Check] = {
    **dict.fromkeys(("name", "attack", "against"), _text),
    "poison_fraction": checks.fraction,
    "budget": checks.positive_int,
    "of_class": _class_number,
    "epsilon": lambda name, value: checks.epsilon(value, name=name),
    **dict.fromkeys(("clean_label", "may_append"), checks.boolean),
    "settings": _values,
}

_DEFENSE_CHECKS: Mapping[str, Check] = {
    **dict.fromkeys(("name", "scorer"), _text),
    "settings": _values,
    **dict.fromkeys(("trusted", "remove_without_evidence"), checks.boolean),
    "false_positive_rate": checks.fraction,
    "natural_error_rate": checks.share,
    "max_removed": checks.positive_share,
    "folds": lambda name, value: checks.positive_int(name, value, minimum=2),
}

_DATA_CHECKS: Mapping[str, Check] = {
    **dict.fromkeys(("source", "root", "label", "path", "init_args"), _text),
    **dict.fromkeys(("image_size", "max_samples"), checks.positive_int),
    **dict.fromkeys(("mean", "std"), lambda _, value: value),
}

_MODEL_CHECKS: Mapping[str, Check] = {
    "class_path": _text,
    "feature_layer": lambda name, value: checks.instance(name, value, str),
    "init_args": _values,
    **dict.fromkeys(("epochs", "batch_size"), checks.positive_int),
}


def _check_against(attacks: Sequence[AttackSettings], defenses: Sequence[DefenseSettings]) -> None:
    names = [each.name for each in defenses]
    for number, attack in enumerate(attacks):
        if attack.against is not None and attack.against not in names:
            what = f"the name of one of the defenses ({printable(', '.join(names))})"
            raise ValueError(expected(f"`against` of attacks[{number}]", what, repr(printable(attack.against))))


def _checked_run(settings: EvaluationSettings) -> EvaluationSettings:
    checks.one_of("executor", settings.executor, ("process", "ray"))
    if settings.workers is not None:
        checks.positive_int("workers", settings.workers)
    checks.boolean("adaptive", settings.adaptive)
    checks.not_negative("gpus_per_cell", settings.gpus_per_cell)
    if settings.executor != "ray" and (settings.gpus_per_cell or settings.ray_address):
        given = "gpus_per_cell" if settings.gpus_per_cell else "ray_address"
        raise ValueError(expected(given, "given with Ray only", "the executor `process`", "Add `--executor ray`."))
    seeds = settings.seeds
    if isinstance(seeds, list | tuple):
        for seed in seeds:
            checks.positive_int("seeds", seed, minimum=0)
        if not seeds or len(set(seeds)) != len(seeds):
            raise ValueError(expected("seeds", "different numbers, at least one", printable(seeds)))
    else:
        seeds = range(checks.positive_int("seeds", seeds))  # type: ignore[arg-type]  # a number of seeds in YAML
    values = {each.name: getattr(settings, each.name) for each in fields(settings)}
    return EvaluationSettings(**(values | {"seeds": tuple(seeds), "results": Path(settings.results)}))
