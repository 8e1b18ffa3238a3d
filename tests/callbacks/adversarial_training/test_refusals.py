"""What cannot work is said before the first step: what was expected, what came, and the way out."""

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
    """Return a function that trains on one batch, and holds that it was refused before anything had changed."""

    def fit(batch, error, message, model=None, **options):
        model = model or kit.Unstepped()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        callback = AdversarialTraining(**{"adversary": kit.PLAIN, **options})
        running = kit.trainer(callback, log_every_n_steps=0)
        with pytest.raises(error, match=message):
            running.fit(model, DataLoader([batch, batch], batch_size=None))
        assert running.global_step == 0
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        kit.assert_as_before(model)

    return fit


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
            r"in \[0, 1\], the pixel range, but got values from 128 to 128.\nHand in raw images, or say how these are",
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
        "integer images", "gray levels", "normalized and not said so", "normalized otherwise", "other channels", "NaN",
        "no part at the path", "text at the path", "no labels", "images alone", "labels of none", "too few labels",
        "labels between classes", "labels in a column", "a loss of the batch",
    ],
)  # fmt: skip
def test_batches(refused, batch, options, error, message, recipe):
    refused(batch, error, message, recipe=recipe, **options)


class Forwards:
    """Modules whose forward has no gradient in its inputs, each in another way."""

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


@pytest.mark.parametrize("recipe", RECIPES, ids=repr)
@pytest.mark.parametrize("name", ["no_grad", "inference_mode", "detached", "hard", "blind", "rounded"])
def test_a_forward_without_a_gradient_in_its_inputs(kit, refused, name, recipe):
    class Cut(kit.Unstepped, Forwards):
        offset = nn.Parameter(torch.zeros(1))

        def forward(self, images):
            return getattr(self, name)(images)

    message = (
        "differentiable in the images, but got one that is not.\n"
        "Leave out what cuts gradients off: `detach`, `argmax`, `torch.no_grad`, `torch.inference_mode`"
    )
    refused((IMAGES, LABELS), ValueError, message, Cut(), recipe=recipe)


@pytest.mark.parametrize("recipe", RECIPES, ids=repr)
@pytest.mark.parametrize(
    ("logits", "error", "message"),
    [
        (
            "net.2",
            ValueError,
            r"`logits` to be \(8, C\), a row a sample, but got a float32 tensor of shape \(8, 1, 6, 6\)",
        ),
        ("classes", ValueError, r"`logits` to be \(8, C\), a row a sample, but got a int64 tensor of shape \(8,\)"),
        ("text", TypeError, r"`logits` to be a tensor, .* but got 'no logits'.\nName what returns them: `logits=`"),
        ("net.absent", ValueError, r"`logits` to be a submodule or a method of Odd, but got 'net.absent'.\nName what"),
    ],
)
def test_what_returns_no_logits(kit, refused, logits, error, message, recipe):
    class Odd(kit.Unstepped):
        def classes(self, images):
            return self.net(images).argmax(1)

        def text(self, images):
            return "no logits"

    refused((IMAGES, LABELS), error, message, Odd(), recipe=recipe, logits=logits)


@pytest.mark.parametrize("recipe", RECIPES, ids=repr)
def test_probabilities_in_the_place_of_logits(kit, refused, recipe):
    class Soft(kit.Unstepped):
        def forward(self, images):
            return self.net(images).softmax(1)

    message = r"Expected logits, but got probabilities: .*\nName what returns logits: `logits='net'`; or give a `loss`"
    refused((IMAGES, LABELS), ValueError, message, Soft(), recipe=recipe)


@pytest.mark.parametrize(
    "options", [{"logits": "net"}, {"loss": lambda read, labels: F.nll_loss(read.log(), labels, reduction="none")}]
)
def test_ways_out_where_forward_returns_probabilities(kit, options):
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
def test_settings_of_another_kind(kit, options, message):
    with pytest.raises(TypeError, match=message):
        AdversarialTraining(kit.PLAIN, **options)


def test_paths_that_are_the_wrong_way_round(refused):
    message = r"floating-point batch .* but got a int64 tensor of shape \(8,\) at '1'.\nName the parts by their paths"
    refused((IMAGES, LABELS), ValueError, message, sample=SampleSpec("1", "0"))


def test_a_module_without_forward(kit, refused):
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


class TestInferenceModeInTheWay:
    def test_around_a_training(self, kit):
        with torch.inference_mode(), pytest.raises(RuntimeError, match=r"but got `torch.inference_mode` or a tensor"):
            kit.trainer(AdversarialTraining(kit.PLAIN)).fit(kit.Unstepped(), kit.loader())

    def test_batches_that_were_made_in_it(self, refused):
        with torch.inference_mode():
            batch = IMAGES.clone(), LABELS.clone()
        refused(batch, RuntimeError, r"a tensor made in it.\nWrite `Trainer\(inference_mode=False\)`, or .* clone")

    def test_a_step_that_is_in_it_itself(self, kit):
        """That is an error without an attack too; the attack does not hide it."""

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
    def test_those_that_shard_the_module(self, namespace, name):
        class OfTheUser(getattr(namespace.strategies, name)):
            pass

        with pytest.raises(ValueError, match=r"parameters whole on each rank, but got OfTheUser.\n.*Use `ddp`"):
            refuse_strategy(OfTheUser)

    @pytest.mark.parametrize("name", ["XLAStrategy", "SingleDeviceXLAStrategy"])
    def test_those_of_xla(self, name):
        with pytest.raises(ValueError, match=f"on a CPU or a GPU, but got {name}.\nNo test covers"):
            refuse_strategy(getattr(pl.strategies, name))

    @pytest.mark.parametrize("task", ["fit", "validate", "test"])
    def test_before_anything_is_trained_or_measured(self, kit, task):
        class FSDPStrategy(SingleDeviceStrategy):
            pass

        callback, model = AdversarialTraining(kit.PLAIN, validation=kit.PLAIN), kit.Evaluated()
        running = kit.trainer(callback, strategy=FSDPStrategy("cpu"), accelerator="auto")
        with pytest.raises(ValueError, match="but got FSDPStrategy"):
            getattr(running, task)(model, *[kit.loader()] * (1 + (task == "fit")))
        assert not model.seen
        kit.assert_as_before(model)

    @pytest.mark.parametrize("task", ["validate", "predict"])
    def test_not_where_there_is_nothing_to_attack(self, kit, task):
        class FSDPStrategy(SingleDeviceStrategy):
            pass

        running = kit.trainer(AdversarialTraining(kit.PLAIN), strategy=FSDPStrategy("cpu"), accelerator="auto")
        getattr(running, task)(kit.Evaluated(), kit.loader() if task == "validate" else DataLoader(IMAGES))


@pytest.mark.filterwarnings("ignore:You are using the `dataloader_iter` step flavor")
@pytest.mark.filterwarnings("ignore:Found `dataloader_iter` argument in the `training_step`:UserWarning")
def test_a_step_that_takes_an_iterator_over_batches(kit):
    class Iterating(kit.Plain):
        def training_step(self, dataloader_iter):
            pytest.fail("a step was taken")

    with pytest.raises(TypeError, match=r"takes `dataloader_iter`.\nLet it take `\(self, batch, batch_idx\)`"):
        kit.trainer(AdversarialTraining(kit.PLAIN)).fit(Iterating(), kit.loader())


class TestRecipes:
    def test_trades_under_manual_optimization(self, kit, refused):
        model = kit.Manual()
        refused((IMAGES, LABELS), ValueError, "a Manual that optimizes by itself.\nUse `Madry", model, recipe=TRADES())
        assert not model.seen

    def test_free_with_a_step_that_detaches(self, kit, refused):
        class Detaching(kit.Plain):
            def training_step(self, batch, batch_idx):
                return F.cross_entropy(self.net[5](batch[0].detach().flatten(1).repeat(1, 2)[:, :64]), batch[1])

        message = "whose loss has a gradient in the inputs, but got one that has none.\nDo not detach"
        refused((IMAGES, LABELS), ValueError, message, Detaching(), recipe=Free())

    def test_free_in_another_norm(self, refused):
        message = "'linf' for `Free`, but got 'l2'"
        refused((IMAGES, LABELS), ValueError, message, recipe=Free(), adversary=PGD(1.0, norm="l2"))

    def test_a_guard_that_cannot_tell_what_is_read(self, kit, refused):
        def squares(logits, labels):
            return (logits.mean(1) - labels).square()

        message = "labels that are a float32 tensor of shape .8,..\nWrite `guard=None`, or take several steps"
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
def test_settings_that_cannot_be(kit, options, error, message):
    with pytest.raises(error, match=message):
        AdversarialTraining(**{"adversary": kit.PLAIN, **options})


@pytest.mark.parametrize(
    "make", [lambda: PGD(8), lambda: FGSM(8), lambda: PGD(8 / 255, 2), lambda: PGD(8, norm="linf")]
)
def test_a_radius_or_a_step_in_gray_levels(make):
    with pytest.raises(
        ValueError, match=r"in \(0, 1\], the range of the images, but got [28].\n.* gray levels write `"
    ):
        make()


def test_a_later_batch_out_of_range_is_named_too(kit):
    images = torch.cat([IMAGES, 255 * IMAGES])
    model = kit.Plain()
    with pytest.raises(ValueError, match=r"but got values from 128 to 128"):
        kit.trainer(AdversarialTraining(kit.PLAIN)).fit(model, kit.loader(TensorDataset(images, LABELS.repeat(2))))
    assert len(model.seen) == 1
    kit.assert_as_before(model)
