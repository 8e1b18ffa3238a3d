"""The guard in a Trainer: it looks once an epoch, warns, and goes on with several steps."""

import pytest
import torch

from lightning_poison.adversarial.guard import CollapseGuard
from lightning_poison.adversaries import FGSM
from lightning_poison.callbacks.adversarial_training import AdversarialTraining

pytestmark = pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.:FutureWarning")

SINGLE = FGSM(0.1, random_start=False)


@pytest.fixture
def counted(monkeypatch):
    """Return a function that lets the probe count what is given, as if training had collapsed or not."""
    return lambda *right: monkeypatch.setattr(CollapseGuard, "probe", lambda _, attacked: torch.tensor(right))


@pytest.fixture
def unprobed(monkeypatch):
    return lambda: monkeypatch.setattr(CollapseGuard, "probe", lambda *_: pytest.fail("it was probed"))


def test_training_falls_back_to_pgd_and_says_so(kit, counted):
    counted(100, 2)
    model, callback = kit.Plain(), AdversarialTraining(SINGLE)
    with pytest.warns(UserWarning, match=r"collapsed before epoch 1: .*100 withstand the single step and 2 with"):
        kit.trainer(callback, epochs=2).fit(model, kit.loader())
    assert callback.state_dict() == {"collapsed": True}
    net, seen = kit.by_hand(adversary=SINGLE.as_pgd())
    torch.testing.assert_close(model.seen[: kit.STEPS], seen)
    clean, labels = (part[: kit.BATCH] for part in kit.images_and_labels())
    single, changed = kit.attacked_by_hand(net, clean, labels, SINGLE.as_pgd()), model.seen[kit.STEPS]
    assert not torch.allclose(changed, single)
    assert float((changed - clean).abs().max()) <= 0.1 + 1e-6


def test_a_sound_training_goes_on(kit, counted):
    counted(100, 90)
    model = kit.Plain()
    kit.trainer(AdversarialTraining(SINGLE), epochs=2).fit(model, kit.loader())
    kit.assert_same(model.net, kit.by_hand(adversary=SINGLE.as_pgd(), epochs=2)[0])


def test_several_steps_and_no_guard_are_not_watched(kit, unprobed):
    unprobed()
    kit.trainer(AdversarialTraining(FGSM(0.1), guard=None), epochs=2).fit(kit.Plain(), kit.loader())
    kit.trainer(AdversarialTraining(kit.PLAIN), epochs=2).fit(kit.Plain(), kit.loader())


@pytest.mark.parametrize(("warm_up", "first"), [(0.5, 2), (1, 2), (1.5, 3)])
def test_an_epoch_of_the_whole_radius_comes_before_the_first_look(kit, counted, warm_up, first):
    counted(100, 2)
    callback = AdversarialTraining(SINGLE, warm_up_epochs=warm_up)
    with pytest.warns(UserWarning, match=f"collapsed before epoch {first}: "):
        kit.trainer(callback, epochs=4).fit(kit.Plain(), kit.loader())


def test_a_resumed_run_remembers_it(kit, counted, unprobed, tmp_path):
    counted(100, 2)
    first = kit.trainer(AdversarialTraining(FGSM(0.1)), epochs=2)
    with pytest.warns(UserWarning, match="collapsed"):
        first.fit(kit.Plain(), kit.loader())
    first.save_checkpoint(tmp_path / "last.ckpt")
    unprobed()
    callback = AdversarialTraining(FGSM(0.1))
    kit.trainer(callback, epochs=3).fit(kit.Plain(), kit.loader(), ckpt_path=tmp_path / "last.ckpt")
    assert callback.state_dict() == {"collapsed": True}


def test_looking_leaves_the_training_alone(kit):
    runs = []
    for guard in (CollapseGuard(samples=4, steps=2), None):
        model = kit.Plain()
        kit.trainer(AdversarialTraining(FGSM(0.1), guard=guard), epochs=3).fit(model, kit.loader())
        runs.append(model.net)
    kit.assert_same(*runs, rtol=0, atol=0)
