"""Any number of labels per image: as given in tables, as text, and as numbers."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from dataset_runs import row_statuses, run, run_table, split_of
from hypothesis import given
from hypothesis import strategies as st
from pictures import write_csv, write_noise

from spectacles.core.config import DatasetConfig
from spectacles.core.errors import UserError
from spectacles.data import label_columns, label_sets, label_text
from spectacles.data.schemas import load_index
from spectacles.data.sources import read_rows
from spectacles.metrics.decisions import is_correct

LETTERS = st.characters(exclude_categories=["Z", "C"])
NAMES = st.sets(st.text(LETTERS, min_size=1) | st.sampled_from(["none", "|", "\\", "\\none", "a|none"]), max_size=5)
COLUMNS = "file,cat,dog,hat"
TAGS = "file,tags"


@given(st.lists(NAMES, min_size=1, max_size=8))
def test_texts_and_numbers_convert_both_ways(sets: list[set[str]]) -> None:
    texts = [label_sets.join(names) for names in sets]
    assert [set(label_text.parts(text)) for text in texts] == sets
    classes = label_sets.names(texts)
    assert set(classes) == set().union(*sets)
    flags = label_sets.encode(texts, classes, multi_label=True)
    assert flags.shape == (len(texts), len(classes))
    assert label_sets.decode(flags, classes) == texts
    assert flags.sum(axis=0).tolist() == list(label_sets.count(pd.Series(texts), classes, True).values())


def test_one_class_per_image_is_one_number() -> None:
    numbers = label_sets.encode(["b", "a|c", "b"], ["a|c", "b"], multi_label=False)
    assert numbers.tolist() == [1, 0, 1]
    assert label_sets.decode(numbers, ["a|c", "b"]) == ["b", "a|c", "b"]


def test_an_image_is_right_where_all_its_labels_are() -> None:
    labels = np.array([[1, 0], [1, 1], [0, 0]])
    assert is_correct(np.array([[1, 0], [1, 0], [0, 0]]), labels).tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("text", "expected"), [("dog| cat ", "cat|dog"), ("cat|cat", "cat"), ("none", "none"), ("", ""), (" | ", "")]
)
def test_cells_are_put_in_order(text: str, expected: str) -> None:
    assert label_columns.of_column(pd.Series([text]), Path("t.csv")).tolist() == [expected]


def run_columns(folder: Path, *rows: str, header: str = COLUMNS, **flags: object) -> object:
    return run_table(folder, *rows, header=header, **({"label_column": "cat,dog,hat"} | flags))


def column_rows(folder: Path, count: int = 24) -> list[str]:
    """Different pictures; every third image has no label, every fourth a hat."""
    names = write_noise(folder, [f"{number}.png" for number in range(count)])
    return [
        f"{name},{int(number % 3 == 0)},{int(number % 3 == 1)},{int(number % 4 == 0)}"
        for number, name in enumerate(names)
    ]


def test_columns_of_0_and_1_are_labels(tmp_path: Path) -> None:
    report, run_dir = run_columns(tmp_path, *column_rows(tmp_path))
    assert report.multi_label and report.classes == ["cat", "dog", "hat"]
    assert report.label_column == "cat,dog,hat"
    index = load_index(run_dir).set_index("file")["label"]
    assert index.loc[["0.png", "1.png", "2.png", "4.png"]].tolist() == ["cat|hat", "dog", "none", "dog|hat"]
    assert sum(report.images.values()) == 24
    assert sum(counts["hat"] for counts in report.counts.values()) == 6
    assert "labels, any number per image: cat, dog, hat (column 'cat,dog,hat')" in report.summary


def test_one_column_of_tags_gives_the_same_splits(tmp_path: Path) -> None:
    rows = column_rows(tmp_path)
    _, of_columns = run_columns(tmp_path, *rows, run_name="columns")
    texts = load_index(of_columns)["label"]
    tags = [f"{row.split(',')[0]},{text.replace('|', ' | ')}" for row, text in zip(rows, texts, strict=True)]
    report, of_tags = run_table(tmp_path, *tags, header=TAGS, multi_label=True, run_name="tags")
    assert report.classes == ["cat", "dog", "hat"]
    assert split_of(of_tags) == split_of(of_columns)


def test_json_may_list_labels(tmp_path: Path) -> None:
    names = write_noise(tmp_path, [f"{number}.png" for number in range(12)])
    items = [{"file": name, "label": [["b", "a"], ["a"], []][number % 3]} for number, name in enumerate(names)]
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(items), encoding="utf-8")
    _, run_dir = run(tmp_path, train_csv=path, multi_label=True)
    assert set(load_index(run_dir)["label"]) == {"a|b", "a", "none"}


def test_a_row_with_a_missing_label_is_rejected_and_named(tmp_path: Path) -> None:
    rows = column_rows(tmp_path)
    write_noise(tmp_path, ["gap.png", "words.png"], first_seed=90)
    _, run_dir = run_columns(tmp_path, *rows, "gap.png,1,,0", "words.png,Yes,false,0")
    assert row_statuses(run_dir)["gap.png"] == [("rejected", "no label")]
    assert load_index(run_dir).set_index("file").loc["words.png", "label"] == "cat"


@pytest.mark.parametrize(
    ("header", "row", "flags", "said"),
    [
        (COLUMNS, "0.png,1,maybe,0", {}, "row 1: 'maybe' in column 'dog' is neither 0 nor 1"),
        (COLUMNS, "0.png,1,0,0", {"label_column": "cat,bird"}, "no column 'bird' (--label_column)"),
        (TAGS, "0.png,cat|none", {"label_column": None, "multi_label": True}, "row 1: 'cat|none': 'none' means no"),
        (COLUMNS, "0.png,1,1,0", {}, "no usable training image has the label 'hat'"),
    ],
)
def test_mistakes_are_reported(tmp_path: Path, header: str, row: str, flags: dict[str, object], said: str) -> None:
    write_noise(tmp_path, ["0.png"])
    with pytest.raises(UserError) as caught:
        run_columns(tmp_path, row, header=header, **flags)
    assert said in str(caught.value)


def test_folders_cannot_hold_several_labels(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--multi_label applies to a table"):
        read_rows(DatasetConfig(image_dir=tmp_path, multi_label=True))


def test_test_tables_have_all_label_columns_or_none(tmp_path: Path) -> None:
    rows = column_rows(tmp_path)
    some = write_csv(tmp_path / "some.csv", "file,cat", "0.png,1")
    with pytest.raises(UserError, match="no column 'dog', but others of cat, dog, hat"):
        run_columns(tmp_path, *rows, test_csv=some)
    write_noise(tmp_path, ["t.png"], first_seed=77)
    none = write_csv(tmp_path / "none.csv", "file", "t.png")
    report, _ = run_columns(tmp_path, *rows, test_csv=none)
    assert report.unlabelled == 1


def test_a_test_row_with_an_unknown_label_is_rejected(tmp_path: Path) -> None:
    names = write_noise(tmp_path, [f"{number}.png" for number in range(20)])
    rows = [f"{name},{('a|b', 'a', 'none')[number % 3]}" for number, name in enumerate(names)]
    write_noise(tmp_path, ["new.png", "old.png"], first_seed=50)
    test = write_csv(tmp_path / "test.csv", TAGS, "new.png,a|z", "old.png,b")
    _, run_dir = run_table(tmp_path, *rows, header=TAGS, multi_label=True, test_csv=test)
    assert row_statuses(run_dir)["new.png"] == [("rejected", "its label does not occur in the training data")]
    assert row_statuses(run_dir)["old.png"] == [("used", "")]


def test_a_label_of_every_image_is_reported(tmp_path: Path) -> None:
    names = write_noise(tmp_path, [f"{number}.png" for number in range(12)])
    rows = [f"{name},{('a|b', 'a')[number % 2]}" for number, name in enumerate(names)]
    report, _ = run_table(tmp_path, *rows, header=TAGS, multi_label=True)
    assert "every training image has the label 'a'" in report.summary


def test_a_review_can_change_a_set_of_labels(tmp_path: Path) -> None:
    rows = column_rows(tmp_path)
    header = "file,given_label,fixed_label,decision,run"
    fixes = write_csv(tmp_path / "fixes.csv", header, "0.png,cat|hat,hat|dog,changed,r", "1.png,dog,none,changed,r")
    _, run_dir = run_columns(tmp_path, *rows, label_fixes=fixes)
    labels = load_index(run_dir).set_index("file")["label"]
    assert labels.loc[["0.png", "1.png"]].tolist() == ["dog|hat", "none"]
    wrong = write_csv(tmp_path / "wrong.csv", header, "0.png,cat|hat,cat|bird,changed,r")
    with pytest.raises(UserError, match="the fixed label 'bird' does not occur"):
        run_columns(tmp_path, *rows, label_fixes=wrong)
