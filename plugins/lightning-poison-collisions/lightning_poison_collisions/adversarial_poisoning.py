"""`AdversarialPoisoning`: training samples moved along the axis on which a linear head turns into a wrong one."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_poison import Poison, Surrogate, Threat, checks
from lightning_poison.adversarial import perturb
from lightning_poison.attacks import AvailabilityObjective, RawFeatures, check_surrogates, read_features
from lightning_poison.contexts import evaluating, frozen
from lightning_poison.data import RawImages, index_blocks, labels_of
from lightning_poison_collisions.axes import LinearHead, fit_head, positions_along, rotation_axes


@dataclass(frozen=True, kw_only=True)
class AdversarialPoisoning:
    """Adversarial poisoning (AP): labels stay, and training images move so that a linear head on their features turns.

    A head w_c is fitted on the clean features; w_t is the same head with the rows of its classes shifted by `shift`
    places. Each image of a class moves by projected gradient descent along that class's row of w_t − w_c, so that the
    head which is then fitted on the moved samples tends to w_t, and accuracy falls. Chan-Hon-Tong, "Features which are
    robust to adversarial attacks are also robust to several poisoning attacks", 2021, section 2.2, the last display
    (unnumbered), max ‖(w_t − w_c)ᵀ feature(z)‖ over ‖z − x‖∞ ≤ ε; and "An algorithm for generating invisible data
    poisoning using adversarial noise that breaks image classification deep learning", MAKE 1(1), 2018.

    The paper does not say how it chooses w_t; the shift is this project's choice, and with two classes it is −w_c. The
    other differences: the sign of the product follows from the class, where the paper writes a norm; features are in
    units of their mean length, and crafted images are rounded to the data's grid.

    The attack needs nearly the whole training set: against a head that also sees many clean samples it does little.

    Args:
        base_class: the class whose samples are moved; all where it is `None`.
        epsilon: the L∞ radius where the threat sets none, in units of the raw [0, 1] image; the paper's for CIFAR.
        steps: how many gradients are taken.
        head: `"svm"` for scikit-learn's `LinearSVC`, the paper's; `"logistic"` for `LogisticRegression`.
        c: scikit-learn's `C`, for features in units of their mean length.
        shift: each class moves toward the class this many places on, cyclically, among those of the training set.
        batch_size: how many poisons are crafted at once; bounds memory and does not change what each becomes, up to
            rounding errors.

    Raises:
        ValueError: where an argument is out of its range.

    Example:
        >>> from torch import nn
        >>> from torch.utils.data import TensorDataset
        >>> images = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        >>> data = TensorDataset(images, torch.arange(40) % 2)
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> AdversarialPoisoning().craft(
        ...     data, Threat(40), surrogates=[Surrogate(model, "2")], holdout=None, generator=torch.Generator()
        ... )
        Poison(adversarial-poisoning: 40 samples, sample inputs (1, 4, 4))
    """

    name = "adversarial-poisoning"
    clean_label = True

    base_class: int | None = None
    epsilon: float = 3 / 255
    steps: int = 10
    head: Literal["svm", "logistic"] = "svm"
    c: float = 100.0
    shift: int = 1
    batch_size: int = 256

    def __post_init__(self) -> None:
        if self.base_class is not None:
            checks.positive_int("base_class", self.base_class, minimum=0)
        checks.epsilon(self.epsilon)
        checks.one_of("head", self.head, ("svm", "logistic"))
        checks.positive("c", self.c)
        for name in ("steps", "shift", "batch_size"):
            checks.positive_int(name, getattr(self, name))

    def craft(
        self,
        dataset: "Dataset[Any]",
        threat: Threat,
        *,
        surrogates: Sequence[Surrogate],
        holdout: "Dataset[Any] | None",  # noqa: ARG002 (availability has no targets)
        generator: torch.Generator,
    ) -> Poison:
        """Move as many samples as the budget says, drawn at random, each in its own place.

        The surrogates are used in evaluation mode, in the place and precision they are found in, and given back as
        they were. Each has a head of its own, and they share the objective evenly. Only their features are used, so
        they may have been trained on other classes.

        Args:
            dataset: the training set; without random augmentation where it can be had.
            threat: the budget, the pixel range, and the radius if it sets one.
            surrogates: one at least, each with a feature layer.
            holdout: not used.
            generator: draws the samples.

        Returns:
            Poison of domain `"sample"` in the place of its bases, labels kept, with an `AvailabilityObjective`.

        Raises:
            ValueError: where there is no surrogate, the training set has one class only or too few samples of
                `base_class` for the budget, `shift` leads nowhere, a surrogate has no such layer, or images lie
                outside the pixel range.
        """
        check_surrogates(surrogates)
        labels = labels_of(dataset)
        bases = self._drawn(labels, threat.budget, generator)
        seed = int(torch.randint(2**31, (), generator=generator))
        training = RawImages(dataset, threat.pixels, seed=seed, batch_size=self.batch_size)
        models = [surrogate.model for surrogate in surrogates]
        maps = [RawFeatures(surrogate, threat.pixels) for surrogate in surrogates]
        with evaluating(*models), frozen(*models):
            known = read_features(training, torch.arange(len(labels)), maps)
            heads = [fit_head(rows.float().cpu(), labels, kind=self.head, c=self.c, seed=seed) for rows in known]
            crafted = [
                self._move(maps, heads, training(block), labels[block], threat)
                for block in index_blocks(bases, self.batch_size)
            ]
        return Poison(
            indices=bases,
            inputs=torch.cat(crafted),
            labels=labels[bases],
            objective=AvailabilityObjective(),
            attack=self.name,
            settings=asdict(self),
        )

    def _drawn(self, labels: Tensor, budget: int, generator: torch.Generator) -> Tensor:
        """Return the positions of the samples to move, ascending."""
        classes = sorted(set(labels.tolist()))
        if len(classes) < 2:
            raise ValueError(checks.expected("dataset", "a training set of two classes or more", f"{len(classes)}"))
        if self.shift >= len(classes):
            what = f"below the number of classes of the training set ({len(classes)})"
            raise ValueError(checks.expected("shift", what, self.shift))
        if self.base_class is not None and self.base_class not in classes:
            listed = ", ".join(map(str, classes[:40]))
            raise ValueError(checks.expected("base_class", f"a class of the training set ({listed})", self.base_class))
        able = torch.ones_like(labels, dtype=torch.bool) if self.base_class is None else labels == self.base_class
        found = able.nonzero().flatten()
        if budget > len(found):
            which = "the training set" if self.base_class is None else f"class {self.base_class}"
            hint = "Lower the budget of the threat" + ("." if self.base_class is None else ", or free `base_class`.")
            raise ValueError(checks.expected("budget", f"at most the {len(found)} samples of {which}", budget, hint))
        return found[torch.randperm(len(found), generator=generator)[:budget]].sort().values

    def _move(
        self, maps: Sequence[RawFeatures], heads: Sequence[LinearHead], bases: Tensor, labels: Tensor, threat: Threat
    ) -> Tensor:
        """Return crafted samples for raw bases."""
        bases = bases.to(maps[0].device)
        rows = torch.searchsorted(heads[0].classes, labels)
        axes = [rotation_axes(head.weights, self.shift)[rows] for head in heads]

        def progress(images: Tensor) -> Tensor:
            terms = []
            for extract, head, axis in zip(maps, heads, axes, strict=True):
                features = extract(images)
                terms.append(positions_along(features, axis.to(features), head.scale).to(images.device))
            return torch.stack(terms).mean(0)

        epsilon = self.epsilon if threat.epsilon is None else threat.epsilon
        images = perturb(bases, progress, epsilon=epsilon, steps=self.steps, random_start=False)
        images = threat.pixels.round_raw(images, around=bases, epsilon=epsilon)
        return threat.pixels.from_raw(images).cpu()
