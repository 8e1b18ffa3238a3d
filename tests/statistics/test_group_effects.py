import pytest
import torch

from lightning_poison.statistics.group_effects import (
    SuspectGroup,
    look_alike_mean,
    resemblance,
    rest_margin,
    transfer_share,
)


class TestTransferShare:
    labels = torch.tensor([1, 1, 1, 3, 3])

    def test_is_minimum_over_classes(self):
        before, after = torch.tensor([1, 1, 1, 3, 3]), torch.tensor([2, 2, 1, 2, 1])
        assert transfer_share(before, after, self.labels, 2) == 0.5

    def test_excludes_samples_already_predicted_as_class(self):
        before, after = torch.tensor([2, 1, 1, 3, 3]), torch.tensor([2, 2, 1, 2, 2])
        assert transfer_share(before, after, self.labels, 2) == 0.5

    def test_excludes_samples_of_the_class(self):
        before, after = torch.tensor([1, 1, 1, 1, 1]), torch.tensor([1, 1, 1, 3, 3])
        assert transfer_share(before, after, self.labels, 3) == 0

    def test_is_zero_without_eligible_samples(self):
        everywhere = torch.full((5,), 2)
        assert transfer_share(everywhere, everywhere, self.labels, 2) == 0


def test_look_alike_mean_weights_class_means():
    features = torch.tensor([[0.0, 1.0], [4.0, 1.0], [9.0, 9.0], [100.0, 0.0]])
    found = look_alike_mean(features, torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 0, 1]))
    torch.testing.assert_close(found, torch.tensor([0.4 * 2 + 0.6 * 9, 0.4 * 1 + 0.6 * 9]).double())


class TestResemblance:
    reference = torch.tensor(
        [[m, 0.0, -1.0] for m in (1.0, 2.0, 3.0, 4.0)] + [[0.0, m, -1.0] for m in (10.0, 20.0, 30.0)]
    )
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1])

    def share(self, *rows, label=2, times=500, **options):
        return resemblance(torch.tensor(rows).repeat(times, 1), label, self.reference, self.labels, **options)

    def test_requires_a_share_of_the_median_margin_of_predicted_class(self):
        half, whole = pytest.approx(0.5, abs=0.04), pytest.approx(1, abs=0.01)
        assert self.share([0.7, 0.0, 0.0], [0.8, 0.0, 0.0]) == half  # the median of class 0 is 2.5,
        assert self.share([0.0, 5.9, 0.0], [0.0, 6.1, 0.0]) == half  # that of class 1 is 20
        assert self.share([0.0, 5.9, 0.0], margin=0.2) == whole

    def test_is_smaller_in_small_groups(self):
        shares = [self.share([0.0, 9.0, 0.0], [9.0, 0.0, 0.0], label=0, times=times) for times in (5, 20, 500)]
        assert shares == [pytest.approx(value, abs=0.01) for value in (0.237, 0.352, 0.469)]  # Wilson's interval

    def test_excludes_predictions_of_own_label(self):
        assert self.share([9.0, 0.0, 0.0], [0.0, 99.0, 0.0], label=1) == pytest.approx(0.5, abs=0.04)

    def test_excludes_class_without_correct_predictions(self):
        assert self.share([0.0, 0.0, 99.0], label=0) == 0

    def test_subtracts_what_is_natural_in_the_class(self):
        alike, own = [9.0, 0.0, 0.0], [0.0, 9.0, 0.0]
        half = torch.tensor([alike, own]).repeat(500, 1)
        rest = torch.tensor([alike, own, own, own]).repeat(100, 1)
        others = torch.tensor([alike]).repeat(100, 1)
        reference, labels = torch.cat([rest, others]), torch.tensor([1] * 400 + [0] * 100)
        assert resemblance(half, 1, reference, labels) == pytest.approx((0.5 - 0.25) / 0.75, abs=0.05)
        assert resemblance(rest, 1, reference, labels) == 0
        assert resemblance(half, 1, others, labels[400:]) == pytest.approx(0.5, abs=0.04)  # no reference of the class

    def test_is_zero_if_the_whole_class_looks_like_others(self):
        alike = torch.tensor([[9.0, 0.0, 0.0]]).repeat(50, 1)
        reference, labels = torch.cat([alike, alike]), torch.tensor([1] * 50 + [0] * 50)
        assert resemblance(alike, 1, reference, labels) == 0

    def test_nearly_all_mislabeled_samples_count(self):
        noise = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0))
        logits = noise + torch.tensor([6.0, 0.0, 0.0])
        assert resemblance(logits[:2000], 2, logits[2000:], torch.zeros(2000, dtype=torch.int64)) > 0.95

    def test_refuses_invalid_arguments(self):
        with pytest.raises(ValueError, match="margin"):
            self.share([1.0, 0.0, 0.0], margin=1.0)
        with pytest.raises(ValueError, match="at least one member"):
            resemblance(torch.zeros(0, 3), 0, self.reference, self.labels)


def test_description_of_group():
    assert "at least 93 % of them look like other classes" in SuspectGroup(1, 40, 12.0, 0.1, 0.93, True).describe("1")
    assert "shift 93 % of any other class to ship" in SuspectGroup(1, 40, 12.0, 0.93, 0.1, True).describe("ship")
    assert "without an effect" in SuspectGroup(1, 40, 12.0, 0.2, 0.1, False).describe("1")


def test_description_of_group_beside_a_shortcut():
    assert (
        SuspectGroup(1, 40, 12.0, 0.2, 0.0, False, 3.0)
        .describe("1")
        .endswith(
            "recognized by something that these lack, with 3.0 times the margin of any other class: compare the two"
        )
    )
    assert "compare" not in SuspectGroup(1, 40, 12.0, 0.2, 0.0, False, 2.9).describe("1")
    assert "compare" not in SuspectGroup(1, 40, 12.0, 0.9, 0.0, True, 5.0).describe("1")


class TestRestMargin:
    logits = torch.tensor([[6.0, 0.0, 0.0], [8.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 1.0], [50.0, 0.0, 0.0]])
    labels = torch.tensor([0, 0, 1, 2, 2])

    def test_compares_medians_of_correct_samples(self):
        assert rest_margin(self.logits, self.labels, 0) == 3.5
        assert rest_margin(self.logits, self.labels, 2) == pytest.approx(1 / 7)

    def test_is_zero_without_correct_samples(self):
        assert rest_margin(self.logits, self.labels, 3) == 0
        assert rest_margin(self.logits[:2], self.labels[:2], 0) == 0
