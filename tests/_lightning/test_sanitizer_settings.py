"""Wrong types and values of the callback's own arguments give one error at construction."""

from pathlib import Path

import numpy as np
import pytest

from lightning_poison._lightning.sanitizer_settings import SanitizerSettings

INVALID = [
    ({"name": 5}, TypeError, "`name` to be a `str`, but got the int 5"),
    ({"name": None}, TypeError, "`name` to be a `str`, but got None"),
    ({"name": ""}, ValueError, "`name` to be letters, digits, - and _, but got ''"),
    ({"name": "a/b"}, ValueError, "`name` to be letters, digits, - and _, but got 'a/b'"),
    ({"name": "ä" * 60}, ValueError, "`name` to be at most 100 bytes, since it names a folder, but got 120"),
    ({"dirpath": 5}, TypeError, "`dirpath` to be a path, as `str` or `Path`, but got 5"),
    ({"dirpath": b"here"}, TypeError, "`dirpath` to be a path, as `str` or `Path`, but got bytes"),
    ({"dirpath": ["here"]}, TypeError, "`dirpath` to be a path, as `str` or `Path`, but got list"),
    ({"dirpath": ""}, ValueError, "`dirpath` to be a path of the file system, but got ''"),
    ({"dirpath": "a\0b"}, ValueError, r"`dirpath` to be a path of the file system, but got 'a\\+x00b'"),
    ({"dirpath": "a\ud800b"}, ValueError, "`dirpath` to be a path of the file system"),
    (
        {"dirpath": "s3://bucket/run"},
        ValueError,
        "`dirpath` to be a folder of a local file system, but got 's3://bucket/run'",
    ),
    ({"manifest": 5}, TypeError, "`manifest` to be a path"),
    ({"manifest": ""}, ValueError, "`manifest` to be a path of the file system"),
    ({"action": ["remove"]}, ValueError, "`action` to be one of 'remove', 'flag'"),
    ({"cache": "no"}, ValueError, "`cache` to be True or False, but got 'no'"),
    ({"sample": ("image", "label")}, TypeError, "`sample` to be a `SampleSpec`, but got tuple"),
    ({"dirpath": Path("s3://bucket/run")}, ValueError, "`dirpath` to be a folder of a local file system"),
    ({"cache": ""}, ValueError, "but got ''\\.\nThe cache is in `<default_root_dir>/.*/`, .* below `dirpath` if that"),
    ({"cache": "s3://bucket/work"}, ValueError, "`cache` to be True or False, but got 's3://bucket/work'"),
    ({"cache": 5}, ValueError, "`cache` to be True or False, but got 5"),
    ({"loaders": 5}, ValueError, "`loaders` to be a list of keys or positions of training loaders, but got 5"),
    ({"loaders": []}, ValueError, "`loaders` to be a list of keys or positions"),
    ({"loaders": [True]}, ValueError, "`loaders` to be a list of keys or positions"),
]


@pytest.mark.parametrize(("arguments", "kind", "message"), INVALID)
def test_refuses_wrong_types_and_values(centroid_scorer, arguments, kind, message):
    with pytest.raises(kind, match=message):
        SanitizerSettings(scorer=centroid_scorer(), **arguments)


def test_accepts_paths(centroid_scorer, tmp_path):
    assert SanitizerSettings(scorer=centroid_scorer(), dirpath=tmp_path, manifest=tmp_path / "m.csv", name="my-2_ä")


@pytest.mark.parametrize("position", [0, np.int64(0), "0"])
def test_loaders_by_position(centroid_scorer, position):
    assert SanitizerSettings(scorer=centroid_scorer(), loaders=[position]).loaders == ["0"]
