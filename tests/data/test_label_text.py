"""Labels as people write them: missing, in two spellings, alike, or called as something of ours."""

from pathlib import Path

import pandas as pd
import pytest
from dataset_runs import run, run_table
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import write_noise

from spectacles.core.config import DatasetConfig
from spectacles.core.errors import UserError
from spectacles.data.label_columns import clean_labels, match_labels
from spectacles.data.label_text import look_alikes
from spectacles.data.sources import Rows, read_rows


def labels_of(folder: Path, labels: list[str], **flags: object) -> Rows:
    write_noise(folder, ["0.png"])
    (folder / "t.csv").write_text("\n".join(["file,label", *(f"0.png,{label}" for label in labels)]))
    return read_rows(DatasetConfig(train_csv=folder / "t.csv", **flags))


WORDS = ["NA", "na", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "-nan", "NULL", "null", "None", "none", "NaT", "?",
         "-", "", " "]  # fmt: skip


@pytest.mark.parametrize("word", WORDS)
def test_every_way_to_write_missing_is_missing(word: str, tmp_path: Path) -> None:
    rows = labels_of(tmp_path, ["cat", "dog", word, f"{word} ", "cat"])
    assert rows.frame["label"].tolist() == ["cat", "dog", "", "", "cat"]
    if word.strip():
        assert rows.notes == [
            f"missing labels: 2 {word!r} in column 'label': these rows count as without label (--na_labels '' keeps "
            "such texts as classes)"
        ]


def test_na_labels_chooses_the_words(tmp_path: Path) -> None:
    labels = ["NA", "None", "unknown", "x y"]
    assert labels_of(tmp_path, labels, na_labels="").frame["label"].tolist() == labels
    chosen = labels_of(tmp_path, labels, na_labels="Unknown, x y").frame["label"]
    assert chosen.tolist() == ["NA", "None", "", ""]


def test_rows_with_a_missing_label_are_rejected_and_counted(tmp_path: Path) -> None:
    names = write_noise(tmp_path, [f"{number}.png" for number in range(24)])
    rows = [f"{name},{('no', 'yes', 'NA')[number % 3]}" for number, name in enumerate(names)]
    report, _ = run_table(tmp_path, *rows)
    assert report.classes == ["no", "yes"] and report.row_accounting.rejections == {"no label": 8}
    assert any(line.startswith("missing labels: 8 'NA'") for line in report.summary)
    assert run_table(tmp_path, *rows, na_labels="")[0].classes == ["NA", "no", "yes"]


def test_with_several_labels_none_means_no_label_and_na_a_missing_one(tmp_path: Path) -> None:
    rows = labels_of(tmp_path, ["cat|hat", "none", "None", "NA"], multi_label=True)
    assert rows.frame["label"].tolist() == ["cat|hat", "none", "none", ""]


def test_one_number_in_two_spellings_is_one_class(tmp_path: Path) -> None:
    rows = labels_of(tmp_path, ["0", "1.0", "1", "0.0", "0", "NA"])
    assert rows.frame["label"].tolist() == ["0", "1", "1", "0", "0", ""]
    assert rows.notes[1] == "labels in several spellings are taken as one class: '0', '0.0' as '0'; '1.0', '1' as '1'"
    assert labels_of(tmp_path, ["1.0", "2.0", ""]).notes == []


def test_labels_that_differ_by_space_are_one_class(tmp_path: Path) -> None:
    rows = labels_of(tmp_path, ["cat", "cat ", "dog"])
    assert rows.frame["label"].tolist() == ["cat", "cat", "dog"]
    assert rows.notes == ["labels in several spellings are taken as one class: 'cat', 'cat ' as 'cat'"]


@settings(max_examples=40)
@given(st.lists(st.sampled_from(["0", "1", "0.0", "1.0", "1.5", "2.0", "cat", " 1 "]), min_size=1))
def test_labels_of_another_table_are_matched_with_the_classes(labels: list[str]) -> None:
    values = pd.Series(labels)
    classes = set(clean_labels(values))
    assert set(match_labels(values, classes)) <= classes
    part = values.head(1)  # alone, 2.0 would become 2
    assert match_labels(part, classes).tolist() == clean_labels(values).head(1).tolist()


@pytest.mark.parametrize(
    "names",
    [["cat", "Cat", "CAT"], ["a b", " a b", "a  b"], ["1", "1.0", "+1"], ["\u00e9", "e\u0301"],
     ["stra\u00dfe", "STRASSE"], ["0.5", ".50"], ["Ａ", "a"]],
)  # fmt: skip
def test_classes_that_look_the_same_are_kept_apart_with_a_warning(names: list[str]) -> None:
    [warning] = look_alikes(["other", *names, "2"])
    assert warning.startswith("warning: classes that look the same are kept apart: " + ", ".join(map(repr, names)))
    assert look_alikes(["cat", "cats", "1", "10", "1.5", "-1", "a b", "ab"]) == []


def test_classes_that_differ_by_case_are_named_in_the_summary(tmp_path: Path) -> None:
    write_noise(tmp_path / "photos", [f"{name}/{n}.png" for name in ("cat", "Cat") for n in range(8)])
    report, _ = run(tmp_path, image_dir=tmp_path / "photos")
    assert report.classes == ["Cat", "cat"]
    assert any("'Cat', 'cat'" in line and "write them alike" in line for line in report.summary)


def test_a_class_without_a_usable_file_is_reported_with_reason_count_and_example(tmp_path: Path) -> None:
    write_noise(tmp_path / "photos", [f"{name}/{n}.png" for name in ("cat", "dog") for n in range(8)])
    (tmp_path / "photos/bird").mkdir()
    for number in range(3):
        (tmp_path / f"photos/bird/{number}.heic").write_bytes(b"\0\0\0\x18ftypheic")
    report, _ = run(tmp_path, image_dir=tmp_path / "photos")
    sentence = (
        "no image of the class 'bird' can be used: 3 of its 3 rows rejected (not an image of a known format (JPEG, "
        "PNG, WebP, BMP, GIF, TIFF)), such as bird/0.heic"
    )
    assert sentence in report.summary
    for number in range(8):
        (tmp_path / f"photos/dog/{number}.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"only the class 'cat'.*'bird' can be used.*8 of its 8 rows rejected \(empty"):
        run(tmp_path, image_dir=tmp_path / "photos")


def test_a_column_that_training_has_too_is_not_taken_for_the_label(tmp_path: Path) -> None:
    names = write_noise(tmp_path, [f"{number}.png" for number in range(6)])
    rows = [f"{name},{number % 2},{number // 3}" for number, name in enumerate(names)]
    (tmp_path / "train.csv").write_text("\n".join(["file,male,label", *rows]))
    (tmp_path / "test.csv").write_text("\n".join(["file,male", *(row[:-2] for row in rows)]))
    config = DatasetConfig(train_csv=tmp_path / "train.csv", test_csv=tmp_path / "test.csv", label_column="label")
    test = read_rows(config).frame.query("source == 'test'")
    assert test["label"].tolist() == [""] * 6
