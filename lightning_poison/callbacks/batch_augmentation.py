"""`BatchAugmentation`: torchvision transforms of training batches, including mixup, CutMix and JPEG."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lightning_poison._lightning.namespaces import CallbackBase
from lightning_poison._lightning.step_wrappers import StepWrappers
from lightning_poison.adversarial.pgd import check_images, denormalize
from lightning_poison.checks import describe, expected, positive_int
from lightning_poison.data.pixel_range import PixelRange
from lightning_poison.data.sample_spec import NAME_THEM, SampleSpec
from lightning_poison.randomness import derived_seed, isolated_rng

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class BatchAugmentation(CallbackBase):
    """Transforms each training batch with torchvision before the module's step.

        BatchAugmentation(v2.MixUp(num_classes=10, alpha=0.2))
        BatchAugmentation(v2.CutMix(num_classes=10))
        BatchAugmentation(v2.JPEG((50, 95)))

    Mixup (Zhang, Cisse, Dauphin, Lopez-Paz, ICLR 2018, arXiv 1710.09412) and CutMix (Yun, Han, Oh, Chun, Choe, Yoo,
    ICCV 2019, arXiv 1905.04899) also mix labels, and so does `v2.RandomChoice` of the two: the step gets probabilities
    `(B, C)`, which work with `cross_entropy` but not in a comparison with `argmax`. Any other transform is applied to
    one image at a time, with different random numbers for each. `v2.JPEG` needs 8 bits on the CPU: batches of floats
    are rounded to 255 levels for it and converted back, and batches of integers stay integers.

    Callbacks run in order: place it before `AdversarialTraining` to attack the transformed batch.

    Args:
        transform: A transform of `torchvision.transforms.v2`, or any module that maps images. It gets raw images.
        pixels: Normalization of the inputs. Default: raw images in [0, 1].
        sample: Paths of inputs and labels in a batch. Default: detected.
        seed: The only source of randomness; the Trainer's own random numbers are unaffected.
        name: Distinguishes several augmentations of a Trainer. Default: the class of the transform.

    Raises:
        TypeError: If the transform is not a module.
        ValueError: In the first step, if the transform changes the number of images, integer images are mixed or
            declared as normalized, or JPEG gets images out of range.

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
            raise TypeError(expected("transform", "a module such as `v2.CutMix`", describe(transform), hint))
        self.transform = transform
        self.pixels = PixelRange() if pixels is None else pixels
        self.sample = sample
        self.seed = positive_int("seed", seed, minimum=0)
        self.name = type(transform).__name__ if name is None else name
        self._module: LightningModule | None = None

    @property
    def state_key(self) -> str:
        """The key of the callback's state, by name, so that a Trainer can have several."""
        return f"BatchAugmentation[{self.name}]"

    def setup(self, trainer: "Trainer", pl_module: "LightningModule", stage: str) -> None:
        """Wrap the module's step."""
        self._remove_wrapper()
        if stage != "fit":
            return
        self._module = pl_module

        def wrapper(call_next: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
            position = trainer.current_epoch, trainer.fit_loop.epoch_loop.batch_idx, trainer.global_rank
            seed = derived_seed(self.seed, "batch augmentation", *position)
            return call_next(self.augment(batch, seed), *args, **kwargs)

        StepWrappers.add(pl_module, self, wrapper)

    def teardown(self, trainer: "Trainer", pl_module: "LightningModule", stage: str) -> None:
        """Restore the module's own step."""
        self._remove_wrapper()

    def on_exception(self, trainer: "Trainer", pl_module: "LightningModule", exception: BaseException) -> None:
        """Restore the module's own step; Lightning does not call `teardown` after an exception."""
        self._remove_wrapper()

    def augment(self, batch: Any, seed: int) -> Any:
        """Return a transformed copy of a batch.

        Args:
            batch: A batch of any structure.
            seed: Seeds the transform; global random states are restored.

        Raises:
            ValueError: If inputs, or labels to be mixed, are not found or not tensors, or inputs cannot be transformed.
        """
        from torchvision.transforms import v2

        spec = self.sample or SampleSpec.detect(batch, batched=True, mixed=True)
        inputs = _checked(spec.inputs_in(batch), "inputs", "a batch of images (B, C, H, W)", spec.inputs)
        floats = inputs.is_floating_point()
        if not floats and (self.pixels.mean is not None or _has(self.transform, v2.MixUp)):
            hint = "Convert them in the transform or in `on_after_batch_transfer`: `v2.ToDtype(torch.float, True)`."
            raise ValueError(expected("inputs", "floats, to normalize or mix them", describe(inputs), hint))
        with isolated_rng(seed, inputs.device):
            if isinstance(self.transform, v2.JPEG):
                levels = _to_8_bits(denormalize(inputs, self.pixels)) if floats else inputs.cpu()
                changed = torch.stack([self.transform(image) for image in levels])
                return spec.replace(batch, inputs=self._normalized(changed / 255 if floats else changed, inputs))
            raw = self.pixels.to_raw(inputs)
            if _has(self.transform, v2.MixUp | v2.CutMix):
                labels = _checked(spec.labels_in(batch), "labels", "a tensor with one label per image", spec.labels)
                changed, labels = self.transform(raw, labels)
                return spec.replace(batch, inputs=self._normalized(changed, inputs), labels=labels)
            changed = torch.stack([self.transform(image) for image in raw])
            return spec.replace(batch, inputs=self._normalized(changed, inputs))

    def _normalized(self, raw: Tensor, like: Tensor) -> Tensor:
        if len(raw) != len(like):
            raise ValueError(expected("transform", f"one that returns {len(like)} images", f"{len(raw)}"))
        return self.pixels.from_raw(raw.to(like.device, like.dtype))

    def _remove_wrapper(self) -> None:
        if self._module is not None:
            StepWrappers.remove(self._module, self)
        self._module = None


def _checked(value: Any, name: str, what: str, path: object) -> Tensor:
    """Return a value if it is a batched tensor."""
    if not isinstance(value, Tensor) or not value.ndim:
        raise ValueError(expected(name, what, f"{describe(value)} at {path!r}", NAME_THEM))
    return value


def _has(transform: nn.Module, kind: Any) -> bool:
    """Return whether a transform, or one of those it contains, is of a kind."""
    contained = getattr(transform, "transforms", ())
    return isinstance(transform, kind) or any(_has(each, kind) for each in contained)


def _to_8_bits(raw: Tensor) -> Tensor:
    """Round raw images to the 8 bits of a JPEG."""
    check_images(raw.detach(), 0.0, 1.0)
    return (255 * raw.detach().clamp(0, 1)).round().to("cpu", torch.uint8)
