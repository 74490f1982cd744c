"""Names and writes that every file system takes."""

import pytest

from spectacles.core.fileio import safe_name


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("cats/dogs", "cats_dogs"),
        ("..", "unnamed"),
        ("日本", "unnamed"),
        ("größe ü", "gr_e"),
        ("--help", "help"),
        ("hf-hub:timm/model.in1k", "hf-hub_timm_model.in1k"),
        ("1" * 99, "1" * 60),
    ],
)
def test_a_safe_name_is_a_plain_part_of_a_file_name(name: str, safe: str) -> None:
    assert safe_name(name) == safe
