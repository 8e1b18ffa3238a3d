"""WaNet: a backdoor whose trigger is a smooth warp of the whole image."""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_poison import checks
from lightning_poison.attacks import COVER, Trigger, trigger_kinds
from lightning_poison_backdoors.backdoor import (
    Backdoor,
    Images,
    TargetClass,
    check_cover_share,
    check_source_class,
    check_target_class,
    draw_covers,
)


@trigger_kinds.register
class WarpTrigger:
    """Warps an image by a smooth field of displacements, interpolated between control points.

    Nguyen, Tran, "WaNet - Imperceptible Warping-based Backdoor Attack", ICLR 2021, arXiv 2102.10369, equations 3 to 5.

    Args:
        field: Displacements at the control points, in units of their mean absolute value, floating-point `(2, k, k)`, x
            and y.
        strength: Mean displacement in pixels, above 0.

    Raises:
        ValueError: If the field has another shape, or `strength` is out of range.

    Example:
        >>> trigger = WarpTrigger(torch.ones(2, 2, 2), strength=1.0)  # every pixel comes from one to the lower right
        >>> image = (10 * torch.arange(4) + 100 * torch.arange(2)[:, None]).to(torch.uint8)[None]
        >>> trigger(image).tolist()
        [[[110, 120, 130, 130], [110, 120, 130, 130]]]
    """

    kind: ClassVar[str] = "warp"

    def __init__(self, field: Tensor, *, strength: float = 0.5) -> None:
        if not isinstance(field, Tensor) or field.ndim != 3 or field.shape[0] != 2 or field.shape[1] != field.shape[2]:
            raise ValueError(checks.expected("field", "displacements (2, k, k)", checks.describe(field)))
        if not field.is_floating_point() or not bool(field.isfinite().all()) or field.shape[1] < 2:
            raise ValueError(checks.expected("field", "finite displacements (2, k, k), k at least 2", "others"))
        self.field = field.detach().cpu().float().clone()
        self.strength = checks.positive("strength", strength)

    def __repr__(self) -> str:
        return f"WarpTrigger({self.field.shape[-1]} x {self.field.shape[-1]}, strength={self.strength:g})"

    def __call__(self, image: Tensor) -> Tensor:
        """Return the warped image, uint8 `(C, H, W)`. Beyond its edges, the image is continued with its edge pixels."""
        return self.warped(image, torch.zeros(()))

    def warped(self, image: Tensor, noise: Tensor) -> Tensor:
        """Return the image warped by the field and by further displacements.

        Args:
            image: uint8 `(C, H, W)`.
            noise: Further displacements in pixels, x and y, `(2, H, W)` or a scalar.
        """
        height, width = image.shape[1:]
        flow = F.interpolate(self.field[None].double(), (height, width), mode="bicubic", align_corners=True)[0]
        flow = self.strength * flow + noise
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        places = torch.stack([columns + flow[0], rows + flow[1]], dim=-1)
        sizes = torch.tensor([max(1, width - 1), max(1, height - 1)])
        grid = 2 * places / sizes - 1
        warped = F.grid_sample(
            image[None].double(), grid[None], mode="bilinear", padding_mode="border", align_corners=True
        )
        return warped[0].round().clamp(0, 255).to(torch.uint8)

    def settings(self) -> Mapping[str, Any]:
        """Return the strength."""
        return {"strength": self.strength}

    def tensors(self) -> Mapping[str, Tensor]:
        """Return the field."""
        return {"field": self.field}

    @classmethod
    def from_saved(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Rebuild the trigger."""
        return cls(tensors["field"], **settings)


@dataclass(eq=False, repr=False)
class WaNet(Backdoor):
    """Warps images slightly and changes their label.

    Nguyen, Tran, "WaNet - Imperceptible Warping-based Backdoor Attack", ICLR 2021, arXiv 2102.10369.

    With cover samples, it is the paper's noise mode: the same warp with random displacements of single pixels keeps its
    label, which is meant to teach a victim this warp and not any distortion.

    Differences from the paper: the attacker changes the data and not the training, so cover is drawn once and not in
    each batch, from the attacked classes; there is none by default, where the paper has twice as much cover as poison;
    and the poison replaces the samples from which it is made. The released code divides s and the noise by the height
    in coordinates from −1 to 1, half of the displacement in pixels that the same numbers have here.

    Args:
        target_class: As for `BadNets`.
        source_class: As for `BadNets`.
        control_points: k, the number of control points in each direction, at least 2. Default: 4.
        strength: s, the mean displacement in pixels, above 0. Default: 0.5.
        cover_share: Share of cover in the budget, in [0, 1). Default: 0, no noise mode.
        noise: Largest further displacement of a pixel of cover samples, in pixels, above 0. Default: 1.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> from lightning_poison import Threat
        >>> from lightning_poison.testing import TinyImages
        >>> WaNet(1).craft(
        ...     TinyImages(), Threat(20), surrogates=(), holdout=None, generator=torch.Generator().manual_seed(0)
        ... )
        Poison(wanet: 20 samples, raw inputs (1, 8, 8))
    """

    name = "wanet"

    target_class: TargetClass = 0
    source_class: int | None = None
    _: KW_ONLY
    control_points: int = 4
    strength: float = 0.5
    cover_share: float = 0.0
    noise: float = 1.0

    def __post_init__(self) -> None:
        self.target_class = check_target_class(self.target_class)
        self.source_class = check_source_class(self.source_class, self.target_class)
        self.control_points = checks.positive_int("control_points", self.control_points, minimum=2)
        self.strength = checks.positive("strength", self.strength)
        self.cover_share = check_cover_share(self.cover_share)
        self.noise = checks.positive("noise", self.noise)

    def _triggers(self, image: Tensor, source: Images, generator: torch.Generator) -> Sequence[Trigger]:  # noqa: ARG002
        drawn = 2 * torch.rand(2, self.control_points, self.control_points, generator=generator) - 1
        return [WarpTrigger(drawn / drawn.abs().mean(), strength=self.strength)] * 2

    def _roles(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        return draw_covers(len(labels), self.cover_share, generator)

    def _apply(self, trigger: Trigger, images: Tensor, role: Tensor, generator: torch.Generator) -> Tensor:
        poisoned = super()._apply(trigger, images, role, generator)
        covers = (role == COVER).nonzero().flatten()
        if len(covers) and isinstance(trigger, WarpTrigger):
            size = (len(covers), 2, *images.shape[-2:])
            noise = self.noise * (2 * torch.rand(size, generator=generator) - 1)
            poisoned[covers] = torch.stack(list(map(trigger.warped, images[covers], noise)))
        return poisoned
