"""How far predictions survive amplified layers, and the part of a class whose predictions do so differently.

Hou, Feng, Hua, Luo, Zhang, Li, "IBD-PSC: Input-level Backdoor Detection via Parameter-oriented Scaling Consistency",
ICML 2024, arXiv 2405.09786, section 4; there for single samples at test time, with clean samples as a reference.
"""

import torch
from torch import Tensor

from lightning_poison.statistics.arguments import check_fraction, check_integer
from lightning_poison.statistics.subgroups import Subgroup
from lightning_poison.statistics.two_normals import fit_two_normals


def stability(log_odds: Tensor, *, changed: float = 0.6, models: int = 5) -> Tensor:
    """Compute the log-odds of the mean probability that predictions keep over several amplified models.

    The first of the models is the one with the fewest amplified layers that change more than `changed` of the
    predictions: below, all predictions are stable. If none does, as in networks with few layers, the last ones count.

    Args:
        log_odds: Log-odds of the original prediction with the last 1, 2, ... layers amplified, floating-point `(N, K)`.
        changed: Share of changed predictions, in (0, 1). Default: .6, as in the paper.
        models: Number of models. Default: 5.

    Returns:
        float64 `(N,)`. Larger is more stable.

    Example:
        >>> log_odds = torch.tensor([[9.0, 9.0, -9.0], [9.0, -9.0, -9.0], [9.0, -9.0, -9.0]])
        >>> stability(log_odds, models=1)
        tensor([ 9., -9., -9.], dtype=torch.float64)
    """
    check_fraction("changed", changed)
    check_integer("models", models)
    values = log_odds.detach().double()
    columns = values.shape[1]
    enough = ((values < 0).double().mean(0) > changed).nonzero().flatten()
    first = int(enough[0]) if len(enough) else max(0, columns - models)
    chosen = values[:, first : first + models]
    kept = torch.nn.functional.logsigmoid(chosen).logsumexp(1)
    lost = torch.nn.functional.logsigmoid(-chosen).logsumexp(1)
    return kept - lost


def find_outer_parts(values: Tensor, labels: Tensor, *, upper_only: bool = False) -> tuple[Subgroup, ...]:
    """Find the smaller of two normal components of each class, on either side.

    Args:
        values: One number per sample, floating-point `(N,)`.
        labels: int64 `(N,)`.
        upper_only: Whether a smaller component counts only if its mean is the larger one. Default: `False`.

    Returns:
        For each class, in ascending order, its smaller component, with Ashman's D of the components. Classes without
        one, or in which more than half of the samples belong to it, are left out.

    Raises:
        ValueError: If a class has fewer than 12 samples, or a number is not finite.

    Example:
        >>> values = torch.randn(300, generator=torch.Generator().manual_seed(0))
        >>> values[:30] -= 15
        >>> group, = find_outer_parts(values, torch.zeros(300, dtype=torch.int64))
        >>> len(group.members), group.separation > 9
        (30, True)
    """
    values, labels = values.detach().double().cpu(), labels.cpu()
    found = []
    for label in torch.unique(labels).tolist():
        positions = (labels == label).nonzero().flatten()
        own = values[positions]
        mixture = fit_two_normals(own)
        odds = mixture.log_odds(own)
        count = int((odds > 0).sum())
        if 0 < 2 * count <= len(own) and (mixture.means[1] > mixture.means[0] or not upper_only):
            found.append(Subgroup(label, positions, odds, mixture.separation))
    return tuple(found)
