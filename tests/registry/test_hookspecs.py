import pluggy
import pytest

from lightning_poison.registry import hookspecs


@pytest.fixture
def manager():
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    return manager


def test_hooks_are_specified(manager):
    for name in ("lightning_poison_attacks", "lightning_poison_scorers"):
        assert getattr(manager.hook, name).has_spec()


def test_calls_marked_method(manager):
    class Plugin:
        @hookspecs.hookimpl
        def lightning_poison_attacks(self):
            return {"one": object}

    manager.register(Plugin())
    assert manager.hook.lightning_poison_attacks() == [{"one": object}]
