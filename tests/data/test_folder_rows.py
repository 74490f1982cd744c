"""Folders as published archives hold them: splits, classes, wrappers, and labels in the names of files."""

from collections import Counter
from pathlib import Path

import pytest

from spectacles.core.config import DatasetConfig
from spectacles.core.errors import UserError
from spectacles.data.folder_rows import label_of, split_of
from spectacles.data.sources import Rows, read_rows

CLASSES = ("cats", "dogs")
WORDS = {
    "train": ["train", "Training", "train_set", "training_set", "TrainingSet", "train-images", "training data",
              "train1"],
    "val": ["val", "valid", "validation", "Validation_Set", "dev", "dev_set", "val2017"],
    "test": ["test", "testing", "test_set", "Testing Set", "test1"],
    None: ["tests", "trains", "contest", "best", "tr ain", "validity", "bus", "device", "train set a", ""],
}  # fmt: skip


def files(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def read(folder: Path, **flags: object) -> Rows:
    return read_rows(DatasetConfig(image_dir=folder, **flags))


def counts(rows: Rows) -> dict[tuple[str, str], int]:
    return dict(Counter(zip(rows.frame["given_split"], rows.frame["label"], strict=True)))


@pytest.mark.parametrize(("split", "word"), [(split, word) for split, words in WORDS.items() for word in words])
def test_words_for_splits(split: str | None, word: str) -> None:
    assert split_of(word) == split


@pytest.mark.parametrize(
    ("train", "val", "test"), [("training_set", "dev", "test_set"), ("Train", "VALID", "Testing"),
                               ("train1", "val1", "test1")]
)  # fmt: skip
def test_split_folders_of_any_usual_name_are_splits(train: str, val: str, test: str, tmp_path: Path) -> None:
    files(tmp_path, *(f"{split}/{name}/{split}.jpg" for split in (train, val, test) for name in CLASSES))
    expected = {(split, name): 1 for split in ("train", "val", "test") for name in CLASSES}
    assert counts(read(tmp_path)) == expected


def flat(folder: Path) -> Path:
    return files(
        folder, *(f"{split}/{name}.{n}.jpg" for split in ("train", "test") for name in CLASSES for n in (1, 2))
    )


def test_split_folders_without_classes_ask_for_the_labels(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"the folders test, train in .*--train_csv.*--label_from name.*--label_from fo"
    ):
        read(flat(tmp_path))
    assert counts(read(tmp_path, label_from="name")) == {(s, c): 2 for s in ("train", "test") for c in CLASSES}
    assert counts(read(tmp_path, label_from="folder")) == {("", "train"): 4, ("", "test"): 4}


@pytest.mark.parametrize(
    ("name", "label"),
    [("cat.1.jpg", "cat"), ("great_pyrenees_12.jpg", "great_pyrenees"), ("Cat (3).jpg", "Cat"), ("dog.png", "dog"),
     ("12.jpg", ""), ("red-apple-0007.tif", "red-apple"), ("ünï2.jpg", "ünï")],
)  # fmt: skip
def test_the_label_in_a_name_stands_before_the_first_dot_or_number(name: str, label: str) -> None:
    assert label_of(name) == label


def test_names_of_files_in_any_folder_hold_labels(tmp_path: Path) -> None:
    files(tmp_path, "photos/a/cat.1.jpg", "photos/dog_2.jpg", "photos/b/c/7.jpg")
    assert counts(read(tmp_path, label_from="name")) == {("", "cat"): 1, ("", "dog"): 1, ("", ""): 1}


def test_names_of_test_files_hold_labels_only_where_they_are_known(tmp_path: Path) -> None:
    photos = files(tmp_path / "photos", "cat.1.jpg", "dog.1.jpg")
    known = files(tmp_path / "known", "cat.2.jpg", "bird.1.jpg")
    unknown = files(tmp_path / "unknown", "img_1.jpg", "2.jpg")
    for folder, labels in ((known, ["bird", "cat"]), (unknown, ["", ""])):
        frame = read(photos, test_dir=folder, label_from="name").frame
        assert frame.loc[frame["source"] == "test", "label"].tolist() == labels


def test_labels_from_names_do_not_go_with_a_table(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--label_from applies to folders"):
        read_rows(DatasetConfig(train_csv=tmp_path / "t.csv", label_from="name"))


def test_a_lone_wrapper_is_entered_and_said_once(tmp_path: Path) -> None:
    files(tmp_path, *(f"data/photos/{name}/1.jpg" for name in CLASSES), "readme.txt")
    rows = read(tmp_path)
    assert counts(rows) == {("", name): 1 for name in CLASSES}
    assert rows.frame["file"].tolist() == ["data/photos/cats/1.jpg", "data/photos/dogs/1.jpg"]
    assert rows.notes == [f"the classes are taken from 'data/photos', the only folder in {tmp_path}"]


def test_what_a_wrapper_holds_may_be_splits_or_test_data(tmp_path: Path) -> None:
    files(tmp_path, "x/train/cats/1.jpg", "x/train/dogs/1.jpg", "x/test/cats/2.jpg", "x/stray.jpg", "x/test/3.jpg")
    assert counts(read(tmp_path)) == {("train", "cats"): 1, ("train", "dogs"): 1, ("test", "cats"): 1, ("", ""): 1,
                                      ("test", ""): 1}  # fmt: skip
    exam = files(tmp_path / "exam", "y/cats/1.jpg", "y/2.jpg")
    frame = read(tmp_path / "x", test_dir=exam).frame
    assert frame.loc[frame["source"] == "test", ["file", "label"]].to_numpy().tolist() == [
        ["y/cats/1.jpg", "cats"],
        ["y/2.jpg", ""],
    ]


@pytest.mark.parametrize("stray", ["a.jpg", "train/1.jpg"])
def test_a_folder_beside_photos_or_with_photos_alone_is_not_a_wrapper(stray: str, tmp_path: Path) -> None:
    files(tmp_path, "photos/1.jpg" if stray != "a.jpg" else "photos/cats/1.jpg", stray)
    assert set(read(tmp_path).frame["label"]) == {"photos", "" if stray == "a.jpg" else "train"}


@pytest.mark.parametrize("name", ["train", "none", "NA", "nan", "label", "__proto__", "|", "a\rb", "=1", "CON"])
def test_a_folder_may_have_any_name(name: str, tmp_path: Path) -> None:
    assert counts(read(files(tmp_path, f"{name}/1.jpg", "bus/1.jpg"))) == {("", name): 1, ("", "bus"): 1}
