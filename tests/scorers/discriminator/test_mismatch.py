import math

import pytest
import torch
import torch.nn.functional as F

from lightning_poison.data.pixel_range import PixelRange
from lightning_poison.scorers.discriminator.mismatch import NegativeSettings, mismatch_loss, noisy_copies
from lightning_poison.scorers.discriminator.noise import textured
from lightning_poison.scorers.discriminator.projection import ProjectionDiscriminator

DEFAULT = NegativeSettings()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images(levels=256):
    return torch.rand(30, 1, 8, 8, generator=seeded()).mul(levels - 1).round().div(levels - 1)


def copies(raw, *, levels=256, texture=False, settings=DEFAULT, seed=1):
    model = ProjectionDiscriminator(raw.shape[1:], 2, pixels=PixelRange(levels=levels))
    return noisy_copies(model, raw, settings, texture=texture, generator=seeded(seed))


class TestCopies:
    def test_change_is_bounded(self):
        raw, settings = images(), NegativeSettings(low=0.05, high=0.1)
        change = (copies(raw, settings=settings) - raw).abs().amax((1, 2, 3))
        assert 0.02 < float(change.min()) <= float(change.max()) <= 0.1 + 1e-6

    @pytest.mark.parametrize("levels", [2, 17, None])
    def test_coarse_levels_change_by_at_least_one(self, levels):
        raw = images(levels or 256)
        changed = (copies(raw, levels=levels, settings=NegativeSettings(low=0.001, high=0.002)) - raw).abs()
        assert float((changed.amax((1, 2, 3)) > 0).float().mean()) > 0.8
        assert float(changed.max()) <= max(0.002, 1 / ((levels or 1e9) - 1)) + 1e-6

    def test_texture_leaves_background_unchanged(self):
        raw = torch.where(images() > 0.7, images(), 0.0)
        changed = copies(raw, texture=True)
        ink = textured(raw)
        assert torch.equal(changed[~ink], raw[~ink])
        assert float((changed != raw)[ink].float().mean()) > 0.5

    def test_copies_depend_on_the_generator(self):
        raw = images()
        assert torch.equal(copies(raw, seed=1), copies(raw, seed=1))
        assert not torch.equal(copies(raw, seed=1), copies(raw, seed=2))

    def test_vectors_have_neither_levels_nor_limits(self):
        points = 5 * torch.randn(40, 6, generator=seeded())
        change = copies(points, settings=NegativeSettings(low=0.2, high=0.2)) - points
        assert float(change.abs().max()) == pytest.approx(0.2, abs=1e-5)
        assert float(change.abs().amax(1).min()) > 0.02


class TestLoss:
    def logits(self, monkeypatch, real, fake):
        model = ProjectionDiscriminator((1, 8, 8), 3)
        monkeypatch.setattr(model, "logits_of_raw", lambda raw: torch.cat([real, fake]))
        return model

    def test_matches_closed_form(self, monkeypatch):
        real, fake = torch.tensor([[2.0, -1.0, 0.0]]), torch.tensor([[0.5, 9.0, 9.0]])
        model = self.logits(monkeypatch, real, fake)
        loss = mismatch_loss(
            model,
            torch.full((1, 1, 8, 8), 0.5),
            torch.tensor([0]),
            settings=NegativeSettings(mismatch_weight=0.25),
            texture=False,
            generator=seeded(),
        )
        softplus = [math.log1p(math.exp(value)) for value in (-2.0, -1.0, 0.0, 0.5)]
        assert loss.item() == pytest.approx(softplus[0] + 0.25 * (softplus[1] + softplus[2]) + softplus[3], rel=1e-5)

    def test_unchanged_copy_has_no_weight(self, monkeypatch):
        real, fake = torch.tensor([[2.0, -1.0, 0.0]]), torch.tensor([[50.0, 50.0, 50.0]])
        model, blank = self.logits(monkeypatch, real, fake), torch.zeros(1, 1, 8, 8)
        options = {"settings": NegativeSettings(mismatch_weight=0.0), "texture": True, "generator": seeded()}
        loss = mismatch_loss(model, blank, torch.tensor([0]), **options)
        assert loss.item() == pytest.approx(float(F.softplus(torch.tensor(-2.0))))

    def test_copies_are_scored_under_their_own_label(self):
        model = ProjectionDiscriminator((1, 8, 8), 3, seed=1)
        raw, labels = images(), torch.arange(30) % 3
        options = {"settings": NegativeSettings(mismatch_weight=0.0), "texture": False}
        loss = mismatch_loss(model, raw, labels, generator=seeded(5), **options)
        noisy = noisy_copies(model, raw, NegativeSettings(), texture=False, generator=seeded(5))
        own = [model(each).gather(1, labels[:, None])[:, 0] for each in (raw, noisy)]
        torch.testing.assert_close(loss, (F.softplus(-own[0]) + F.softplus(own[1])).mean())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"low": 0}, r"`epsilon` to be in \(0, 1\]"),
        ({"high": 8}, "8 / 255"),
        ({"low": 0.2, "high": 0.1}, r"`high` to be at least `low` \(0.2\), but got 0.1"),
        ({"mismatch_weight": -1}, "`mismatch_weight` to be a finite number of at least 0"),
    ],
)
def test_refuses_settings_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        NegativeSettings(**arguments)
