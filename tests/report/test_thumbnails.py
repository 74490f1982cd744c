"""Small copies of photos: their size, and what happens where a photo is missing."""

from pathlib import Path

import pytest
from pictures import photo

from spectacles.core.errors import UserError
from spectacles.core.value_ranges import PER_FILE
from spectacles.report import thumbnails


def test_a_thumbnail_keeps_the_aspect_ratio_and_is_never_enlarged(tmp_path: Path) -> None:
    photo(0, 400, 200).save(tmp_path / "large.jpg")
    photo(1, 30, 20).save(tmp_path / "small.png")
    assert thumbnails.load_thumbnail(str(tmp_path / "large.jpg"), 100, PER_FILE).size == (100, 50)
    assert thumbnails.load_thumbnail(str(tmp_path / "small.png"), 100, PER_FILE).size == (30, 20)


def test_a_missing_photo_is_named_with_the_remedy(tmp_path: Path) -> None:
    path = str(tmp_path / "3.jpg")
    with pytest.raises(UserError, match=r"3\.jpg could be read before .*file not found.*: restore the file"):
        thumbnails.load_thumbnail(path, 100, PER_FILE)
    assert thumbnails.make([path], PER_FILE)[path] == thumbnails.Thumbnail("", "file not found")
