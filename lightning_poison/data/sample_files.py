"""The file that contains a sample, if the data set lists the paths of its files."""

import os
from typing import Any

from lightning_poison.data.views import locate


def listed_file(dataset: Any, index: int) -> str:
    """Return the path of the file of a sample, or an empty string if the data set has no paths.

    Paths are read from `samples` or `imgs`, as in torchvision's `ImageFolder`, through subsets, concatenations and the
    views of this library. They are untrusted text.

    Args:
        dataset: Map-style data set.
        index: Position of the sample.

    Example:
        >>> class Folder(list):
        ...     imgs = [("cat/0.png", 0), ("dog/1.png", 1)]
        >>> listed_file(Folder([None, None]), 1), listed_file([None, None], 1)
        ('dog/1.png', '')
    """
    try:
        owner, position = locate(dataset, index)
        for name in ("samples", "imgs"):
            entries = getattr(owner, name, None)
            if isinstance(entries, list | tuple) and len(entries) == len(owner):
                entry = entries[position]
                path = entry[0] if isinstance(entry, list | tuple) and entry else entry
                if isinstance(path, str | os.PathLike):
                    return str(os.fspath(path))
    except Exception:  # noqa: BLE001 (the attributes are optional, and their code is the user's)
        return ""
    return ""
