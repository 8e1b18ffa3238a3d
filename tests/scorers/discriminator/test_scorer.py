import copy
import json

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch.utils.data import Dataset, Subset, TensorDataset

from lightning_poison.data.pixel_range import PixelRange
from lightning_poison.errors import NotFittedError, UnreadableSampleError
from lightning_poison.models.fitting import FitSettings
from lightning_poison.runtime import LocalRuntime
from lightning_poison.sanitization.pipeline import sanitize
from lightning_poison.scorers.discriminator.gan import GanSettings
from lightning_poison.scorers.discriminator.mismatch import NegativeSettings
from lightning_poison.scorers.discriminator.projection import ProjectionDiscriminator
from lightning_poison.scorers.discriminator.scorer import MISMATCH_FIT, DiscriminatorScorer
from lightning_poison.scorers.likelihood import LikelihoodScorer
from lightning_poison.scorers.saving import load_scorer, save_scorer
from lightning_poison.testing.scorers import check_scorer

QUICK = FitSettings(epochs=1, batch_size=32, min_steps=30)
THOROUGH = FitSettings(epochs=10, batch_size=64, min_steps=150)
QUICK_GAN = GanSettings(epochs=2, batch_size=8, learning_rate=1e-3)
RUNTIME = LocalRuntime(precision="32", threads=1)
GRAY = PixelRange(levels=17)


def quick(mode="mismatch", **settings):
    fit = {"gan_settings": QUICK_GAN} if mode == "gan" else {"fit_settings": QUICK}
    return DiscriminatorScorer(mode, **{"width": 4, **fit, **settings})


KINDS = {
    "mismatch": quick,
    "texture": lambda **settings: quick(head="texture", **settings),
    "gan": lambda **settings: quick("gan", **settings),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


@pytest.fixture
def images():
    """Eighty gray images, eight by eight, of two classes that differ in brightness."""
    labels = torch.arange(80) % 2
    noise = torch.rand(80, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return TensorDataset((0.4 * noise + 0.4 * labels[:, None, None, None]).mul(255).round() / 255, labels)


@pytest.fixture(scope="module")
def on_digits(digits):
    """A scorer fitted on 1,000 digits; the other 797 are for tests."""
    scorer = DiscriminatorScorer(pixels=GRAY, fit_settings=THOROUGH)
    return scorer.fit(Subset(digits, range(1000)), runtime=RUNTIME)


def held_out(digits):
    images, labels = digits[1000:]
    return images, labels


class TestDetection:
    @pytest.mark.slow
    def test_detects_wrong_labels(self, on_digits, digits):
        images, labels = held_out(digits)
        wrong = torch.arange(len(labels)) % 5 == 0
        carried = torch.where(wrong, (labels + 1 + torch.arange(len(labels)) % 9) % 10, labels)
        with torch.no_grad():
            assert roc_auc_score(wrong, on_digits.score_batch(images, carried)) > 0.97
            assert float((on_digits.score_labels(images).argmin(1) == labels).float().mean()) > 0.85

    @pytest.mark.slow
    def test_detects_unseen_noise(self, on_digits, digits):
        images, labels = held_out(digits)
        pattern = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(4, 4)
        changed = (images + 0.1875 * pattern).clamp(0, 1)
        with torch.no_grad():
            clean, odd = (on_digits.score_batch(each, labels) for each in (images, changed))
        assert roc_auc_score([0] * len(clean) + [1] * len(odd), torch.cat([clean, odd])) > 0.97

    @pytest.mark.slow
    def test_texture_head_detects_changed_ink_better(self, on_digits, digits):
        texture = DiscriminatorScorer(pixels=GRAY, head="texture", fit_settings=on_digits.fit_settings)
        texture.fit(Subset(digits, range(1000)), runtime=RUNTIME)
        images, labels = held_out(digits)
        signs = 2 * torch.randint(2, images.shape, generator=torch.Generator().manual_seed(0)) - 1
        changed = torch.where(images > 0.1, (images + 0.1875 * signs).clamp(0, 1), images)
        aurocs = []
        for scorer in (on_digits, texture):
            with torch.no_grad():
                clean, odd = (scorer.score_batch(each, labels) for each in (images, changed))
            aurocs.append(roc_auc_score([0] * len(clean) + [1] * len(odd), torch.cat([clean, odd])))
        assert aurocs[1] > aurocs[0] + 0.02

    @pytest.mark.slow
    def test_gans_detect_wrong_labels(self, digits):
        settings = GanSettings(epochs=15, learning_rate=2e-3)
        two = [(image, int(label)) for image, label in digits if label < 2]
        scorer = DiscriminatorScorer("gan", pixels=GRAY, gan_settings=settings, width=8)
        scorer.fit(two[:260], runtime=RUNTIME)
        images, labels = torch.stack([image for image, _ in two[260:]]), torch.tensor([label for _, label in two[260:]])
        with torch.no_grad():
            right, wrong = (scorer.score_batch(images, carried) for carried in (labels, 1 - labels))
        assert roc_auc_score([0] * len(right) + [1] * len(wrong), torch.cat([right, wrong])) > 0.8

    @pytest.mark.slow
    def test_detects_wrong_labels_of_vectors(self, blobs):
        points, truth = blobs(300).tensors
        scorer = quick(fit_settings=FitSettings(epochs=10, batch_size=32)).fit(blobs(300, seed=1), runtime=RUNTIME)
        with torch.no_grad():
            right, wrong = scorer.score_batch(points, truth), scorer.score_batch(points, (truth + 1) % 3)
        assert roc_auc_score([0] * 300 + [1] * 300, torch.cat([right, wrong])) > 0.99

    @pytest.mark.slow
    def test_detects_wrong_labels_without_trusted_data(self, digits):
        images, truth = digits[:400]
        wrong = torch.arange(400) % 10 == 0
        data = TensorDataset(images, torch.where(wrong, (truth + 1) % 10, truth))
        settings = FitSettings(epochs=5, batch_size=32, learning_rate=3e-3, min_steps=170)
        scorer = DiscriminatorScorer(pixels=GRAY, fit_settings=settings)
        verdict = sanitize(data, scorer, runtime=RUNTIME, remove_without_evidence=True)
        assert roc_auc_score(wrong, -verdict.p_values.log()) > 0.95


class TestContract:
    @pytest.mark.slow
    def test_complies(self, kind):
        check_scorer(kind())

    @pytest.mark.slow
    @pytest.mark.parametrize("head", ["label", "texture"])
    def test_separates_wrong_labels(self, head):
        check_scorer(quick(head=head, fit_settings=FitSettings(epochs=1, batch_size=32, min_steps=100)), separates=True)

    def test_declares_label_scores(self, kind):
        scorer = kind()
        assert scorer.scores_labels
        assert not scorer.is_control
        assert not scorer.is_fitted

    def test_name_depends_on_mode_and_head(self):
        names = [each().name for each in KINDS.values()]
        assert names == ["discriminator", "discriminator-texture", "discriminator-gan"]

    @pytest.mark.slow
    def test_scores_do_not_depend_on_the_number_of_workers(self, kind, images):
        noisy, shorter = Noisy(images), kind().mode == "mismatch"
        settings = {"fit_settings": FitSettings(epochs=2, batch_size=32, min_steps=0)} if shorter else {}
        runtimes = [LocalRuntime(precision="32", threads=1, num_workers=number) for number in (0, 2)]
        scores = [kind(**settings).fit(noisy, runtime=each).score_labels(images.tensors[0]) for each in runtimes]
        assert torch.equal(*scores)

    @pytest.mark.slow
    def test_gradient_step_lowers_the_score(self, kind, images):
        scorer = kind().fit(images, runtime=RUNTIME)
        inputs, labels = images.tensors[0].clone().requires_grad_(), images.tensors[1]
        before = scorer.score_batch(inputs, labels)
        (gradient,) = torch.autograd.grad(before.sum(), inputs)
        assert (gradient.flatten(1).norm(dim=1) > 0).all()
        step = 1e-4 * gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        with torch.no_grad():
            assert (scorer.score_batch(inputs - step, labels) < before).float().mean() > 0.8

    @pytest.mark.slow
    def test_scores_are_float32_without_ties_under_bfloat16(self, kind, images):
        scorer = kind().fit(images, runtime=RUNTIME)
        inputs, labels = images.tensors
        with torch.no_grad(), LocalRuntime(precision="bf16").autocast():
            scores = scorer.score_batch(inputs, labels)
        assert scores.dtype == torch.float32
        assert len(scores.unique()) > 70
        torch.testing.assert_close(scores, scorer.score_batch(inputs, labels).detach(), atol=0.05, rtol=0.05)

    @pytest.mark.slow
    def test_normalized_images_give_the_scores_of_raw_images(self, kind, images):
        pixels = PixelRange(mean=(0.4,), std=(0.2,))
        inputs, labels = images.tensors
        raw = kind().fit(images, runtime=RUNTIME)
        normalized = kind(pixels=pixels).fit(TensorDataset(pixels.from_raw(inputs), labels), runtime=RUNTIME)
        found = normalized.score_labels(pixels.from_raw(inputs))
        torch.testing.assert_close(found, raw.score_labels(inputs), atol=0.02, rtol=0.02)

    @pytest.mark.slow
    def test_network_is_moved_to_the_device_of_the_inputs(self, kind, images):
        scorer = kind().fit(images, runtime=RUNTIME)
        inputs, labels = images.tensors
        assert scorer.score_batch(inputs.to("meta"), labels.to("meta")).device.type == "meta"

    def test_rehearse_returns_steps_of_a_fit_and_leaves_scorer_unfitted(self, kind, images):
        scorer, found = kind(), torch.get_rng_state()
        expected = QUICK_GAN.total_steps([40, 40]) if scorer.mode == "gan" else QUICK.total_steps(80)
        assert scorer.rehearse(images, steps=2, runtime=RUNTIME) == expected
        assert not scorer.is_fitted
        assert torch.equal(torch.get_rng_state(), found)


class Noisy(Dataset):
    """Images with a random transform."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        image, label = self.data[index]
        return (image + 0.01 * torch.rand(image.shape)).clamp(0, 1), int(label)


class TestShapes:
    @pytest.mark.slow
    @pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 12), (1, 28, 28), (3, 32, 32), (1, 4, 4), (3, 100, 60)])
    def test_scores_gray_and_color_images_of_any_size(self, kind, shape):
        generator = torch.Generator().manual_seed(0)
        data = TensorDataset(torch.rand(16, *shape, generator=generator), torch.arange(16) % 4)
        settings = (
            {"gan_settings": GanSettings(epochs=1, batch_size=4)}
            if kind().mode == "gan"
            else {"fit_settings": FitSettings(epochs=1, batch_size=8, min_steps=0)}
        )
        scorer = kind(**settings).fit(data, runtime=RUNTIME)
        with torch.no_grad():
            scores = scorer.score_labels(data.tensors[0])
        assert scores.shape == (16, 4)
        assert scores.isfinite().all()

    @pytest.mark.slow
    def test_fits_arrays_of_bytes(self, kind, images):
        inputs, labels = images.tensors
        data = [((255 * image).byte().numpy(), int(label)) for image, label in zip(inputs, labels, strict=True)]
        assert kind().fit(data, runtime=RUNTIME).score_labels(inputs).shape == (80, 2)


class TestState:
    @pytest.mark.slow
    def test_saved_scorer_gives_the_same_scores(self, kind, images, tmp_path):
        fitted = kind().fit(images, runtime=RUNTIME)
        save_scorer(fitted, tmp_path / "scorer.safetensors")
        loaded = load_scorer(kind(), tmp_path / "scorer.safetensors")
        with torch.no_grad():
            assert torch.equal(loaded.score_labels(images.tensors[0]), fitted.score_labels(images.tensors[0]))

    @pytest.mark.slow
    def test_state_is_a_copy(self, kind, images):
        fitted = kind().fit(images, runtime=RUNTIME)
        before = fitted.score_labels(images.tensors[0])
        for value in fitted.state().values():
            value.zero_()
        assert torch.equal(fitted.score_labels(images.tensors[0]), before)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("mode", "settings", "is_kept"),
        [
            ("mismatch", {"width": 8}, lambda name: True),
            ("mismatch", {}, lambda name: name != "sample_shape"),
            ("mismatch", {}, lambda name: name != "num_classes"),
            ("mismatch", {}, lambda name: name != "model.embeddings.weight"),
            ("gan", {}, lambda name: True),
        ],
    )
    def test_refuses_state_of_another_scorer(self, images, mode, settings, is_kept):
        state = quick().fit(images, runtime=RUNTIME).state()
        scorer = quick(mode, **settings)
        with pytest.raises(ValueError, match=r"the state of DiscriminatorScorer.*, but got one of another scorer"):
            scorer.load({name: value for name, value in state.items() if is_kept(name)})
        assert not scorer.is_fitted

    @pytest.mark.slow
    def test_refuses_state_of_a_likelihood_scorer(self, images):
        state = LikelihoodScorer(fit_settings=QUICK).fit(images, runtime=RUNTIME).state()
        with pytest.raises(ValueError, match="but got one of another scorer"):
            quick().load(state)

    def test_settings_are_json_and_distinguish_scorers(self):
        scorers = [quick(), quick(head="texture"), quick("gan"), quick(width=8), quick(pixels=GRAY)]
        scorers += [quick(negatives=NegativeSettings(high=0.1)), quick(fit_settings=MISMATCH_FIT)]
        scorers += [quick("gan", gan_settings=GanSettings()), quick(negatives=NegativeSettings(mismatch_weight=1.0))]
        assert len({json.dumps(scorer.settings(), sort_keys=True) for scorer in scorers}) == len(scorers)
        assert len({repr(scorer) for scorer in scorers}) == len(scorers)

    @pytest.mark.slow
    def test_copy_of_unfitted_scorer_is_unfitted(self, kind, images):
        scorer = kind()
        twin = copy.deepcopy(scorer).fit(images, runtime=RUNTIME)
        assert twin.is_fitted
        assert not scorer.is_fitted
        assert scorer.settings() == twin.settings()


class TestRefusals:
    @pytest.mark.parametrize("call", ["score_labels", "score_batch", "state"])
    def test_refuses_unfitted_scorer(self, call):
        arguments = {
            "score_labels": (torch.zeros(1, 1, 8, 8),),
            "score_batch": (torch.zeros(1, 1, 8, 8), torch.zeros(1)),
        }
        with pytest.raises(NotFittedError, match=r"Expected a fitted DiscriminatorScorer[\s\S]*Call `fit\(trusted\)`"):
            getattr(quick(), call)(*arguments.get(call, ()))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"mode": "wgan"}, "`mode` to be one of 'mismatch', 'gan', but got wgan"),
            ({"head": "ink"}, "`head` to be one of 'label', 'texture'"),
            ({"width": 0}, "`width` to be an integer of at least 1"),
            ({"mode": "gan", "head": "texture"}, r"`head` to be left out in the mode 'gan'.*\n.*'mismatch'"),
            ({"mode": "gan", "negatives": NegativeSettings()}, "`negatives` to be left out in the mode 'gan'"),
            ({"mode": "gan", "fit_settings": QUICK}, "`fit_settings` to be left out in the mode 'gan'"),
            ({"gan_settings": QUICK_GAN}, r"`gan_settings` to be left out in the mode 'mismatch'.*\n.*'gan'"),
        ],
    )
    def test_refuses_arguments(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            DiscriminatorScorer(**arguments)

    def test_refuses_one_class(self, kind):
        data = TensorDataset(torch.rand(10, 1, 8, 8), torch.full((10,), 3))
        with pytest.raises(ValueError, match="data of at least two classes, but got class 3 alone"):
            kind().fit(data, runtime=RUNTIME)

    @pytest.mark.slow
    @pytest.mark.parametrize(("labels", "received"), [([0, 0, 0, 1], "1 of class 1"), ([0, 0, 2, 2], "0 of class 1")])
    def test_gan_refuses_small_class(self, labels, received):
        data = TensorDataset(torch.rand(4, 1, 8, 8), torch.tensor(labels))
        with pytest.raises(ValueError, match=rf"at least two samples of each class, but got {received}"):
            quick("gan").fit(data, runtime=RUNTIME)
        assert quick().fit(data, runtime=RUNTIME).is_fitted

    def test_refuses_images_of_another_shape(self, kind, images):
        scorer = kind().fit(images, runtime=RUNTIME)
        with pytest.raises(ValueError, match=r"shape \(1, 8, 8\), which the scorer was fitted on, but got \(3, 8, 8\)"):
            scorer.score_labels(torch.rand(2, 3, 8, 8))

    def test_refuses_normalized_images_declared_as_raw(self, kind, images):
        data = TensorDataset(images.tensors[0] * 4 - 2, images.tensors[1])
        with pytest.raises(ValueError, match=r"declared pixel range, but got raw values from -2 .*\n.*`pixels="):
            kind().fit(data, runtime=RUNTIME)

    @pytest.mark.parametrize("shape", [(1, 3, 8), (2, 4, 8, 8), (4, 4)])
    def test_refuses_samples_that_are_neither_images_nor_vectors(self, kind, shape):
        data = TensorDataset(torch.rand(8, *shape), torch.arange(8) % 2)
        with pytest.raises(ValueError, match=r"`inputs` to be images \(C, H, W\) of at least 4 x 4"):
            kind().fit(data, runtime=RUNTIME)

    def test_refuses_vectors_for_texture_and_gan(self, blobs):
        with pytest.raises(ValueError, match="images, for the head 'texture', but got vectors"):
            quick(head="texture").fit(blobs(30), runtime=RUNTIME)
        with pytest.raises(ValueError, match=r"images \(C, H, W\) of at least 4 x 4, but got shape \(4,\)"):
            quick("gan").fit(blobs(30), runtime=RUNTIME)

    def test_refuses_unreadable_samples(self, kind, images):
        inputs = images.tensors[0].clone()
        inputs[40] = torch.inf
        with pytest.raises(UnreadableSampleError, match="sample 40"):
            kind().fit(TensorDataset(inputs, images.tensors[1]), runtime=RUNTIME)

    def test_refuses_loss_that_is_not_finite(self, images, monkeypatch):
        monkeypatch.setattr(
            ProjectionDiscriminator, "logits_of_raw", lambda self, raw: raw.flatten(1)[:, :2] * torch.inf
        )
        with pytest.raises(FloatingPointError, match="`loss` to be finite"):
            quick().fit(images, runtime=RUNTIME)
        steep = GanSettings(learning_rate=1e30, epochs=3, batch_size=8)
        with pytest.raises(FloatingPointError, match=r"`loss` to be finite, but got .* at step \d+, class"):
            quick("gan", gan_settings=steep).fit(images, runtime=RUNTIME)
