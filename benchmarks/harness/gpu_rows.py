"""The measurements of `on_gpu.py`. Each runs in a process of its own, and on the CPU if it is to be tried."""

import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
import torchvision
from scoring_overhead import measure, quick_scorer, score_with_library
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from harness.datasets import LabeledImages, cifar_files, read_images
from harness.device_use import DeviceUse, ObservedRuntime, smi_command
from harness.runs import Figures, silence_lightning
from lightning_poison import AdversarialTraining, sanitize
from lightning_poison.adversarial import PGD
from lightning_poison.contexts import evaluating
from lightning_poison.runtime import LocalRuntime

ROOT = Path(__file__).parents[2]
EPSILON, STEP_SIZE = 8 / 255, 2 / 255
BATCH, EPOCHS = 128, 30


@dataclass(frozen=True)
class Setting:
    """Where to measure, and how much.

    Args:
        device: `"cuda"`, or `"cpu"` to try the code.
        quick: Whether to run on a few images, to try the code; the figures mean nothing then.
        data_root: Folder with CIFAR-10 as JPEG files.
    """

    device: str
    quick: bool
    data_root: Path | None

    @property
    def is_cuda(self) -> bool:
        return self.device == "cuda"

    def images(self, count: int) -> LabeledImages:
        """Return images of CIFAR-10 in memory, in random order; few if this is quick."""
        if self.data_root is None:
            raise ValueError("needs --data-root, a folder with cifar10/train/CLASS/*.jpg")
        paths, labels = cifar_files(self.data_root, train=True, classes=range(10))
        chosen = torch.randperm(len(paths), generator=torch.Generator().manual_seed(0))
        chosen = chosen[: min(count, 60) if self.quick else count]
        return read_images([paths[index] for index in chosen.tolist()]), labels[chosen]

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.is_cuda:
            torch.cuda.synchronize()


def gpu_tests(setting: Setting) -> Figures:
    """Run the tests with the marker `gpu`; if this is quick, a few that need no GPU."""
    marked = [
        path
        for folder in ("tests", "plugins")
        for path in sorted((ROOT / folder).rglob("test_*.py"))
        if re.search(r"\bmarks?\.gpu\b", path.read_text())
    ]
    chosen = ["-m", "not gpu and not slow", marked[0]] if setting.quick else ["-m", "gpu", *marked]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, chosen)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode not in (0, 1):
        raise RuntimeError(f"pytest ended with {done.returncode}: {(done.stdout + done.stderr).strip()[-300:]}")
    print(done.stdout[-4000:])
    summary = done.stdout.strip().splitlines()[-1]
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|error)", summary)}
    return {"passed": counts.get("passed", 0), "failed": counts.get("failed", 0) + counts.get("error", 0)}


def default_sanitizing(setting: Setting) -> Figures:
    """Time `sanitize(data)` with the default scorer and nothing trusted, and how busy the device is meanwhile."""
    data = TensorDataset(*setting.images(50_000))
    runtime = ObservedRuntime(setting.device)
    setting.synchronize()  # the driver is started before
    with DeviceUse(smi_command() if setting.is_cuda else None) as use:
        begin = time.perf_counter()
        verdict = sanitize(data, runtime=runtime)
        seconds = time.perf_counter() - begin
    return {
        "images": len(data),
        "seconds": seconds,
        "busy": use.busy(runtime.spans()),
        "busy_in_all": use.busy(),
        "parts": runtime.seconds(),
        "removed": int((~verdict.keep).sum()),
    }


def resnet18() -> nn.Module:
    """Return torchvision's ResNet-18 with the first layers that are usual for 32 x 32 images."""
    network = torchvision.models.resnet18(num_classes=10)
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network.to(memory_format=torch.channels_last)  # type: ignore[no-any-return]


class Classifier(pl.LightningModule):
    """A user's module."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images.contiguous(memory_format=torch.channels_last))
        return logits

    def training_step(self, batch: LabeledImages) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)


class AttackedByHand(Classifier):
    """The same module with the attack written out in its training step."""

    def __init__(self, network: nn.Module, steps: int) -> None:
        super().__init__(network)
        self.steps = steps

    def training_step(self, batch: LabeledImages) -> Tensor:
        images, labels = batch
        with evaluating(self):
            perturbed = (images + EPSILON * (2 * torch.rand_like(images) - 1)).clamp(0, 1)
            for _ in range(self.steps):
                perturbed.requires_grad_()
                loss = F.cross_entropy(self(perturbed), labels, reduction="sum")
                (gradient,) = torch.autograd.grad(loss, perturbed)
                perturbed = perturbed.detach() + STEP_SIZE * gradient.sign()
                perturbed = torch.minimum(torch.maximum(perturbed, images - EPSILON), images + EPSILON).clamp(0, 1)
        return super().training_step((perturbed.detach(), labels))


class Stopwatch(pl.Callback):
    """Times all batches of a fit but the first ones."""

    def __init__(self, setting: Setting, skipped: int) -> None:
        self.setting, self.skipped = setting, skipped
        self.seconds = 0.0
        self.batches = 0

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.skipped:
            self.setting.synchronize()
            self._begin = time.perf_counter()

    def on_train_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.setting.synchronize()
        self.seconds = time.perf_counter() - self._begin
        self.batches = trainer.global_step - self.skipped


def train(
    setting: Setting,
    module: pl.LightningModule,
    data: TensorDataset,
    *callbacks: pl.Callback,
    batch: int,
    skipped: int,
    steps: int,
) -> float:
    """Train for `skipped` steps and `steps` more in a Trainer, and return the seconds of one of the latter."""
    loader = DataLoader(
        data,
        batch,
        shuffle=True,
        drop_last=True,
        num_workers=4 if setting.is_cuda else 0,
        pin_memory=setting.is_cuda,
        persistent_workers=setting.is_cuda,
        generator=torch.Generator().manual_seed(0),
    )
    watch = Stopwatch(setting, skipped)
    trainer = pl.Trainer(
        accelerator="gpu" if setting.is_cuda else "cpu", devices=1, precision="bf16-mixed" if setting.is_cuda else 32,
        max_steps=skipped + steps, callbacks=[*callbacks, watch], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, loader)
    return watch.seconds / watch.batches


def ordinary_training(setting: Setting) -> Figures:
    """Time two epochs of ResNet-18, after a first one, and extrapolate to 30 epochs."""
    silence_lightning()
    data, batch = TensorDataset(*setting.images(50_000)), 8 if setting.quick else BATCH
    epoch = len(data) // batch
    skipped, steps = (1, 2) if setting.quick else (epoch, 2 * epoch)
    per_step = train(setting, Classifier(resnet18()), data, batch=batch, skipped=skipped, steps=steps)
    return {"images": len(data), "epoch_s": epoch * per_step, "seconds": EPOCHS * epoch * per_step}


def adversarial_training(setting: Setting) -> Figures:
    """Time steps of PGD-10 training of a compiled ResNet-18, with the callback and by hand, in alternation."""
    silence_lightning()
    data, batch = TensorDataset(*setting.images(20_000)), 4 if setting.quick else BATCH
    attack_steps, skipped, steps, turns = (1, 1, 2, 1) if setting.quick else (10, 15, 50, 3)
    network = resnet18()
    if setting.is_cuda:
        network = torch.compile(network)  # type: ignore[assignment]
    ways: dict[str, Callable[[], tuple[pl.LightningModule, list[pl.Callback]]]] = {
        "callback": lambda: (
            Classifier(network),
            [AdversarialTraining(PGD(EPSILON, STEP_SIZE, steps=attack_steps))],
        ),
        "by_hand": lambda: (AttackedByHand(network, attack_steps), []),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(turns):
        for way in list(ways)[:: -1 if turn % 2 else 1]:
            module, callbacks = ways[way]()
            seconds[way].append(train(setting, module, data, *callbacks, batch=batch, skipped=skipped, steps=steps))
    ratios = [one / other for one, other in zip(seconds["callback"], seconds["by_hand"], strict=True)]
    return {**{f"{way}_ms": [1000 * each for each in seconds[way]] for way in ways}, "ratio": statistics.median(ratios)}


def scoring(setting: Setting) -> Figures:
    """Time scoring passes and bare inference loops over images in memory, in alternation."""
    images, labels = setting.images(10_000)
    data, runtime = TensorDataset(images, labels), LocalRuntime(setting.device, quiet=True)
    few = TensorDataset(images[:2_000], labels[:2_000])
    scorer = quick_scorer(few, runtime=runtime)
    found = measure(data, scorer, score_with_library, repeats=2 if setting.quick else 9, runtime=runtime)
    return {"ratio": found["ratio_wall"], "library_s": found["library_wall"], "bare_s": found["bare_wall"]}


MEASUREMENTS: dict[str, Callable[[Setting], Figures]] = {
    "tests": gpu_tests,
    "sanitizing": default_sanitizing,
    "training": ordinary_training,
    "adversarial": adversarial_training,
    "scoring": scoring,
}
