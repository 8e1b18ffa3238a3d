"""`BatchAugmentation`: torchvision's transforms on training batches, mixup, CutMix and JPEG among them."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lightning_poison._lightning.namespaces import CallbackBase
from lightning_poison._lightning.step_chain import StepChain
from lightning_poison.checks import describe, expected, positive_int
from lightning_poison.pixels import PixelRange
from lightning_poison.samples import SampleSpec
from lightning_poison.scopes import isolated_rng
from lightning_poison.seeds import derived_seed

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class BatchAugmentation(CallbackBase):
    """Changes each training batch by a transform of torchvision before the module's step sees it.

        BatchAugmentation(v2.MixUp(num_classes=10, alpha=0.2))
        BatchAugmentation(v2.CutMix(num_classes=10))
        BatchAugmentation(v2.JPEG((50, 95)))

    Mixup (Zhang, Cisse, Dauphin, Lopez-Paz, ICLR 2018, arXiv 1710.09412) and CutMix (Yun, Han, Oh, Chun, Choe, Yoo,
    ICCV 2019, arXiv 1905.04899) mix labels too: the step then gets probabilities `(B, C)`, which `cross_entropy` takes
    and a comparison with `argmax` does not. Any other transform is applied image by image, with random numbers of its
    own for each; `v2.JPEG` goes through 8 bits on the CPU.

    Callbacks work in their order: put it before `AdversarialTraining` to attack what comes out.

    Args:
        transform: of torchvision's `transforms.v2`, or any module that maps images.
        pixels: how inputs are normalised; raw images in [0, 1] where it is `None`. The transform gets raw images.
        sample: where inputs and labels stand in a batch; found by itself where that is plain.
        seed: the only source of randomness; the Trainer's own random numbers are the same with and without it.
        name: tells several of one Trainer apart.

    Raises:
        TypeError: where the transform is no module.
        ValueError: in the first step, where the transform changes the number of images.

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
        """
        from torchvision.transforms import v2

        spec = self.sample or SampleSpec.detect(batch, batched=True)
        inputs: Tensor = spec.inputs_in(batch)
        raw = self.pixels.to_raw(inputs)
        with isolated_rng(seed, inputs.device):
            if isinstance(self.transform, v2.MixUp | v2.CutMix):
                changed, labels = self.transform(raw, spec.labels_in(batch))
                return spec.replace(batch, inputs=self._as_inputs(changed, inputs), labels=labels)
            if isinstance(self.transform, v2.JPEG):
                levels = (255 * raw.detach().clamp(0, 1)).round().to("cpu", torch.uint8)
                changed = torch.stack([self.transform(image) for image in levels]).float() / 255
            else:
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
