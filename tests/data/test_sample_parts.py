import pytest
import torch

from lightning_poison.data.sample_parts import detect_paths, leaves_of, structure_of


def test_leaves_have_paths_and_names():
    sample = {"views": (torch.zeros(2), "b"), "meta": {"y": 3}, "ids": [5, 8, 13]}
    found = [(leaf.path, leaf.name) for leaf in leaves_of(sample)]
    assert found == [("views.0", "0"), ("views.1", "1"), ("meta.y", "y"), ("ids", "ids")]


def test_structure_shows_numbers_only():
    shown = structure_of((torch.zeros(2), 3, 0.5, True, "secret", None, {"a\x1b": "secret"}))
    assert shown.splitlines() == [
        "    0: a float32 tensor of shape (2,)",
        "    1: int 3",
        "    2: float 0.5",
        "    3: bool True",
        "    4: str",
        "    5: NoneType",
        r"    6.a\x1b: str",
    ]


def test_list_of_numbers_is_a_vector():
    assert detect_paths({"input_ids": [4, 8, 15], "label": 1}, batched=False) == ("input_ids", "label")
    assert detect_paths(([4, 8, 15], 1), batched=False) == ("0", "1")


@pytest.mark.parametrize("image", [[[0.1, 0.2], [0.3, 0.4]], [[[0.1, 0.2]]], [[1], [2]], [[1, 2], [3]]])
def test_nested_lists_of_numbers_are_one_input(image):
    assert detect_paths({"image": image, "label": 3}, batched=False) == ("image", "label")
    assert detect_paths((image, 3), batched=False) == ("0", "1")


def test_several_inputs_of_a_dict_are_listed_with_a_way_out():
    sample = {"ids": torch.arange(3), "mask": torch.ones(3), "label": 1}
    message = r"as `SampleSpec\('ids', 'label'\)`. Or pass all .* for name in \('ids', 'mask'\)}, 'label'\)"
    with pytest.raises(ValueError, match=message):
        detect_paths(sample, batched=False)
