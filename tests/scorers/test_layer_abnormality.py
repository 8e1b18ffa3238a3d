import pytest
import torch

from lightning_poison import sanitize
from lightning_poison.runtime import LocalRuntime
from lightning_poison.scorers.layer_abnormality import LayerAbnormalityScorer


def test_finds_a_group_of_all_labels_in_the_numbers_after_the_features():
    generator = torch.Generator().manual_seed(0)
    features = 1e3 * torch.randn(800, 64, generator=generator)
    densities = -torch.randn(800, 5, generator=generator).square()
    densities[:160, :4] -= 200
    labels = torch.arange(800) % 4
    scorer = LayerAbnormalityScorer(min_separation=6.5)
    apart = [
        group for group in scorer.find_groups(torch.cat([features, densities], 1), labels) if scorer.stands_apart(group)
    ]
    assert [(group.label, len(group.members)) for group in apart] == [(label, 40) for label in range(4)]
    assert torch.cat([group.members for group in apart]).sort().values.tolist() == list(range(160))


def test_scores_do_not_depend_on_the_order():
    generator = torch.Generator().manual_seed(0)
    densities = -torch.randn(400, 3, generator=generator).square()
    densities[:60] -= 200
    order, labels = torch.randperm(400, generator=generator), torch.arange(400) % 2
    scorer = LayerAbnormalityScorer()
    one, other = (
        scorer.score_features(densities, labels) > 0,
        scorer.score_features(densities[order], labels[order]) > 0,
    )
    assert one.nonzero().flatten().tolist() == list(range(60))
    assert torch.equal(one[order], other)


@pytest.mark.slow
def test_removes_a_backdoor_of_all_labels(images_with_a_backdoor):
    data, poison = images_with_a_backdoor(lambda labels: (labels + 1) % 3)
    verdict = sanitize(data, LayerAbnormalityScorer(), runtime=LocalRuntime(threads=1, quiet=True))
    assert verdict.evidence.present
    assert verdict.removed.sort().values.equal(poison.sort().values)
