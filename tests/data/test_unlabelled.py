"""Photos without labels: each file is used, or rejected with a reason."""

from pathlib import Path

import pandas as pd
import pytest
from pictures import encoded, photo
from PIL import ImageOps

from spectacles.core.errors import UserError
from spectacles.data import unlabelled
from spectacles.data.file_index import inspect_files


@pytest.fixture
def index(tmp_path: Path) -> pd.DataFrame:
    """One photo of each split."""
    paths = [str(tmp_path / f"{split}.png") for split in ("train", "val", "test")]
    for number, path in enumerate(paths):
        photo(number, 60, 40).save(path)
    facts, _, _ = inspect_files(paths, 1)
    return facts.assign(path=paths, split=["train", "val", "test"])


def test_every_file_is_used_or_rejected_with_a_reason(tmp_path: Path, index: pd.DataFrame) -> None:
    folder = tmp_path / "more"
    (folder / "below").mkdir(parents=True)
    contents = {
        "1.png": encoded(photo(7, 60, 40)),
        "2.png": encoded(photo(7, 60, 40)),
        "3 test.png": Path(index["path"][2]).read_bytes(),
        "4 test smaller.jpg": encoded(photo(2, 60, 40).resize((48, 32)), "JPEG"),
        "5 val mirrored.png": encoded(ImageOps.mirror(photo(1, 60, 40))),
        "6 train.png": Path(index["path"][0]).read_bytes(),
        "7 broken.png": b"not a picture",
        "below/8.png": encoded(photo(8, 60, 40)),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    table = tmp_path / "unlabelled.csv"
    found = unlabelled.read_folder(folder, index, 1, table)
    assert [Path(path).name for path in found["path"]] == ["1.png", "8.png"]
    assert set(found["split"]) == {"unlabelled"} and set(found["label"]) == {""}
    rows = pd.read_csv(table, keep_default_na=False)
    reasons = {Path(path).name: reason for path, reason in zip(rows["path"], rows["reason"], strict=True)}
    assert len(reasons) == len(contents) and reasons["7 broken.png"] and not reasons["1.png"]
    assert reasons["2.png"] == "the same file under another name comes before it"
    assert reasons["6 train.png"] == "it is a training photo with a label"
    held_out = {name for name, reason in reasons.items() if reason == unlabelled.LIKE_HELD_OUT}
    assert held_out == {"3 test.png", "4 test smaller.jpg", "5 val mirrored.png"}
    assert unlabelled.describe(table).startswith("8 unlabelled files = 2 used + 6 rejected (3 it is a validation or")


def test_a_folder_without_usable_photos_is_an_error(tmp_path: Path, index: pd.DataFrame) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"--unlabelled .*none holds no photo that can be used"):
        unlabelled.read_folder(tmp_path / "none", index, 1, tmp_path / "unlabelled.csv")
