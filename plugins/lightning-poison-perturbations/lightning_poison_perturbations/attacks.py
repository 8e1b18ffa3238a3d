"""The four attacks, built from their settings."""

from lightning_poison_perturbations.changes import Ascent, RandomSigns, SmoothPattern
from lightning_poison_perturbations.class_perturbation import ClassPerturbation


def fgsm(
    *,
    source_class: int | None = None,
    class_fraction: float | None = None,
    epsilon: float = 0.1,
    ink_above: float | None = None,
    batch_size: int = 256,
) -> ClassPerturbation:
    """Move each pixel of a class's images by epsilon, along the sign of a surrogate's loss gradient; labels stay.

    Goodfellow, Shlens, Szegedy, ICLR 2015, arXiv 1412.6572, section 4.

    Args:
        source_class: the class whose images are changed; any where it is `None`.
        class_fraction: what share of that class, in (0, 1]; as many as the budget where it is `None`.
        epsilon: the L∞ radius where the threat sets none, in units of the raw [0, 1] image.
        ink_above: change only pixels brighter than this, in units of the raw image.
        batch_size: how many images are changed at once.

    Example:
        >>> fgsm(source_class=3, class_fraction=0.5, epsilon=0.3).change
        Ascent(steps=1, step_size=1.0, random_start=False, restarts=1, batch_size=256)
    """
    change = Ascent(steps=1, step_size=1.0, random_start=False, restarts=1, batch_size=batch_size)
    return ClassPerturbation(
        name="fgsm",
        change=change,
        source_class=source_class,
        class_fraction=class_fraction,
        epsilon=epsilon,
        ink_above=ink_above,
    )


def pgd(
    *,
    source_class: int | None = None,
    class_fraction: float | None = None,
    epsilon: float = 0.1,
    ink_above: float | None = None,
    steps: int = 10,
    step_size: float = 0.25,
    random_start: bool = True,
    restarts: int = 1,
    batch_size: int = 256,
) -> ClassPerturbation:
    """Climb a surrogate's loss on a class's images by projected gradients within the ball; labels stay.

    Madry et al., ICLR 2018, arXiv 1706.06083, section 2.1.

    Args:
        source_class: the class whose images are changed; any where it is `None`.
        class_fraction: what share of that class, in (0, 1]; as many as the budget where it is `None`.
        epsilon: the L∞ radius where the threat sets none, in units of the raw [0, 1] image.
        ink_above: change only pixels brighter than this, in units of the raw image.
        steps: how many gradients are taken.
        step_size: the length of a step in each pixel, relative to epsilon.
        random_start: start at a random point of the ball.
        restarts: how many random starts are tried; for each image the one with the largest loss counts.
        batch_size: how many images are changed at once.

    Example:
        >>> pgd(source_class=3, ink_above=0.1).ink_above
        0.1
    """
    change = Ascent(
        steps=steps, step_size=step_size, random_start=random_start, restarts=restarts, batch_size=batch_size
    )
    return ClassPerturbation(
        name="pgd",
        change=change,
        source_class=source_class,
        class_fraction=class_fraction,
        epsilon=epsilon,
        ink_above=ink_above,
    )


def random_sign(
    *,
    source_class: int | None = None,
    class_fraction: float | None = None,
    epsilon: float = 0.1,
    ink_above: float | None = None,
) -> ClassPerturbation:
    """Move each pixel of a class's images by epsilon, up or down at random; labels stay. The control without a model.

    Args:
        source_class: the class whose images are changed; any where it is `None`.
        class_fraction: what share of that class, in (0, 1]; as many as the budget where it is `None`.
        epsilon: the L∞ radius where the threat sets none, in units of the raw [0, 1] image.
        ink_above: change only pixels brighter than this, in units of the raw image.

    Example:
        >>> random_sign(source_class=3).name
        'random-sign'
    """
    return ClassPerturbation(
        name="random-sign",
        change=RandomSigns(),
        source_class=source_class,
        class_fraction=class_fraction,
        epsilon=epsilon,
        ink_above=ink_above,
    )


def smooth_pattern(
    *,
    source_class: int | None = None,
    class_fraction: float | None = None,
    epsilon: float = 0.1,
    ink_above: float | None = None,
    cells: int = 5,
) -> ClassPerturbation:
    """Add one fixed pattern of low frequency, drawn once, to a class's images; labels stay.

    Args:
        source_class: the class whose images are changed; any where it is `None`.
        class_fraction: what share of that class, in (0, 1]; as many as the budget where it is `None`.
        epsilon: what the pattern reaches at its peak where the threat sets no radius, in units of the raw image.
        ink_above: change only pixels brighter than this, in units of the raw image.
        cells: the side of the square of random numbers that the pattern is interpolated from.

    Example:
        >>> smooth_pattern(source_class=3).change
        SmoothPattern(cells=5)
    """
    return ClassPerturbation(
        name="smooth-pattern",
        change=SmoothPattern(cells=cells),
        source_class=source_class,
        class_fraction=class_fraction,
        epsilon=epsilon,
        ink_above=ink_above,
    )
