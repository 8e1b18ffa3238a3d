"""Arguments of `sanitize` of other types and out of range."""

from decimal import Decimal
from fractions import Fraction

import numpy as np
from torch import nn

from lightning_poison.errors import NothingKeptError
from lightning_poison.models import FitSettings
from lightning_poison.runtime import LocalRuntime
from lightning_poison.sanitization import Verdict, sanitize
from lightning_poison.scorers import LikelihoodScorer

from .cases import RATE, argument_error, setting

WORKS = {
    "false_positive_rate of NumPy": setting(false_positive_rate=np.float32(0.01)),
    "false_positive_rate as a fraction": setting(false_positive_rate=Fraction(1, 100)),
    "folds of NumPy": setting(folds=np.int64(3)),
    "seed of NumPy": setting(seed=np.uint64(0)),
    "largest seed": setting(seed=2**63 - 1),
    "natural_error_rate of NumPy": setting(natural_error_rate=np.float64(0.003)),
    "max_removed of NumPy": setting(max_removed=np.int64(1)),
    "remove_without_evidence of NumPy": setting(remove_without_evidence=np.bool_(True)),
    "threads of NumPy": lambda d: d.judge(d.data, runtime=LocalRuntime(threads=np.int64(1))),
}

REFUSED = {
    **{
        f"false_positive_rate {came!r}": (
            setting(false_positive_rate=came),
            argument_error("false_positive_rate", r"a number in \(0, 1\)", ".*", way=RATE),
        )
        for came in (1, 0, -1, 1.5, float("nan"), "0.01", None, True, [0.01], Decimal("0.01"))
    },
    **{
        f"folds {came!r}": (setting(folds=came), argument_error("folds", "an integer of at least 2", ".*"))
        for came in (1, 0, 3.5, "3", None, True)
    },
    "folds 10**30": (setting(folds=10**30), argument_error("folds", r"an integer below 2\*\*63", r"1e\+30")),
    "seed 2**70": (setting(seed=2**70), argument_error("seed", r"an integer below 2\*\*63", r"1.18e\+21")),
    "seed -1": (setting(seed=-1), argument_error("seed", "an integer of at least 0", "-1")),
    "seed None": (setting(seed=None), argument_error("seed", "an integer of at least 0", "None")),
    "natural_error_rate 1.1": (setting(natural_error_rate=1.1), argument_error("natural_error_rate", ".*0, 1]", "1.1")),
    "max_removed 0": (
        setting(max_removed=0),
        argument_error("max_removed", "a number in .*", "0", way="Use 1 for no limit"),
    ),
    "max_removed '50%'": (
        setting(max_removed="50%"),
        argument_error("max_removed", ".*", "'50%'", way="Use 1 for no limit"),
    ),
    "max_removed 0.01": (
        setting(max_removed=0.01),
        (NothingKeptError, r"at most 1 % of the samples, but [56]\.\d % are suspicious.\n.*raise `max_removed`"),
    ),
    "remove_without_evidence 'no'": (
        setting(remove_without_evidence="no"),
        argument_error("remove_without_evidence", "True or False", "'no'"),
    ),
    "remove_without_evidence 1": (
        setting(remove_without_evidence=1),
        argument_error("remove_without_evidence", "True or False", "1"),
    ),
    "known as a path of no file": (
        setting(known="v.safetensors"),
        (FileNotFoundError, r"Expected a verdict file, but there is none at v\.safetensors"),
    ),
    "known as a class": (
        setting(known=Verdict),
        argument_error("known", "a `Verdict`", "the class Verdict", TypeError),
    ),
    "runtime 'cuda'": (
        setting(runtime="cuda"),
        argument_error(
            "runtime",
            "a `LocalRuntime`",
            "the str 'cuda'",
            TypeError,
            way=r'runtime=LocalRuntime\("cuda", num_workers=8\)`',
        ),
    ),
    "runtime as a class": (
        setting(runtime=LocalRuntime),
        argument_error("runtime", ".*", "the class Local", TypeError),
    ),
    "precision 16": (
        lambda d: LocalRuntime(precision=16),
        argument_error("precision", "one of 'auto', '32', 'bf16'", "16"),
    ),
    "scorer, a name": (
        lambda d: sanitize(d.data, "likelihood"),
        argument_error("scorer", "a scorer or one of fast, balanced, thorough", "'likelihood'", way="builds"),
    ),
    **{
        f"scorer, {case}": (
            lambda d, came=came: sanitize(d.data, came),
            (TypeError, r"Expected `scorer` to be a scorer such as .*\n`get_scorer\(name\)` builds"),
        )
        for case, came in (
            ("None", None),
            ("a class", LikelihoodScorer),
            ("a network", nn.Flatten()),
            ("a list", [LikelihoodScorer()]),
        )
    },
    "data and scorer the wrong way round": (
        lambda d: sanitize(d.scorer(), d.data),
        (TypeError, "Expected `scorer` to be a scorer .*but got TensorDataset"),
    ),
    "epochs 0": (lambda d: FitSettings(epochs=0), argument_error("epochs", "an integer of at least 1", "0")),
    "learning_rate 'x'": (
        lambda d: FitSettings(learning_rate="x"),
        argument_error("learning_rate", ".*above 0", "'x'"),
    ),
    "a backbone of another size": (
        lambda d: sanitize(d.data, LikelihoodScorer(backbone=nn.Flatten())),
        (ValueError, r"Expected `backbone` to return features .*, 64\).\nSet `feature_size=64`"),
    ),
}

WARNED = {
    "a cache below a file": (
        lambda d: d.judge(d.data, cache=d.file / "x"),
        "Unfinished work is not saved: writing to .*a file/x.*Scoring continues",
    ),
}
