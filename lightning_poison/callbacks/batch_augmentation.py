"""`BatchAugmentation`: torchvision's transforms on training batches, mixup, CutMix and JPEG among them."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lightning_poison._lightning.namespaces import CallbackBase
from lightning_poison._lightning.step_wrappers import StepChain
from lightning_poison.adversarial.pgd import as_raw, check_images
from lightning_poison.checks import describe, expected, positive_int
from lightning_poison.data.pixel_range import PixelRange
from lightning_poison.data.sample_spec import NAME_THEM, SampleSpec
from lightning_poison.randomness import derived_seed, isolated_rng

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class BatchAugmentation(CallbackBase):
    """Changes each training batch by a transform of torchvision before the module's step sees it.

        BatchAugmentation(v2.MixUp(num_classes=10, alpha=0.2))
        BatchAugmentation(v2.CutMix(num_classes=10))
        BatchAugmentation(v2.JPEG((50, 95)))

    Mixup (Zhang, Cisse, Dauphin, Lopez-Paz, ICLR 2018, arXiv 1710.09412) and CutMix (Yun, Han, Oh, Chun, Choe, Yoo,
    ICCV 2019, arXiv 1905.04899) mix labels too: the step then gets probabilities `(B, C)`, which `cross_entropy` takes
    and a comparison with `argmax` does not; so does `v2.RandomChoice` of the two. Any other transform is applied image
    by image, with random numbers of its own for each. `v2.JPEG` takes 8 bits on the CPU: batches of floats are rounded
    to 255 levels for it and come back as floats, and batches of integers stay what they are.

    Callbacks work in their order: put it before `AdversarialTraining` to attack what comes out.

    Args:
        transform: of torchvision's `transforms.v2`, or any module that maps images.
        pixels: how inputs are normalized; raw images in [0, 1] where it is `None`. The transform gets raw images.
        sample: where inputs and labels stand in a batch; found by itself where that is plain.
        seed: the only source of randomness; the Trainer's own random numbers are the same with and without it.
        name: tells several of one Trainer apart.

    Raises:
        TypeError: where the transform is no module.
        ValueError: in the first step, where the transform changes the number of images, images of integers are to be
            mixed or are said to be normalized, or JPEG gets images outside of their range.

    Example:
        >>> from torchvision.transforms import v2
        >>> BatchAugmentation(v2.CutMix(num_classes=10)).state_key
        'BatchAugmentation[CutMix]'
    """

    def __init__(
        self,
        transform: nn.Module,
        *,
        pixels: PixelRange | None = None,
        sample: SampleSpec | None = None,
        seed: int = 0,
        name: str | None = None,
    ) -> None:
        if not isinstance(transform, nn.Module):
            hint = "Write `BatchAugmentation(v2.CutMix(num_classes=10))`."  # type: ignore[unreachable]
            came = describe(transform)
            raise TypeError(expected("transform", "a module such as `v2.CutMix`", came, hint))
        self.transform = transform
        self.pixels = PixelRange() if pixels is None else pixels
        self.sample = sample
        self.seed = positive_int("seed", seed, minimum=0)
        self.name = type(transform).__name__ if name is None else name
        self._module: LightningModule | None = None

    @property
    def state_key(self) -> str:
        """Name the callback by its transform, so that two of them can stand in one Trainer."""
        return f"BatchAugmentation[{self.name}]"

    def setup(self, trainer: "Trainer", pl_module: "LightningModule", stage: str) -> None:
        """Wrap the module's step."""
        self._remove()
        if stage != "fit":
            return
        self._module = pl_module

        def around(call_next: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
            place = trainer.current_epoch, trainer.fit_loop.epoch_loop.batch_idx, trainer.global_rank
            seed = derived_seed(self.seed, "batch augmentation", *place)
            return call_next(self.augmented(batch, seed), *args, **kwargs)

        StepChain.add(pl_module, self, around)

    def teardown(self, trainer: "Trainer", pl_module: "LightningModule", stage: str) -> None:
        """Give the module its own step back."""
        self._remove()

    def on_exception(self, trainer: "Trainer", pl_module: "LightningModule", exception: BaseException) -> None:
        """Give the module its own step back; Lightning calls no `teardown` after an exception."""
        self._remove()

    def augmented(self, batch: Any, seed: int) -> Any:
        """Return a changed copy of a batch.

        Args:
            batch: of any structure.
            seed: seeds the transform; the random states that it draws from are put back.

        Raises:
            ValueError: where inputs, or labels that are to be mixed, are not found or are no tensors, or inputs cannot
                be changed.
        """
        from torchvision.transforms import v2

        spec = self.sample or SampleSpec.detect(batch, batched=True, mixed=True)
        inputs = _checked(spec.inputs_in(batch), "inputs", "a batch of images (B, C, H, W)", spec.inputs)
        floats = inputs.is_floating_point()
        if not floats and (self.pixels.mean is not None or _has(self.transform, v2.MixUp)):
            hint = (
                "Let the transform, or `on_after_batch_transfer`, make floats of them: `v2.ToDtype(torch.float, True)`."
            )
            raise ValueError(expected("inputs", "floats, which can be normalized and mixed", describe(inputs), hint))
        with isolated_rng(seed, inputs.device):
            if isinstance(self.transform, v2.JPEG):
                levels = _as_levels(as_raw(inputs, self.pixels)) if floats else inputs.cpu()
                changed = torch.stack([self.transform(image) for image in levels])
                return spec.replace(batch, inputs=self._as_inputs(changed / 255 if floats else changed, inputs))
            raw = self.pixels.to_raw(inputs)
            if _has(self.transform, v2.MixUp | v2.CutMix):
                labels = _checked(spec.labels_in(batch), "labels", "a tensor with a label for each image", spec.labels)
                changed, labels = self.transform(raw, labels)
                return spec.replace(batch, inputs=self._as_inputs(changed, inputs), labels=labels)
            changed = torch.stack([self.transform(image) for image in raw])
            return spec.replace(batch, inputs=self._as_inputs(changed, inputs))

    def _as_inputs(self, raw: Tensor, like: Tensor) -> Tensor:
        if len(raw) != len(like):
            raise ValueError(expected("transform", f"one that returns {len(like)} images", f"{len(raw)}"))
        return self.pixels.from_raw(raw.to(like.device, like.dtype))

    def _remove(self) -> None:
        if self._module is not None:
            StepChain.remove(self._module, self)
        self._module = None


def _checked(value: Any, name: str, what: str, path: str) -> Tensor:
    """Return a value that is a batched tensor."""
    if not isinstance(value, Tensor) or not value.ndim:
        raise ValueError(expected(name, what, f"{describe(value)} at {path!r}", NAME_THEM))
    return value


def _has(transform: nn.Module, kind: Any) -> bool:
    """Tell whether a transform is of a kind, or chooses among some of which one is."""
    among = getattr(transform, "transforms", ())
    return isinstance(transform, kind) or any(_has(each, kind) for each in among)


def _as_levels(raw: Tensor) -> Tensor:
    """Round raw images to the 8 bits of a JPEG."""
    check_images(raw.detach(), 0.0, 1.0)
    return (255 * raw.detach().clamp(0, 1)).round().to("cpu", torch.uint8)
