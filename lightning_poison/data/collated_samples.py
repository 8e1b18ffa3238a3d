"""Batches of one sample, as a loader's `collate_fn` makes them: where input and label are, and why there are none."""

from collections.abc import Callable
from typing import Any

from lightning_poison.checks import describe_error
from lightning_poison.data.label_forms import class_index
from lightning_poison.data.sample_parts import AmbiguousLabelError, is_label_place, leaves_of
from lightning_poison.data.sample_spec import SampleSpec

_SOFT = "a soft label"


def batch_of_one(collate: Callable[[list[Any]], Any] | None, sample: Any) -> Any:
    """Return a batch of one sample.

    Raises:
        ValueError: If `collate` raises an error, or is `None`.

    Example:
        >>> batch_of_one(lambda samples: samples[7], 3)
        Traceback (most recent call last):
        ValueError: it raised IndexError: list index out of range for a single sample.
    """
    if collate is None:
        raise ValueError("there is none.")
    try:
        return collate([sample])
    except Exception as error:
        raise ValueError(f"it raised {describe_error(error)} for a single sample.") from error


def spec_of_batch(batch: Any, sample: Any, detect: Callable[[], SampleSpec]) -> SampleSpec:
    """Detect the paths of input and label in a batch; class probabilities, such as soft labels, count as labels.

    Of several parts of the batch, the label is the only one with the value of the label of the sample. What the samples
    of the data set leave open stays so.

    Args:
        batch: A batch of one sample.
        sample: The sample.
        detect: Detects the paths in the sample itself, as `spec_in` does.

    Raises:
        AmbiguousLabelError: If several parts of the batch, or of the samples, could be the label.
        ValueError: If input or label cannot be found.

    Example:
        >>> import torch
        >>> batch = (torch.zeros(1, 2, 2), torch.tensor([3]), torch.tensor([17]))
        >>> spec_of_batch(batch, ("a.png", 3, 17), lambda: SampleSpec("0", "1"))
        SampleSpec(inputs='0', labels='1')
    """
    own, unclear = None, None
    try:
        own = detect()
    except AmbiguousLabelError as error:
        unclear = error
    except ValueError:
        pass  # the samples themselves have no input or label
    try:
        found = SampleSpec.detect(batch, batched=True, mixed=True)
    except AmbiguousLabelError as error:
        known = None if own is None else class_index(own.labels_in(sample))
        same = [path for path in error.candidates if class_index(SampleSpec(labels=path).labels_in(batch)) == known]
        if known is None or len(same) != 1:
            raise
        return SampleSpec(error.inputs, same[0])
    if unclear is not None and found.labels in unclear.candidates:
        label = next((leaf for leaf in leaves_of(batch) if leaf.path == found.labels), None)
        if label is not None and not is_label_place(label):
            raise unclear
    return found


def why_not_collated(error: Exception, failure: Exception) -> str:
    """Return what to add to the error about a sample: why it cannot be read through `collate_fn` either.

    Args:
        error: The error about the sample itself.
        failure: The error about the batch of this sample.

    Example:
        >>> print(why_not_collated(ValueError("..."), ValueError("it raised KeyError: 'y' for a single sample.")))
        <BLANKLINE>
        The loader's `collate_fn` was tried as well, but it raised KeyError: 'y' for a single sample.
    """
    are_ambiguous = isinstance(error, AmbiguousLabelError) and isinstance(failure, AmbiguousLabelError)
    if are_ambiguous or str(error) == str(failure):
        return ""  # it says so already
    tried = "\nThe loader's `collate_fn` was tried as well, but "
    text = str(failure)
    if isinstance(failure, AmbiguousLabelError):
        what, way = text.split("\n")[-2:]
        return f"{tried}{what.removesuffix('.')} in its batch.\n{way}"
    first, _, rest = text.partition("\n")
    if _SOFT in first:
        rest = (
            "Pass the same samples under an evaluation transform that returns tensors, with one class index each: "
            "`score_dataset=` of the sanitizer, or `dataset` of `sanitize`."
        )
    if first.startswith("Expected "):
        first = f"its batch was refused: expected {first.removeprefix('Expected ')}"
    return f"{tried}{first}" + (f"\n{rest}" if rest else "")
