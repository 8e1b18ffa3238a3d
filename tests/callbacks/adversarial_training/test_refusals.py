"""Errors are raised before the first step."""

import lightning.pytorch as pl
import pytest
import pytorch_lightning
import torch
import torch.nn.functional as F
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_poison._lightning.adversarial_step import refuse_strategy
from lightning_poison.adversarial.adversaries import FGSM, PGD
from lightning_poison.adversarial.free import Free
from lightning_poison.adversarial.recipes import Madry
from lightning_poison.adversarial.trades import TRADES
from lightning_poison.callbacks.adversarial_training import AdversarialTraining
from lightning_poison.data.pixel_range import PixelRange
from lightning_poison.data.sample_spec import SampleSpec

IMAGES, LABELS = torch.full((8, 1, 6, 6), 0.5), torch.arange(8) % 3
RECIPES = [Madry(), TRADES(), Free()]


@pytest.fixture
def refused(kit):
    """Return a function that asserts that training is refused before anything has changed."""

    def fit(batch, error, message, model=None, **options):
        model = model or kit.NoStep()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        callback = AdversarialTraining(**{"adversary": kit.PLAIN, **options})
        running = kit.trainer(callback, log_every_n_steps=0)
        with pytest.raises(error, match=message):
            running.fit(model, DataLoader([batch, batch], batch_size=None))
        assert running.global_step == 0
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        kit.assert_restored(model)

    return fit


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=repr)
@pytest.mark.parametrize(
    ("batch", "options", "error", "message"),
    [
        (
            ((255 * IMAGES).to(torch.uint8), LABELS),
            {},
            ValueError,
            r"floating-point batch .* but got a uint8 tensor of shape \(8, 1, 6, 6\) at '0'.\n.*`v2.ToDtype\(torch.flo",
        ),
        (
            (255 * IMAGES, LABELS),
            {},
            ValueError,
            r"in \[0, 1\], the pixel range, but got values from 128 to 128.\nPass raw images, or state their",
        ),
        (
            (4 * IMAGES - 3, LABELS),
            {},
            ValueError,
            r"in \[0, 1\], the pixel range, but got values from -1 to -1.\n.*`pixels=PixelRange\(mean=..., std=...\)`",
        ),
        (
            (IMAGES, LABELS),
            {"pixels": PixelRange(mean=(0.9,), std=(0.5,))},
            ValueError,
            r"in \[0, 1\], the pixel range, but got values from 1.15 to 1.15",
        ),
        (
            (IMAGES, LABELS),
            {"pixels": PixelRange(mean=(0.5,) * 3, std=(0.2,) * 3)},
            ValueError,
            r"with the 3 channels of `mean`, but got a float32 tensor of shape \(8, 1, 6, 6\)",
        ),
        (
            (IMAGES * torch.nan, LABELS),
            {},
            ValueError,
            r"in \[0, 1\], the pixel range, but got values from nan to nan",
        ),
        (
            (IMAGES, LABELS),
            {"sample": SampleSpec("image", "1")},
            ValueError,
            r"a part at `image`, but there is no 'image' among: 0, 1.\n.*`sample=SampleSpec",
        ),
        (
            (["a"] * 8, LABELS),
            {"sample": SampleSpec()},
            ValueError,
            r"`inputs` to be a floating-point batch \(B, ...\), but got list at '0'",
        ),
        ((IMAGES,), {}, ValueError, r"one integer label, but got\n +0: a float32 tensor of shape .*\n.*SampleSpec"),
        (IMAGES, {}, ValueError, r"one integer label, but got\n"),
        (
            (IMAGES, None),
            {"sample": SampleSpec()},
            ValueError,
            r"one for each of 8 samples, but got None at '1'.\nName the parts by their paths",
        ),
        (
            (IMAGES, LABELS[:5]),
            {"sample": SampleSpec()},
            ValueError,
            r"one for each of 8 samples, but got a int64 tensor of shape \(5,\) at '1'",
        ),
        (
            (IMAGES, LABELS / 3),
            {"sample": SampleSpec()},
            ValueError,
            r"class indices \(B,\), or probabilities \(8, 3\), but got a float32 tensor of shape \(8,\).\n.*`loss=`",
        ),
        (
            (IMAGES, LABELS[:, None]),
            {"sample": SampleSpec()},
            ValueError,
            r"class indices \(B,\), or probabilities \(8, 3\), but got a int64 tensor of shape \(8, 1\)",
        ),
        (
            (IMAGES, LABELS),
            {"loss": F.cross_entropy},
            ValueError,
            r"a loss for each of the 8 images, but got a float32 tensor of shape \(\).\n.*`reduction=\"none\"`",
        ),
    ],
    ids=[
        "integer images", "gray levels", "normalized but not declared", "other normalization", "other channels", "NaN",
        "no part at the path", "text at the path", "no labels", "images alone", "labels of none", "too few labels",
        "labels between classes", "labels in a column", "a loss of the batch",
    ],
)  # fmt: skip
def test_refuses_invalid_batches(refused, batch, options, error, message, recipe):
    refused(batch, error, message, recipe=recipe, **options)


class Forwards:
    """Forward methods without a gradient with respect to the inputs."""

    def no_grad(self, images):
        with torch.no_grad():
            return self.net(images)

    @torch.inference_mode()
    def inference_mode(self, images):
        return self.net(images)

    def detached(self, images):
        return self.net(images.detach())

    def hard(self, images):
        return F.one_hot(self.net(images).argmax(1), 3).float()

    def blind(self, images):
        return self.net(torch.zeros_like(images)) + self.offset

    def rounded(self, images):
        return self.net((images > 0.5).float())


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=repr)
@pytest.mark.parametrize("name", ["no_grad", "inference_mode", "detached", "hard", "blind", "rounded"])
def test_refuses_a_forward_without_input_gradient(kit, refused, name, recipe):
    class Cut(kit.NoStep, Forwards):
        offset = nn.Parameter(torch.zeros(1))

        def forward(self, images):
            return getattr(self, name)(images)

    message = (
        "differentiable in the images, but got one that is not.\n"
        "Remove operations without a gradient: `detach`, `argmax`, `torch.no_grad`, `torch.inference_mode`"
    )
    refused((IMAGES, LABELS), ValueError, message, Cut(), recipe=recipe)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=repr)
@pytest.mark.parametrize(
    ("logits", "error", "message"),
    [
        (
            "net.2",
            ValueError,
            r"`logits` to be \(8, C\), one row per sample, but got a float32 tensor of shape \(8, 1, 6, 6\)",
        ),
        ("classes", ValueError, r"`logits` to be \(8, C\), one row per sample, but got a int64 tensor of shape \(8,\)"),
        ("text", TypeError, r"`logits` to be a tensor, .* but got 'no logits'.\nName the source: `logits=`"),
        (
            "net.absent",
            ValueError,
            r"`logits` to be a submodule or a method of Odd, but got 'net.absent'.\nName the source",
        ),
    ],
)
def test_refuses_sources_without_logits(kit, refused, logits, error, message, recipe):
    class Odd(kit.NoStep):
        def classes(self, images):
            return self.net(images).argmax(1)

        def text(self, images):
            return "no logits"

    refused((IMAGES, LABELS), error, message, Odd(), recipe=recipe, logits=logits)


@pytest.mark.parametrize("recipe", RECIPES, ids=repr)
def test_refuses_probabilities(kit, refused, recipe):
    class Soft(kit.NoStep):
        def forward(self, images):
            return self.net(images).softmax(1)

    message = r"Expected logits, but got probabilities: .*\nName the layer .*, `logits='net'`, or pass a `loss`"
    refused((IMAGES, LABELS), ValueError, message, Soft(), recipe=recipe)


@pytest.mark.parametrize(
    "options", [{"logits": "net"}, {"loss": lambda read, labels: F.nll_loss(read.log(), labels, reduction="none")}]
)
def test_solutions_if_forward_returns_probabilities(kit, options):
    class Soft(kit.Plain):
        def forward(self, images):
            return self.net(images).softmax(1)

        def training_step(self, batch, batch_idx):
            return F.nll_loss(self(batch[0]).log(), batch[1])

    model = Soft()
    kit.trainer(AdversarialTraining(kit.PLAIN, **options)).fit(model, kit.loader())
    kit.assert_same(model.net, kit.by_hand()[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guard": False}, r"`guard` to be a `CollapseGuard`, but got the bool False.\nWrite .*`guard=None`"),
        (
            {"pixels": ((0.5,), (0.5,))},
            r"`pixels` to be a `PixelRange`, but got .*\nWrite `pixels=PixelRange\(",
        ),
        ({"sample": ("0", "1")}, r"`sample` to be a `SampleSpec`, but got .*\nWrite `sample=SampleSpec\("),
        ({"logits": 3}, r"`logits` to be a name, or a function of module and inputs, but got 3.\nWrite `logits='net'`"),
        ({"loss": "cross_entropy"}, r"`loss` to be a function of logits and labels, but got 'cross_entropy'.\nWrite"),
    ],
)
def test_refuses_settings_of_another_type(kit, options, message):
    with pytest.raises(TypeError, match=message):
        AdversarialTraining(kit.PLAIN, **options)


def test_refuses_swapped_paths(refused):
    message = r"floating-point batch .* but got a int64 tensor of shape \(8,\) at '1'.\nName the parts by their paths"
    refused((IMAGES, LABELS), ValueError, message, sample=SampleSpec("1", "0"))


def test_refuses_a_module_without_forward(kit, refused):
    class Headless(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = kit.make_net()

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    refused((IMAGES, LABELS), TypeError, "but it has none.\n.*`logits=` takes the name", Headless())
    model = Headless()
    kit.trainer(AdversarialTraining(kit.PLAIN, logits="net")).fit(model, kit.loader())
    kit.assert_same(model.net, kit.by_hand()[0])


class TestInferenceMode:
    def test_training_in_inference_mode(self, kit):
        with torch.inference_mode(), pytest.raises(RuntimeError, match=r"but got `torch.inference_mode` or a tensor"):
            kit.trainer(AdversarialTraining(kit.PLAIN)).fit(kit.NoStep(), kit.loader())

    def test_batches_created_in_inference_mode(self, refused):
        with torch.inference_mode():
            batch = IMAGES.clone(), LABELS.clone()
        refused(batch, RuntimeError, r"a tensor made in it.\nWrite `Trainer\(inference_mode=False\)`, or .* clone")

    def test_step_in_inference_mode(self, kit):
        """The error is the same without an attack."""

        class Odd(kit.Plain):
            @torch.inference_mode()
            def training_step(self, batch, batch_idx):
                return super().training_step(batch, batch_idx)

        for callbacks in ([], [AdversarialTraining(kit.PLAIN)]):
            with pytest.raises(RuntimeError, match="does not require grad"):
                kit.trainer(*callbacks).fit(Odd(), kit.loader())


class TestStrategies:
    @pytest.mark.parametrize("namespace", [pl, pytorch_lightning])
    @pytest.mark.parametrize("name", ["FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy"])
    def test_refuses_strategies_that_shard_the_module(self, namespace, name):
        class UserStrategy(getattr(namespace.strategies, name)):
            pass

        with pytest.raises(ValueError, match=r"keeps all parameters on each rank, but got UserStrategy.\n.*Use `ddp`"):
            refuse_strategy(UserStrategy)

    @pytest.mark.parametrize("name", ["XLAStrategy", "SingleDeviceXLAStrategy"])
    def test_refuses_xla_strategies(self, name):
        with pytest.raises(ValueError, match=f"on a CPU or a GPU, but got {name}.\nGradients inside the step"):
            refuse_strategy(getattr(pl.strategies, name))

    @pytest.mark.parametrize("task", ["fit", "validate", "test"])
    def test_refuses_before_training_and_evaluation(self, kit, task):
        class FSDPStrategy(SingleDeviceStrategy):
            pass

        callback, model = AdversarialTraining(kit.PLAIN, validation=kit.PLAIN), kit.Evaluated()
        running = kit.trainer(callback, strategy=FSDPStrategy("cpu"), accelerator="auto")
        with pytest.raises(ValueError, match="but got FSDPStrategy"):
            getattr(running, task)(model, *[kit.loader()] * (1 + (task == "fit")))
        assert not model.seen
        kit.assert_restored(model)

    @pytest.mark.parametrize("task", ["validate", "predict"])
    def test_accepts_if_nothing_is_attacked(self, kit, task):
        class FSDPStrategy(SingleDeviceStrategy):
            pass

        running = kit.trainer(AdversarialTraining(kit.PLAIN), strategy=FSDPStrategy("cpu"), accelerator="auto")
        getattr(running, task)(kit.Evaluated(), kit.loader() if task == "validate" else DataLoader(IMAGES))


@pytest.mark.filterwarnings("ignore:You are using the `dataloader_iter` step flavor")
@pytest.mark.filterwarnings("ignore:Found `dataloader_iter` argument in the `training_step`:UserWarning")
def test_refuses_a_step_with_dataloader_iter(kit):
    class Iterating(kit.Plain):
        def training_step(self, dataloader_iter):
            pytest.fail("ran a step")

    with pytest.raises(TypeError, match=r"takes `dataloader_iter`.\nUse the signature `\(self, batch, batch_idx\)`"):
        kit.trainer(AdversarialTraining(kit.PLAIN)).fit(Iterating(), kit.loader())


class TestRecipes:
    def test_trades_refuses_manual_optimization(self, kit, refused):
        model = kit.Manual()
        refused((IMAGES, LABELS), ValueError, "Manual with manual optimization.\nUse `Madry", model, recipe=TRADES())
        assert not model.seen

    def test_free_refuses_a_step_that_detaches(self, kit, refused):
        class Detaching(kit.Plain):
            def training_step(self, batch, batch_idx):
                return F.cross_entropy(self.net[5](batch[0].detach().flatten(1).repeat(1, 2)[:, :64]), batch[1])

        message = "whose loss has a gradient in the inputs, but got one that has none.\nDo not detach"
        refused((IMAGES, LABELS), ValueError, message, Detaching(), recipe=Free())

    def test_free_refuses_other_norms(self, refused):
        message = "'linf' for `Free`, but got 'l2'"
        refused((IMAGES, LABELS), ValueError, message, recipe=Free(), adversary=PGD(1.0, norm="l2"))

    def test_guard_refuses_labels_that_are_not_classes(self, kit, refused):
        def squares(logits, labels):
            return (logits.mean(1) - labels).square()

        message = "labels that are a float32 tensor of shape .8,..\nWrite `guard=None`, or use an adversary"
        refused((IMAGES, LABELS / 3), ValueError, message, loss=squares, sample=SampleSpec(), adversary=FGSM(0.1))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"adversary": 8 / 255},
            TypeError,
            r"`adversary` .* but got the float 0.031.*\nWrite `AdversarialTraining\(PGD\(8 / 255\)\)`",
        ),
        (
            {"adversary": PGD},
            TypeError,
            r"`adversary` to be an object with the method `perturb`, but got the class PGD",
        ),
        (
            {"validation": 0.1},
            TypeError,
            r"`validation` .*`perturb`, but got the float 0.1.\nWrite `validation=PGD\(8 / 255\)`",
        ),
        ({"recipe": "TRADES"}, TypeError, r"`recipe` .*`step`, but got the str 'TRADES'.\nWrite `recipe=TRADES\(\)`"),
        ({"recipe": TRADES}, TypeError, r"`recipe` to be an object with the method `step`, but got the class TRADES"),
        ({"warm_up_epochs": -1}, ValueError, "`warm_up_epochs`"),
        ({"validation_batches": 0}, ValueError, "`validation_batches`"),
        ({"seed": -1}, ValueError, "`seed`"),
    ],
)
def test_refuses_settings_out_of_range(kit, options, error, message):
    with pytest.raises(error, match=message):
        AdversarialTraining(**{"adversary": kit.PLAIN, **options})


@pytest.mark.parametrize(
    "make", [lambda: PGD(8), lambda: FGSM(8), lambda: PGD(8 / 255, 2), lambda: PGD(8, norm="linf")]
)
def test_refuses_a_radius_or_step_in_gray_levels(make):
    with pytest.raises(
        ValueError, match=r"in \(0, 1\], the range of the images, but got [28].\n.* gray levels write `"
    ):
        make()


def test_refuses_a_later_batch_out_of_range(kit):
    images = torch.cat([IMAGES, 255 * IMAGES])
    model = kit.Plain()
    with pytest.raises(ValueError, match=r"but got values from 128 to 128"):
        kit.trainer(AdversarialTraining(kit.PLAIN)).fit(model, kit.loader(TensorDataset(images, LABELS.repeat(2))))
    assert len(model.seen) == 1
    kit.assert_restored(model)


MULTI = (torch.arange(24).reshape(8, 3) % 5 < 2).float()


@pytest.mark.parametrize("recipe", RECIPES, ids=repr)
@pytest.mark.parametrize("sample", [None, SampleSpec()], ids=["detected", "named"])
def test_refuses_multi_label_targets_under_the_default_loss(refused, recipe, sample):
    """A softmax would be attacked, but the module is trained with another loss."""
    refused((IMAGES, MULTI), ValueError, "as in multi-label.*\n.*pass the loss of", recipe=recipe, sample=sample)


def test_refuses_a_forward_with_more_arguments(refused, kit):
    class TwoArguments(kit.NoStep):
        def forward(self, inputs, labels):
            return F.cross_entropy(super().forward(inputs), labels)

    message = r"`logits` to be what TwoArguments returns for inputs alone, but got .*`forward\(inputs, labels\)`.\nName"
    refused((IMAGES, LABELS), TypeError, message, model=TwoArguments())


class MultiLabel(pl.LightningModule):
    """Outputs for three labels, of which several may be true."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(36, 3)

    def forward(self, inputs):
        return self.layer(inputs.flatten(1))

    def training_step(self, batch, batch_idx):
        return F.binary_cross_entropy_with_logits(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def each_binary_cross_entropy(logits, labels):
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1)


@pytest.mark.parametrize("recipe", [Madry(), Free()], ids=repr)
def test_multi_label_targets_with_their_own_loss(kit, recipe):
    callback = AdversarialTraining(kit.PLAIN, recipe=recipe, loss=each_binary_cross_entropy)
    running = kit.trainer(callback)
    running.fit(MultiLabel(), DataLoader([(IMAGES, MULTI)] * 2, batch_size=None))
    assert running.global_step == 2
    assert "train/robust_loss" in running.callback_metrics
    assert "train/robust_accuracy" not in running.callback_metrics
