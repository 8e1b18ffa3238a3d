"""The models behind a `LikelihoodScorer`: one of its own, or somebody's module with an `LGMHead`."""

from torch import Tensor, nn

from lightning_poison.backbones import checked_features
from lightning_poison.checks import expected
from lightning_poison.heads import LGMHead


class OwnModel(nn.Module):
    """A backbone and its head.

    Example:
        >>> import torch
        >>> model = OwnModel(nn.Flatten(), LGMHead(4, num_classes=3), shape=(1, 2, 2))
        >>> model.head(model.features(torch.zeros(5, 1, 2, 2))).shape
        torch.Size([5, 3])
    """

    def __init__(self, backbone: nn.Module, head: LGMHead, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.shape = shape

    def features(self, inputs: Tensor) -> Tensor:
        """Return features `(B, D)`.

        Raises:
            ValueError: where samples have another shape than those that the model was built for, or the backbone
                returns something else.
        """
        if inputs.shape[1:] != self.shape:
            what = f"samples of shape {self.shape}, which the scorer was fitted on"
            raise ValueError(expected("inputs", what, tuple(inputs.shape[1:]), "Give all data the same transform."))
        return checked_features(self.backbone, inputs, self.head.feature_size)


class BorrowedModel(nn.Module):
    """Somebody's module, whose features are what its head is given.

    Example:
        >>> import torch
        >>> head = LGMHead(4, num_classes=3)
        >>> BorrowedModel(nn.Sequential(nn.Flatten(), head), head).features(torch.full((1, 1, 2, 2), 0.5))
        tensor([[0.5000, 0.5000, 0.5000, 0.5000]])
    """

    def __init__(self, module: nn.Module, head: LGMHead) -> None:
        super().__init__()
        self.module = module
        self.head = head

    def features(self, inputs: Tensor) -> Tensor:
        """Return what reaches the head, `(B, D)`.

        Raises:
            ValueError: where nothing does.
        """
        caught: list[Tensor] = []
        handle = self.head.register_forward_pre_hook(lambda _, arguments: caught.append(arguments[0]))
        try:
            self.module(inputs)
        finally:
            handle.remove()
        if not caught:
            raise ValueError(
                f"Expected {type(self.module).__name__} to pass features through its LGMHead in `forward`, "
                "but the head was not reached."
            )
        return caught[-1]


def lgm_loss(module: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Return the LGM loss of a batch under an `OwnModel`.

    Example:
        >>> import torch
        >>> model = OwnModel(nn.Identity(), LGMHead(4, num_classes=3), shape=(4,))
        >>> features, labels = torch.zeros(2, 4), torch.tensor([0, 2])
        >>> lgm_loss(model, features, labels).equal(model.head.loss(features, labels).total)
        True
    """
    total: Tensor = module.head.loss(module.features(inputs), labels).total  # type: ignore[operator,union-attr]
    return total
