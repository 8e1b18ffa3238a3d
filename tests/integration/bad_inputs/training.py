"""Arguments and loaders of training with the callback and with the wrapper."""

from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Subset, TensorDataset, WeightedRandomSampler

from lightning_poison.datamodules import SanitizedDataModule
from lightning_poison.errors import UnreadableSampleError, UnsupportedDataError

from .cases import (
    COUNT,
    NAMES,
    SHARED,
    argument_error,
    broken,
    drop_none,
    label_error,
    mine,
    one_hot,
)

WORKS = {
    "training": lambda d: d.fit(),
    "training with the wrapper": lambda d: d.fit(wrapped=True),
    "training without batches": lambda d: d.fit(DataLoader(d.data, batch_size=None)),
    "training on float labels": lambda d: d.fit(DataLoader(TensorDataset(d.images, d.labels.float()), 64)),
    "training on one-hot labels, wrapped": lambda d: d.fit(
        DataLoader(TensorDataset(d.images, one_hot(d.labels)), 64), wrapped=True
    ),
    "training on weighted samples": lambda d: d.fit(
        DataLoader(d.data, 64, sampler=WeightedRandomSampler((torch.arange(COUNT) < 500).float(), 300))
    ),
    "training with a batch sampler": lambda d: d.fit(
        DataLoader(d.data, batch_sampler=BatchSampler(RandomSampler(d.data), 64, drop_last=False))
    ),
    "training without None samples": lambda d: d.fit(
        DataLoader([None if index == 40 else d[index] for index in range(COUNT)], 64, collate_fn=drop_none)
    ),
    "training, targets raise": lambda d: d.fit(DataLoader(mine(d, targets=property(broken)), 64)),
    "training, classes raise, wrapped": lambda d: d.fit(
        DataLoader(mine(d, classes=property(broken)), 64), wrapped=True
    ),
    "training with NumPy settings": lambda d: d.fit(false_positive_rate=np.float32(0.01), seed=np.int64(0)),
    "training with a name of letters": lambda d: d.fit(name="größe"),
    "training with a fast run": lambda d: d.fit(trainer={"fast_dev_run": True}),
    "training, only flagged": lambda d: d.fit(action="flag"),
}

REFUSED = {
    **{
        f"{case} as name": (lambda d, came=came: d.fit(name=came), argument_error("name", what, ".*", kind))
        for case, came, what, kind in (
            ("a number", 5, "a `str`", TypeError),
            ("dots", "..", "letters, digits, - and _", ValueError),
            ("a path", "a/b", "letters, digits, - and _", ValueError),
            ("a long text", "a" * 300, "at most 100 bytes, since it names a folder", ValueError),
        )
    },
    **{
        f"{case} as dirpath": (lambda d, came=came: d.fit(dirpath=came), argument_error("dirpath", what, ".*", kind))
        for case, came, what, kind in (
            ("a number", 5, "a path, as `str` or `Path`", TypeError),
            ("bytes", b"x", "a path, as `str` or `Path`", TypeError),
            ("no text", "", "a path of the file system", ValueError),
            ("a zero byte", "a\0b", "a path of the file system", ValueError),
            ("a bucket", "s3://bucket/x", "a folder of a local file system", ValueError),
        )
    },
    **{
        f"{name} as dirpath": (
            lambda d, below=below: d.fit(dirpath=Path(str(d.file) + below)),
            (
                OSError,
                "`dirpath` to be a folder .*cannot be written: .*\nNothing has been scored yet. Correct the path",
            ),
        )
        for name, below in (("a file", ""), ("a folder below a file", "/x"), ("a long name", "a" * 300))
    },
    "manifest 5": (
        lambda d: d.fit(manifest=5),
        argument_error("manifest", "a path, as `str` or `Path`", "5", TypeError),
    ),
    "a missing manifest": (
        lambda d: d.fit(manifest=d.path / "no.csv"),
        (FileNotFoundError, "there is no file at .*no.csv"),
    ),
    "another file as manifest": (
        lambda d: d.fit(manifest=d.file),
        (ValueError, "in line 1 of the manifest .*\nKeep the names of the columns"),
    ),
    "cache 'no'": (lambda d: d.fit(cache="no"), argument_error("cache", "True or False", "'no'")),
    "action 'delete'": (
        lambda d: d.fit(action="delete"),
        argument_error("action", "one of 'remove', 'flag'", "delete"),
    ),
    "sample as a tuple": (
        lambda d: d.fit(sample=(0, 1)),
        (TypeError, r"`sample` to be a `SampleSpec`, but got .*\n.*`sample=SampleSpec\("),
    ),
    "seed 2**70, wrapped": (
        lambda d: d.fit(wrapped=True, seed=2**70),
        argument_error("seed", r"an integer below 2\*\*63", r"1.18e\+21"),
    ),
    "loaders as a text": (
        lambda d: d.fit(loaders="labeled"),
        argument_error(
            "loaders", "a list of keys or positions of training loaders", "'labeled'", way=r"`loaders=\['labeled'\]`"
        ),
    ),
    "an unknown loader": (
        lambda d: d.fit({"labeled": DataLoader(d.data, 64)}, loaders=["x"]),
        (ValueError, r"`loaders` to be paths or keys of the training loaders, \['labeled'\], but got 'x'"),
    ),
    "the data as trusted": (lambda d: d.fit(trusted=d.data), (ValueError, SHARED.format("600"))),
    "a shorter score_dataset": (
        lambda d: d.fit(score_dataset=Subset(d.data, range(10))),
        (ValueError, "`score_dataset` to contain the 600 samples .*got 10 samples.*\nBuild it like the training set"),
    ),
    "texts as labels, wrapped": (
        lambda d: d.fit(DataLoader([(image, "a") for image, _ in d.pairs]), wrapped=True),
        label_error("the text 'a'", NAMES),
    ),
    "None as a sample": (
        lambda d: d.fit(DataLoader([*d.pairs[:40], None, *d.pairs[41:]])),
        (UnreadableSampleError, "sample 40 with an input and a label, but got None.\nRepair"),
    ),
    "a domain before the label": (
        lambda d: d.fit(DataLoader([(image, index % 3, y) for index, (image, y) in enumerate(d.pairs)], 64)),
        (ValueError, "`1` and `2` could each be the label"),
    ),
    "`__getitems__` in another order, wrapped": (
        lambda d: d.fit(
            DataLoader(mine(d, __getitems__=lambda self, indices: [self.digits[each] for each in indices[::-1]]), 64),
            wrapped=True,
        ),
        (ValueError, "`__getitems__` to be in the order of its indices"),
    ),
    "a data set instead of a loader": (
        lambda d: d.fit(d.data),
        (UnsupportedDataError, "the training loader to be a torch DataLoader, but got TensorDataset"),
    ),
    **{
        f"the wrapper around {name}": (
            lambda d, data=data: SanitizedDataModule(data, d.scorer()),
            (
                TypeError,
                "Expected `data` to be a DataModule, a DataLoader.*\n(A data set needs a loader|Build it first)",
            ),
        )
        for name, data in (("a path", "x"), ("samples", [1, 2]), ("nothing", []), ("a class", pl.LightningDataModule))
    },
}

WARNED = {
    "a run in a folder that is a file": (
        lambda d: d.fit(trainer={"default_root_dir": d.file}, cache=False),
        "Verdict and manifest of `sanitizer` will not be written to .*Training continues",
    ),
    "fewer samples than a batch": (
        lambda d: d.fit(DataLoader(d.data, 590, drop_last=True)),
        "the 5[67]. samples that are kept do not fill a batch of 590, and `drop_last` drops the rest: 0 steps",
    ),
}
