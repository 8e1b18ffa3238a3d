import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightning_poison.adversarial.adversaries import FGSM, PGD
from lightning_poison.adversarial.pgd import perturb
from lightning_poison.adversarial.poison_immunity import PoisonImmunity
from lightning_poison.adversarial.poison_losses import collision_loss, matching_loss
from lightning_poison.contexts import evaluating
from lightning_poison.data.pixel_range import PixelRange

FIRST_HALF = torch.arange(12) < 6
ATTACKS = {
    "matching": PoisonImmunity(),
    "matching, last layer": PoisonImmunity(layers=["4"]),
    "collision": PoisonImmunity("feature-collision", layers=["3"]),
    "patch": PoisonImmunity("patch"),
}
each_attack = pytest.mark.parametrize("recipe", ATTACKS.values(), ids=ATTACKS.keys())


def trained_on(recipe, batch):
    """Return the inputs that a step trains on."""
    seen = []
    recipe.step(batch, seen.append)
    assert seen[0][1] is batch.labels
    return seen[0][0]


def relabeled(attacked, labels):
    return attacked(batch=(attacked().inputs, torch.tensor(labels)))


def gradients(network, images, labels, *, graph=False):
    loss = F.cross_entropy(network(images), labels, reduction="sum")
    return torch.cat(
        [part.flatten() for part in torch.autograd.grad(loss, list(network.parameters()), create_graph=graph)]
    )


class TestGradientMatching:
    def test_poison_matches_manual_loop(self, network, attacked):
        batch, other = relabeled(attacked, [0, 1, 1, 2, 1, 0, 2, 1, 0, 2, 2, 1]), copy.deepcopy(network).eval()
        images, labels = batch.inputs, batch.labels
        eligible = labels[6:] != 1
        goal = gradients(other, images[6:][eligible], torch.ones(4).long())

        def cosine(changed):
            return F.cosine_similarity(gradients(other, changed, labels[:6], graph=True), goal, dim=0).expand(6)

        expected = perturb(images[:6], cosine, epsilon=0.1, steps=2, random_start=False)
        found = trained_on(PoisonImmunity(), batch)
        torch.testing.assert_close(found[:6], expected)
        assert torch.equal(found[6:], images[6:])
        before, after = (float(cosine(part).detach()[0]) for part in (images[:6], found[:6]))
        assert after > before + 0.05

    def test_matches_named_layers_only(self, network, attacked):
        batch = attacked()
        loss = matching_loss(batch, FIRST_HALF, ["4"])
        network.eval()
        last = list(network[4].parameters())

        def gradient(rows, labels):
            parts = torch.autograd.grad(F.cross_entropy(network(batch.inputs[rows]), labels, reduction="sum"), last)
            return torch.cat([part.flatten() for part in parts])

        targets = (~FIRST_HALF & (batch.labels != 0)).nonzero().flatten()
        cosine = F.cosine_similarity(
            gradient(FIRST_HALF, batch.labels[:6]), gradient(targets, torch.zeros(4).long()), dim=0
        )
        torch.testing.assert_close(loss(batch.inputs).detach(), cosine.expand(12))

    def test_mixed_labels_use_largest_class(self, attacked):
        plain = attacked()
        mixed = attacked(batch=(plain.inputs, F.one_hot(plain.labels, 3).float()))
        assert torch.equal(trained_on(PoisonImmunity(), plain), trained_on(PoisonImmunity(), mixed))

    def test_smaller_share(self, attacked):
        batch = attacked()
        away = (trained_on(PoisonImmunity(share=0.25), batch) - batch.inputs).abs().amax((1, 2, 3))
        assert (away > 0.05).tolist() == [True] * 3 + [False] * 9

    def test_ignores_frozen_parameters(self, network, attacked):
        network.eval()[:4].requires_grad_(False)
        batch = attacked()
        frozen = matching_loss(batch, FIRST_HALF, None)(batch.inputs)
        network.requires_grad_(True)
        torch.testing.assert_close(frozen, matching_loss(batch, FIRST_HALF, ["4"])(batch.inputs))
        network.requires_grad_(False)
        with pytest.raises(ValueError, match="layers with trainable parameters, but got none in Sequential"):
            PoisonImmunity().step(batch, lambda _: None)

    def test_restarts_under_no_grad(self, attacked):
        batch = attacked(PGD(0.1, steps=2, restarts=2))
        with torch.no_grad():
            found = trained_on(PoisonImmunity(), batch)
        assert not found.requires_grad
        assert float((found[:6] - batch.inputs[:6]).abs().amin((1, 2, 3)).min()) >= 0
        assert 0.05 < float((found - batch.inputs).abs().max()) <= 0.1 + 1e-6

    @pytest.mark.slow
    def test_supports_fused_attention_and_compiled_models(self, attacked):
        class Attentive(nn.Module):
            def __init__(self):
                super().__init__()
                self.head = nn.Linear(36, 3)

            def forward(self, images):
                rows = images.flatten(1).view(-1, 1, 6, 6)
                return self.head(F.scaled_dot_product_attention(rows, rows, rows).flatten(1))

        model = Attentive()
        for forward in (model, torch.compile(model, backend="aot_eager")):
            batch = attacked(module=model, logits=forward)
            assert float((trained_on(PoisonImmunity(), batch) - batch.inputs).abs().max()) > 0.05

    @pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True:UserWarning")
    def test_refuses_module_without_second_derivatives(self, network, attacked):
        batch = attacked(logits=lambda images: network[3:](checkpoint(network[:3], images, use_reentrant=True)))
        with pytest.raises(RuntimeError, match=r"differentiated twice, but got: .*\n.*`use_reentrant=False`"):
            PoisonImmunity().step(batch, lambda _: None)

    def test_non_reentrant_checkpoints_change_nothing(self, network, attacked):
        batch = attacked(logits=lambda images: network[3:](checkpoint(network[:3], images, use_reentrant=False)))
        torch.testing.assert_close(trained_on(PoisonImmunity(), batch), trained_on(PoisonImmunity(), attacked()))

    def test_other_errors_are_not_wrapped(self, attacked):
        with pytest.raises(RuntimeError, match=r"^custom error$"):
            PoisonImmunity().step(attacked(logits=failing), lambda _: None)


def failing(_):
    raise RuntimeError("custom error")


class TestFeatureCollision:
    def test_poison_matches_manual_loop(self, network, attacked):
        batch, other = attacked(PGD(0.1, steps=8, random_start=False)), copy.deepcopy(network).eval()
        images, goal = batch.inputs, other[:4](batch.inputs[6:]).mean(0).detach()

        def near(changed):
            return -(other[:4](changed).mean(0) - goal).square().sum().expand(6)

        expected = perturb(images[:6], near, epsilon=0.1, steps=8, random_start=False)
        found = trained_on(ATTACKS["collision"], batch)
        torch.testing.assert_close(found[:6], expected)
        assert torch.equal(found[6:], images[6:])
        assert float(near(found[:6]).detach()[0]) > float(near(images[:6]).detach()[0])

    def test_loss_is_relative_distance(self, network, attacked):
        batch = attacked()
        loss = collision_loss(batch, FIRST_HALF, ["3", "4"])
        network.eval().requires_grad_(False)
        expected = 0.0
        for depth in (4, 5):
            one, other = (network[:depth](batch.inputs[part]).mean(0) for part in (FIRST_HALF, ~FIRST_HALF))
            expected -= float(0.5 * (one - other).square().sum() / other.square().sum())
        assert float(loss(batch.inputs)[0]) == pytest.approx(expected, rel=1e-4)

    def test_supports_reentrant_checkpoints(self, network, attacked):
        def forward(images):
            return network[3:](checkpoint(network[:3], images, use_reentrant=True))

        with evaluating(network):
            network(attacked().inputs)
        batch = attacked(logits=forward, module=network)
        with pytest.warns(UserWarning, match="None of the inputs"):
            found = trained_on(ATTACKS["collision"], batch)
        torch.testing.assert_close(found, trained_on(ATTACKS["collision"], attacked()))


class TestPatches:
    def test_poison_has_patch_of_own_class_and_targets_of_another(self, attacked):
        labels = torch.arange(24) % 3
        batch = attacked(batch=(torch.full((24, 1, 40, 40), 0.5), labels), logits=lambda images: images[:, 0, 0, :3])
        images = trained_on(PoisonImmunity("patch"), batch)
        patches = []
        for image in images:
            rows, columns = (image[0] != 0.5).nonzero(as_tuple=True)
            box = image[0, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            assert set(box.flatten().tolist()) <= {0.0, 1.0}
            assert 4 <= min(box.shape) <= max(box.shape) <= 16
            patches.append((tuple(box.shape), tuple(box.flatten().tolist())))
        of_class = [{patches[index] for index in range(12) if labels[index] == each} for each in range(3)]
        of_target = [{patches[index] for index in range(12, 24) if labels[index] == each} for each in range(3)]
        assert [len(each) for each in of_class + of_target] == [1] * 6
        assert of_class[0] != of_target[0]
        assert {next(iter(each)) for each in of_class} == {next(iter(each)) for each in of_target}
        assert all(one != other for one, other in zip(of_class, of_target, strict=True))

    def test_normalized_images(self, network, attacked):
        pixels, plain = PixelRange(mean=(0.4,), std=(0.2,)), attacked()
        raw = trained_on(PoisonImmunity("patch"), plain)
        batch = attacked(batch=(pixels.from_raw(plain.inputs), plain.labels), pixels=pixels)
        torch.testing.assert_close(trained_on(PoisonImmunity("patch"), batch), pixels.from_raw(raw))

    def test_refuses_vectors(self, attacked):
        batch = attacked(batch=(torch.rand(4, 5), torch.arange(4) % 3))
        with pytest.raises(ValueError, match=r"images \(B, C, H, W\) for 'patch', but got a float32 tensor of shape"):
            PoisonImmunity("patch").step(batch, lambda _: None)

    def test_single_class_is_not_changed(self, attacked):
        batch = attacked(logits=lambda images: images[:, 0, 0, :1])
        assert trained_on(PoisonImmunity("patch"), batch) is batch.inputs


@each_attack
def test_does_not_change_batch_or_module(recipe, network, attacked):
    network.train()
    batch, before = attacked(), copy.deepcopy(network.state_dict())
    images, labels = (part.clone() for part in batch.batch)
    flags = [parameter.requires_grad for parameter in network.parameters()]
    trained_on(recipe, batch)
    assert torch.equal(batch.inputs, images)
    assert torch.equal(batch.labels, labels)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert flags == [parameter.requires_grad for parameter in network.parameters()]
    assert all(part.training for part in network.modules())


@each_attack
def test_preserves_channels_last_and_dtype(recipe, network, attacked):
    network[0] = nn.Conv2d(3, 4, 3)
    images = torch.rand(12, 3, 6, 6).contiguous(memory_format=torch.channels_last)
    network.to(torch.bfloat16)
    found = trained_on(recipe, attacked(batch=(images.bfloat16(), torch.arange(12) % 3)))
    assert found.dtype == torch.bfloat16
    assert found.is_contiguous(memory_format=torch.channels_last)


@each_attack
def test_training_has_gradients_under_autocast(recipe, network, attacked):
    batch = attacked(PGD(0.1, steps=2))

    def training_step(changed):
        assert float((changed[0] - batch.inputs).abs().max()) > 0.05
        return F.cross_entropy(network(changed[0]), changed[1])

    with torch.autocast("cpu", dtype=torch.bfloat16):
        recipe.step(batch, training_step).backward()
    assert all(float(parameter.grad.abs().sum()) > 0 for parameter in network.parameters())


@pytest.mark.parametrize("recipe", [ATTACKS["matching"], ATTACKS["collision"]], ids=["matching", "collision"])
def test_radius_is_in_units_of_raw_image(recipe, attacked):
    pixels, plain = PixelRange(mean=(0.4,), std=(0.2,)), attacked()
    raw = plain.inputs.clamp(0, 1)
    batch = attacked(FGSM(0.1), batch=(pixels.from_raw(raw), plain.labels), pixels=pixels, strength=0.5)
    away = (pixels.to_raw(trained_on(recipe, batch)) - raw).abs()
    assert float(away.max()) == pytest.approx(0.05, abs=1e-5)
    assert float(away[6:].max()) < 1e-6


@pytest.mark.parametrize("recipe", [ATTACKS["matching"], ATTACKS["collision"]], ids=["matching", "collision"])
def test_single_sample_is_not_changed(recipe, attacked):
    batch = attacked(batch=(torch.rand(1, 1, 6, 6), torch.tensor([1])))
    assert trained_on(recipe, batch) is batch.inputs


def test_matching_does_not_change_batch_of_one_class(attacked):
    batch = relabeled(attacked, [2] * 12)
    assert trained_on(PoisonImmunity(), batch) is batch.inputs
    assert not torch.equal(trained_on(ATTACKS["collision"], batch), batch.inputs)
    assert not torch.equal(trained_on(ATTACKS["patch"], batch), batch.inputs)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "ranks"), [(2, 2), (3, 3), (12, 2), (12, 3)])
@each_attack
def test_ranks_match_single_rank(recipe, count, ranks, network, attacked, monkeypatch):
    """Samples are interleaved over ranks, which are threads here. Some ranks have no poison or no targets."""
    for name in ("twice_differentiable", "uncompiled"):  # these contexts affect all threads
        monkeypatch.setattr(f"lightning_poison.adversarial.poison_immunity.{name}", nullcontext)
    images, labels = (part[:count] for part in attacked().batch)
    random_start = PGD(0.1, steps=3)
    whole = trained_on(recipe, attacked(random_start, batch=(images, labels)))
    barrier, summands = threading.Barrier(ranks), [None] * ranks

    def run(rank):
        def sum_over_ranks(tensor):
            summands[rank] = tensor.clone()
            barrier.wait()
            summed = torch.stack(summands).sum(0)
            barrier.wait()
            return summed

        own, twin = (images[rank::ranks], labels[rank::ranks]), copy.deepcopy(network)
        options = {"module": twin, "logits": twin, "part": (rank, ranks), "sum_over_ranks": sum_over_ranks}
        try:
            return trained_on(recipe, attacked(random_start, batch=own, **options))
        except BaseException:
            barrier.abort()  # the other ranks would wait forever
            raise

    with ThreadPoolExecutor(ranks) as threads:
        parts = list(threads.map(run, range(ranks)))
    for rank, part in enumerate(parts):
        torch.testing.assert_close(part, whole[rank::ranks], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attack": "metapoison"}, "`attack` to be one of 'gradient-matching', 'feature-collision', 'patch', but got"),
        ({"share": 1}, r"`share` to be a number in \(0, 1\)"),
        ({"layers": "4"}, "`layers` to be a list of layer names, but got '4'"),
        ({"layers": []}, "`layers` to be a list of layer names"),
        ({"attack": "feature-collision"}, "`layers` to be a list of layer names, but got None"),
        ({"attack": "patch", "layers": ["4"]}, "omitted for 'patch'"),
    ],
)
def test_refuses_settings_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        PoisonImmunity(**options)


def test_refuses_unknown_layer(attacked):
    for recipe in (PoisonImmunity(layers=["head"]), PoisonImmunity("feature-collision", layers=["head"])):
        with pytest.raises(ValueError, match=r"one of the layers of Sequential \(0, 1, 2, 3, 4\), but got 'head'"):
            recipe.step(attacked(), lambda _: None)


@pytest.mark.parametrize("labels", [torch.rand(12), torch.zeros(12, 6, 6).long()])
def test_refuses_labels_without_classes(labels, attacked):
    batch = attacked(batch=(attacked().inputs, labels))
    for recipe in (ATTACKS["matching"], ATTACKS["patch"]):
        with pytest.raises(ValueError, match=r"class indices \(B,\), or probabilities \(B, C\), .*but got a"):
            recipe.step(batch, lambda _: None)


def test_repr_shows_settings():
    assert repr(ATTACKS["collision"]) == "PoisonImmunity('feature-collision', share=0.5, layers=('3',))"
