import pytest
import torch

from lightning_poison.statistics.group_effects import SuspectGroup, look_alike_mean, resemblance, transfer_share


class TestTransferShare:
    labels = torch.tensor([1, 1, 1, 3, 3])

    def test_the_class_with_the_fewest_counts(self):
        before, after = torch.tensor([1, 1, 1, 3, 3]), torch.tensor([2, 2, 1, 2, 1])
        assert transfer_share(before, after, self.labels, 2) == 0.5

    def test_only_samples_that_were_read_otherwise_count(self):
        before, after = torch.tensor([2, 1, 1, 3, 3]), torch.tensor([2, 2, 1, 2, 2])
        assert transfer_share(before, after, self.labels, 2) == 0.5

    def test_samples_of_the_class_itself_do_not(self):
        before, after = torch.tensor([1, 1, 1, 1, 1]), torch.tensor([1, 1, 1, 3, 3])
        assert transfer_share(before, after, self.labels, 3) == 0

    def test_nothing_to_ask(self):
        everywhere = torch.full((5,), 2)
        assert transfer_share(everywhere, everywhere, self.labels, 2) == 0


def test_the_mean_of_what_looks_alike():
    features = torch.tensor([[0.0, 1.0], [4.0, 1.0], [9.0, 9.0], [100.0, 0.0]])
    found = look_alike_mean(features, torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 0, 1]))
    torch.testing.assert_close(found, torch.tensor([0.4 * 2 + 0.6 * 9, 0.4 * 1 + 0.6 * 9]).double())


class TestResemblance:
    reference = torch.tensor(
        [[m, 0.0, -1.0] for m in (1.0, 2.0, 3.0, 4.0)] + [[0.0, m, -1.0] for m in (10.0, 20.0, 30.0)]
    )
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1])

    def of(self, *rows, label=2, **options):
        return resemblance(torch.tensor(rows), label, self.reference, self.labels, **options)

    def test_a_reading_counts_where_it_is_as_sure_as_those_of_its_class(self):
        assert self.of([1.7, 0.0, 0.0], [1.8, 0.0, 0.0]) == 0.5  # the quartile of class 0 is 1.75,
        assert self.of([0.0, 14.0, 0.0], [0.0, 15.0, 0.0]) == 0.5  # that of class 1 is 15
        assert self.of([0.0, 14.0, 0.0], quantile=0.1) == 1

    def test_a_reading_as_the_own_label_never_counts(self):
        assert self.of([9.0, 0.0, 0.0], [0.0, 99.0, 0.0], label=1) == 0.5

    def test_a_class_that_nothing_in_the_reference_was_rightly_read_as(self):
        assert self.of([0.0, 0.0, 99.0], label=0) == 0

    def test_samples_of_the_other_class_reach_one_minus_the_quantile(self):
        noise = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0))
        logits = noise + torch.tensor([6.0, 0.0, 0.0])
        found = resemblance(logits[:2000], 2, logits[2000:], torch.zeros(2000, dtype=torch.int64))
        assert found == pytest.approx(0.75, abs=0.03)

    def test_what_cannot_be(self):
        with pytest.raises(ValueError, match="quantile"):
            self.of([1.0, 0.0, 0.0], quantile=1.0)
        with pytest.raises(ValueError, match="at least one member"):
            resemblance(torch.zeros(0, 3), 0, self.reference, self.labels)


def test_what_a_person_reads():
    assert "93 % of them look like other classes" in SuspectGroup(1, 40, 12.0, 0.1, 0.93, True).described("1")
    assert "makes 93 % of any other class a ship" in SuspectGroup(1, 40, 12.0, 0.93, 0.1, True).described("ship")
    assert "without an effect" in SuspectGroup(1, 40, 12.0, 0.2, 0.1, False).described("1")
