import pytest

from lightning_poison.shell.evaluate_settings import as_json, read_settings

LEAST = {"data": "digits", "attacks": ["badnets"], "defenses": ["fast"]}


def test_yaml_and_arguments(tmp_path):
    path = tmp_path / "evaluation.yaml"
    path.write_text(
        "data: mnist\ndata_root: data\nmax_samples: 900\nseeds: [4, 7]\nepochs: 3\nadaptive: false\n"
        "pixels: {mean: 0.5, std: [0.25]}\n"
        "model: {class_path: mine.Net, init_args: {width: 8}, feature_layer: body}\n"
        "attacks:\n- badnets=0.01\n- {name: half, attack: sig, poison_fraction: 0.5, of_class: 0}\n"
        "defenses:\n- fast\n- {name: mine, scorer: likelihood, settings: {margin: 0.5}, trusted: true}\n"
    )
    settings = read_settings(path, {"data": None, "max_samples": 50, "attacks": None, "defenses": None})
    assert settings.data.max_samples == 50
    assert (settings.data.mean, settings.data.std) == ((0.5,), (0.25,))
    assert settings.seeds == (4, 7)
    assert settings.model.epochs == 3
    assert settings.model.init_args == {"width": 8}
    assert [(each.name, each.attack, each.poison_fraction) for each in settings.attacks] == [
        ("badnets", "badnets", 0.01),
        ("half", "sig", 0.5),
    ]
    assert [(each.name, each.scorer, each.trusted) for each in settings.defenses] == [
        ("fast", "fast", None),
        ("mine", "likelihood", True),
    ]
    assert as_json(settings.defenses[1])["settings"] == {"margin": 0.5}
    assert read_settings(path, {"seeds": 2}).seeds == (0, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("atacks: [badnets]", r"key of .*evaluation.yaml \(data, .*, but got 'atacks'.\nDid you mean `attacks`"),
        ("model: {clas_path: x.Y}", "key of model .*got 'clas_path'.\nDid you mean `class_path`"),
        ("data: {class_path: x.Y, int_args: {}}", "key of data .*Did you mean `init_args`"),
        ("attacks: [{name: sig, poison_fracton: 0.1}]", r"attacks\[0\] .*Did you mean `poison_fraction`"),
        ("attacks: [badnets, '{name: sig, budgets: 3}']", r"attacks\[1\] .*Did you mean `budget`"),
        ("defenses: [{scorer: fast, fals_positive_rate: 0.1}]", r"defenses\[0\] .*Did you mean `false_positive_rate`"),
        ("attacks: [{name: sig, poison_fraction: 8}]", r"In attacks\[0\]: .*`poison_fraction`.* 8"),
        ("attacks: [badnets=many]", r"attacks\[0\].* a number, but got 'many'"),
        ("attacks: [{name: sig, settings: 5}]", "settings"),
        ("attacks: [5]", r"attacks\[0\]"),
        ("attacks: [{name: sig, against: none}]", r"`against` of attacks\[0\]"),
        ("defenses: [{name: [a]}]", "name"),
        ("attacks: []", "attacks"),
        ("seeds: 0", "seeds"),
        ("seeds: [1, 1]", "seeds"),
        ("executor: threads", "executor"),
        ("gpus_per_cell: 1", "--executor ray"),
        ("epochs: two", "In model: .*epochs"),
        ("max_samples: -1", "In data: .*max_samples"),
        ("pixels: 3", "pixels"),
        ("data: [", "YAML"),
        ("- data", "YAML file with keys"),
    ],
)
def test_wrong_value_is_named(tmp_path, text, message):
    path = tmp_path / "evaluation.yaml"
    path.write_text(text)
    key = text.partition(":")[0]
    rest = {name: value for name, value in LEAST.items() if name != key}
    with pytest.raises(ValueError, match=f"(?s){message}"):
        read_settings(path, rest)


def test_missing_data_is_named():
    with pytest.raises(ValueError, match="--data digits"):
        read_settings(None, {})
