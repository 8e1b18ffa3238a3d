"""`PoisonedDataModule` poisons the training set once, and nothing else."""

from pathlib import Path

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    Sampler,
    SequentialSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from lightning_poison.attacks.objectives import AvailabilityObjective
from lightning_poison.attacks.poison import Poison
from lightning_poison.attacks.threat import Threat
from lightning_poison.errors import PluginError, UnsupportedDataError
from lightning_poison.testing.tiny_images import TinyImages


class Flip:
    """Flips the labels of randomly chosen samples and counts its calls."""

    name = "flip"
    clean_label = False

    def __init__(self):
        self.crafted = 0

    def craft(self, dataset, threat, *, surrogates, holdout, generator):
        self.crafted += 1
        chosen = torch.randperm(len(dataset), generator=generator)[: threat.budget]
        return Poison(chosen, (dataset.targets[chosen] + 1) % 3, AvailabilityObjective(), attack=self.name)


def appended(kit, count=120):
    """Return two appended samples with the inputs of their bases and labels of the attacker."""
    return kit.flips((count, count + 1), (2, 2), base_indices=torch.tensor([0, 3]))


def test_existing_poison(kit):
    module, poison = kit.module(), kit.flips()
    data = kit.poisoned(kit.plain(wrong=0), poison)
    assert data.poison is poison
    kit.trainer(max_epochs=2).fit(module, datamodule=data)
    assert [module.labels[number] for number in range(6)] == [2, 2, 2, 0, 1, 2]
    assert sorted(module.epochs[1]) == list(range(120))


@pytest.mark.parametrize("form", [str, Path])
def test_poison_from_a_file(kit, form):
    kit.flips().save(kit.path / "flips.safetensors")
    data = kit.poisoned(kit.loader(), form(kit.path / "flips.safetensors"))
    assert data.poison.labels.tolist() == [2, 2, 2]
    with pytest.raises(FileNotFoundError):
        kit.poisoned(kit.loader(), form(kit.path / "missing.safetensors"))


def test_attack_draws_once(kit):
    attack, module = Flip(), kit.module()
    data = kit.poisoned(kit.plain(wrong=0), attack, threat=Threat(budget=9))
    assert data.poison is None
    trainer = kit.trainer(max_epochs=3, reload_dataloaders_every_n_epochs=1)
    trainer.fit(module, datamodule=data)
    kit.trainer().fit(kit.module(), datamodule=data)
    assert attack.crafted == 1
    changed = [number for number, label in module.labels.items() if label != number % 3]
    assert sorted(changed) == sorted(data.poison.indices.tolist())
    assert len(changed) == 9


def test_poison_depends_on_the_seed(kit):
    def drawn(seed):
        data = kit.poisoned(kit.loader(), Flip(), threat=Threat(budget=9), seed=seed)
        data.train_dataloader()
        return data.poison.indices.tolist()

    assert drawn(1) == drawn(1) != drawn(2)


def test_global_random_state_is_unchanged(kit):
    torch.manual_seed(0)
    wanted = torch.rand(3)
    torch.manual_seed(0)
    kit.poisoned(kit.loader(), Flip(), threat=Threat(budget=9)).train_dataloader()
    assert torch.equal(torch.rand(3), wanted)


def test_view_is_reused_for_the_same_data_set(kit):
    data = kit.poisoned(kit.loader(), kit.flips())
    assert data.train_dataloader().dataset is data.train_dataloader().dataset


@pytest.mark.slow
@pytest.mark.parametrize("order", ["sequential", "shuffled", "weighted", "batches"])
def test_appended_poison_is_drawn(kit, order):
    dataset = kit.numbered(wrong=0)
    loader = {
        "sequential": lambda: DataLoader(dataset, batch_size=16),
        "shuffled": lambda: DataLoader(dataset, batch_size=16, shuffle=True),
        "weighted": lambda: DataLoader(dataset, sampler=WeightedRandomSampler(torch.ones(120), 120, replacement=False)),
        "batches": lambda: DataLoader(dataset, batch_sampler=BatchSampler(RandomSampler(dataset), 16, drop_last=False)),
    }[order]()
    module = kit.module()
    kit.trainer().fit(module, datamodule=kit.poisoned(loader, appended(kit)))
    assert sorted(module.epochs[0]) == sorted([*range(120), 0, 3])
    assert len(loader.dataset) == 120


def test_appended_poison_has_the_weight_of_its_base(kit):
    weights = torch.arange(1.0, 121)
    loader = DataLoader(kit.numbered(), sampler=WeightedRandomSampler(weights, 120))
    sampler = kit.poisoned(loader, appended(kit)).train_dataloader().sampler
    assert torch.as_tensor(sampler.weights).tolist() == [*weights.tolist(), 1, 4]


class Own(Sampler):
    def __init__(self, data_source):
        self.data_source = data_source

    def __iter__(self):
        return iter(range(0, len(self.data_source), 2))

    def __len__(self):
        return len(self.data_source) // 2


def test_refuses_a_sampler_that_cannot_draw_appended_poison(kit):
    dataset = kit.numbered()
    data = kit.poisoned(DataLoader(dataset, sampler=Own(dataset)), appended(kit))
    with pytest.raises(UnsupportedDataError, match="a sampler that can draw the 2 appended samples, but Own"):
        data.train_dataloader()
    numbers = [
        int(number)
        for _, _, number in kit.poisoned(DataLoader(dataset, sampler=Own(dataset)), kit.flips()).train_dataloader()
    ]
    assert numbers == list(range(0, 120, 2))


class OwnBatches(Sampler):
    def __init__(self, sampler):
        self.sampler = sampler

    def __iter__(self):
        return ([index] for index in self.sampler)

    def __len__(self):
        return len(self.sampler)


def test_refuses_a_batch_sampler_that_cannot_draw_appended_poison(kit):
    dataset = kit.numbered()
    loader = DataLoader(dataset, batch_sampler=OwnBatches(SequentialSampler(dataset)))
    with pytest.raises(UnsupportedDataError, match=r"a batch sampler of torch .*, but got OwnBatches"):
        kit.poisoned(loader, appended(kit)).train_dataloader()


@pytest.mark.parametrize("domain", ["sample", "raw"])
def test_poison_of_both_domains(kit, domain):
    images = TinyImages(12)
    inputs = torch.full((1, 1, 8, 8), 51, dtype=torch.uint8)
    inputs = inputs if domain == "raw" else inputs.float() / 255
    poison = kit.flips((4,), (0,), inputs=inputs, domain=domain)
    served = kit.poisoned(DataLoader(images, batch_size=12), poison).train_dataloader()
    ((batch, labels),) = served
    assert torch.allclose(batch[4], torch.full((1, 8, 8), 0.2))
    assert labels[4] == 0
    assert torch.equal(batch[5], images[5][0])


def test_distributed_sampling_serves_the_poison(kit):
    module = kit.module()
    kit.trainer(strategy="ddp").fit(
        module, datamodule=kit.poisoned(kit.plain(wrong=0), Flip(), threat=Threat(budget=5))
    )
    assert sum(label != number % 3 for number, label in module.labels.items()) == 5


def test_sanitizer_around_it_removes_the_poison(kit):
    attack, module = Flip(), kit.module()
    data = kit.sanitized(kit.poisoned(kit.plain(wrong=0), attack, threat=Threat(budget=12)))
    kit.trainer(max_epochs=2, reload_dataloaders_every_n_epochs=1).fit(module, datamodule=data)
    assert attack.crafted == 1
    assert len(kit.scorer.fits) == 3
    assert torch.equal(~data.verdict.keep, data.poison.is_poison(120))
    assert not set(data.poison.indices.tolist()) & set(module.epochs[0] + module.epochs[1])


def test_poisons_the_kept_samples_of_a_sanitizer(kit):
    module = kit.module()
    data = kit.poisoned(kit.sanitized(kit.plain()), kit.flips())
    kit.trainer().fit(module, datamodule=data)
    assert sorted(module.epochs[0]) == list(range(12, 120))
    assert [module.labels[number] for number in range(12, 16)] == [2, 2, 2, 0]
    assert int((~data.verdict.keep).sum()) == 12


def test_refuses_other_objects_as_poison(kit):
    for poison, found in [(3, "got int"), (Flip, "got the class Flip"), (kit.numbered(), "got Numbered")]:
        with pytest.raises(TypeError, match="Expected `poison` to be a Poison") as raised:
            kit.poisoned(kit.loader(), poison)
        assert found in str(raised.value)
    nameless = Flip()
    nameless.name = None
    with pytest.raises(PluginError, match=r"Flip\.name"):
        kit.poisoned(kit.loader(), nameless, threat=Threat(budget=1))


def test_attack_needs_a_threat(kit):
    for threat, found in [(None, "none"), (20, "int")]:
        with pytest.raises(TypeError, match=f"a Threat for the attack flip, but got {found}"):
            kit.poisoned(kit.loader(), Flip(), threat=threat)


def test_refuses_attack_arguments_with_existing_poison(kit):
    for name, value in [("threat", Threat(budget=3)), ("holdout", kit.numbered()), ("surrogates", [object()])]:
        with pytest.raises(ValueError, match=f"Expected `{name}` to be unset with an existing poison"):
            kit.poisoned(kit.loader(), kit.flips(), **{name: value})


def test_refuses_several_loaders(kit):
    with pytest.raises(ValueError, match="one training loader, but got 2"):
        kit.poisoned([kit.loader(), kit.loader()], kit.flips()).train_dataloader()


def test_refuses_poison_beyond_the_budget(kit):
    class Greedy(Flip):
        def craft(self, dataset, threat, **rest):
            return super().craft(dataset, Threat(budget=2 * threat.budget), **rest)

    with pytest.raises(PluginError, match="budget"):
        kit.poisoned(kit.loader(), Greedy(), threat=Threat(budget=3)).train_dataloader()


def test_path_of_the_label(kit):
    from lightning_poison.data.sample_spec import SampleSpec

    class Pairs(TensorDataset):
        def __getitem__(self, index):
            points, first, second = super().__getitem__(index)
            return {"points": points, "fine": first, "coarse": second}

    dataset = Pairs(torch.zeros(6, 4), torch.arange(6), torch.zeros(6, dtype=torch.int64))
    data = kit.poisoned(DataLoader(dataset), kit.flips((1,), (2,)), sample=SampleSpec("points", "coarse"))
    served = data.train_dataloader().dataset[1]
    assert (int(served["fine"]), int(served["coarse"])) == (1, 2)
