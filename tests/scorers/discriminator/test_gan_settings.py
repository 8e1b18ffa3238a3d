import pytest

from lightning_poison.scorers.discriminator.gan import GanSettings


def test_the_defaults_are_the_papers_table():
    settings = GanSettings()
    assert (settings.epochs, settings.batch_size, settings.learning_rate) == (75, 32, 1e-5)
    assert (settings.decay, settings.l2) == (0.97, 1e-5)


@pytest.mark.parametrize(("counts", "steps"), [([1000, 1000], 31), ([64, 100], 3), ([5, 3], 1)])
def test_the_largest_class_decides_the_steps(counts, steps):
    settings = GanSettings(epochs=2)
    assert settings.steps_per_epoch(counts) == steps
    assert settings.total_steps(counts) == 2 * steps


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"epochs": 0}, "`epochs`"),
        ({"batch_size": 0}, "`batch_size`"),
        ({"learning_rate": 0}, "`learning_rate`"),
        ({"decay": 1.5}, r"`decay` to be a number in \(0, 1\), but got 1.5.\n1 keeps"),
        ({"l2": -1}, "`l2`"),
        ({"dropout": 1}, "`dropout` to be below 1"),
        ({"dropout": -0.1}, "`dropout`"),
    ],
)
def test_numbers_out_of_range(arguments, said):
    with pytest.raises(ValueError, match=said):
        GanSettings(**arguments)


def test_a_constant_learning_rate_is_allowed():
    assert GanSettings(decay=1.0).decay == 1
