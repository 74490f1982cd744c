"""label_fixes.csv: malformed files are rejected early, and each decision reaches exactly the rows it is about."""

import csv
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spectacles.core.errors import UserError
from spectacles.core.run_dir import RunDir
from spectacles.data import label_corrections

HEADER = "file,given_label,fixed_label,decision,run"


def frame(*rows: tuple[str, str], source: str = "train", folder: str = "photos") -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["file", "label"])
    return table.assign(source=source, path=[f"/{folder}/{file}" for file in table["file"]])


DATA = frame(("a.png", "no"), ("b.png", "yes"), ("c.png", "no"), ("d.png", ""))


def fixed(tmp_path: Path, *lines: str, data: pd.DataFrame = DATA, header: str = HEADER) -> tuple[pd.DataFrame, str]:
    path = tmp_path / "label_fixes.csv"
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return label_corrections.apply_fixes(data, path)


def mistake(tmp_path: Path, *lines: str, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        fixed(tmp_path, *lines, **options)
    return str(caught.value)


def test_each_decision_does_what_it_says_and_nothing_else(tmp_path):
    before = DATA.copy()
    table, run = fixed(tmp_path, "a.png,no,yes,changed,r1", "b.png,yes,,confirmed,r1", "c.png,no,,removed,r1")
    assert table["label"].tolist() == ["yes", "yes", "no", ""]
    assert table["review"].tolist() == ["label changed from no to yes by review", "", "removed by review", ""]
    assert run == "r1"
    pd.testing.assert_frame_equal(DATA, before)
    pd.testing.assert_frame_equal(table[["file", "source", "path"]], DATA[["file", "source", "path"]])


def test_a_second_review_continues_from_the_first(tmp_path):
    first = ["a.png,no,yes,changed,r1", "b.png,yes,no,changed,r1"]
    table, run = fixed(tmp_path, *first, "a.png,yes,,confirmed,r2", "b.png,no,yes,changed,r2")
    assert table["label"].tolist() == ["yes", "yes", "no", ""]
    assert table["review"].tolist() == ["label changed from no to yes by review", "", "", ""]
    assert run == "r2"


def test_a_review_that_is_listed_twice_is_applied_once(tmp_path):
    lines = ["a.png,no,yes,changed,r1", "c.png,no,,removed,r1"]
    once, _ = fixed(tmp_path, *lines)
    twice, _ = fixed(tmp_path, *lines, *lines)
    pd.testing.assert_frame_equal(once, twice)


def test_numbers_from_a_spreadsheet_are_labels(tmp_path):
    data = frame(("a.png", "0"), ("b.png", "1"))
    table, _ = fixed(tmp_path, "a.png,0.0,1.0,changed,r", "b.png,1.0,,removed,r", data=data)
    assert table["label"].tolist() == ["1", "1"]


def test_a_decision_applies_to_every_row_of_the_file_with_that_label(tmp_path):
    data = frame(("a.png", "no"), ("a.png", "no"), ("a.png", "yes"), ("b.png", "yes"))
    table, _ = fixed(tmp_path, "a.png,no,yes,changed,", data=data)
    assert table["label"].tolist() == ["yes", "yes", "yes", "yes"]
    assert (table["review"] != "").tolist() == [True, True, False, False]


def test_a_labelled_test_row_can_be_fixed_too(tmp_path):
    data = pd.concat([DATA, frame(("t.png", "no"), source="test", folder="test")], ignore_index=True)
    table, _ = fixed(tmp_path, "t.png,no,yes,changed,r", data=data)
    assert table["label"].tolist()[-1] == "yes"


def test_an_unlabelled_file_of_the_same_name_is_left_alone(tmp_path):
    data = pd.concat([DATA, frame(("a.png", ""), source="test", folder="test")], ignore_index=True)
    table, _ = fixed(tmp_path, "a.png,no,yes,changed,r", data=data)
    assert table["label"].tolist() == ["yes", "yes", "no", "", ""]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a.png,no,yes,changed,r", "gone.png,no,yes,changed,r"], "row 2: no row of the data has the file 'gone.png'"),
        (["a.png,yes,no,changed,r"], "row 1: the given label of a.png is 'yes', but the data say 'no'"),
        (["d.png,no,yes,changed,r"], "row 1: the given label of d.png is 'no', but the data say no label"),
        (["d.png,,yes,changed,r"], "row 1: the given label of d.png is ''"),
        (["a.png,no,yes,changed,r", "a.png,no,,removed,r"], "row 2: .* is 'no', but the data say 'yes'"),
        (["a.png,no,,removed,r", "a.png,no,yes,changed,r"], "row 2: .* no label"),
        (["a.png,no,maybe,changed,r"], "row 1: the fixed label 'maybe' does not occur.*'no', 'yes'"),
        (["a.png,no,,changed,r"], "row 1: the fixed label '' does not occur"),
        (["a.png,no,yes,altered,r"], "row 1: the decision 'altered' is none of changed, confirmed, removed"),
    ],
)
def test_a_decision_that_does_not_fit_is_named_with_its_row(tmp_path, lines, message):
    with pytest.raises(UserError, match=rf"label_fixes\.csv, {message}"):
        fixed(tmp_path, *lines)


def test_a_name_that_two_files_share_is_not_guessed(tmp_path):
    data = pd.concat([DATA, frame(("a.png", "no"), source="test", folder="test")], ignore_index=True)
    assert "several files" in mistake(tmp_path, "a.png,no,yes,changed,r", data=data)


def test_applying_a_table_of_another_kind_names_the_column(tmp_path):
    assert "no column 'given_label' (--label_fixes)" in mistake(tmp_path, "a.png,no", header="file,label")
    assert "has no rows" in mistake(tmp_path)


SEVERAL = frame(("a.png", "cat|dog"), ("b.png", "none"), ("c.png", "bird"))


def test_several_labels_are_set_at_once_in_any_order_and_to_none(tmp_path):
    path = tmp_path / "label_fixes.csv"
    lines = ["a.png,cat|dog,none,changed,r", "b.png,none,dog|bird,changed,r", "c.png,bird,bird,confirmed,r"]
    path.write_text("\n".join([HEADER, *lines]) + "\n", encoding="utf-8")
    table, _ = label_corrections.apply_fixes(SEVERAL, path, multi_label=True)
    assert table["label"].tolist() == ["none", "bird|dog", "bird"]
    assert table["review"][0] == "label changed from cat|dog to none by review"
    path.write_text(f"{HEADER}\na.png,cat|dog,cat|fish,changed,r\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"row 1: the fixed label 'fish' does not occur.*'bird', 'cat', 'dog'"):
        label_corrections.apply_fixes(SEVERAL, path, multi_label=True)


def write(path: Path, *lines: str, header: str = HEADER) -> Path:
    path.write_text("\r\n".join([header, *lines, ""]), encoding="utf-8", newline="")
    return path


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1).map(str.strip).filter(bool)


@given(names=st.lists(TEXT, min_size=1, max_size=5, unique=True), label=TEXT)
def test_any_file_name_survives_the_round_trip(tmp_path_factory, names: list[str], label: str) -> None:
    path = tmp_path_factory.mktemp("fixes") / "label_fixes.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(HEADER.split(","))
        writer.writerows([name, "old", label, "changed", "run 1"] for name in names)
    table = label_corrections.read_fixes(path)
    assert table["file"].tolist() == names
    assert set(table["fixed_label"]) == {label}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a.png,0,1,perhaps,r"], "row 1: the decision 'perhaps'"),
        (["a.png,0,1,changed,r", "b.png,0,,changed,r"], "row 2: the label of b.png was changed, but 'fixed_label'"),
        ([",0,1,changed,r"], "row 1: the file or the run is not named"),
        (["a.png,0,1,changed,"], "row 1: the file or the run is not named"),
        ([], "has no rows"),
    ],
)
def test_malformed_files_are_rejected(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        label_corrections.read_fixes(write(tmp_path / "label_fixes.csv", *lines))


def test_reading_a_table_of_another_kind_names_the_column(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no column 'given_label'"):
        label_corrections.read_fixes(write(tmp_path / "train.csv", "1,a.png", header="id,file"))
    with pytest.raises(UserError, match="does not exist"):
        label_corrections.read_fixes(tmp_path / "nowhere.csv")


def test_the_reviewed_run_is_found_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "label_fixes.csv", "a.png,0,1,changed,older", "b.png,0,1,changed,first run")
    with pytest.raises(UserError, match=r"from the run 'first run', which .* does not hold.*--output_dir"):
        label_corrections.find_reviewed_run(path, tmp_path / "outputs")
    folder = tmp_path / "outputs" / "first run"
    RunDir(folder).write_config({"epochs": 3})
    assert label_corrections.find_reviewed_run(path, tmp_path / "outputs").path == folder
    for name in ("../outputs/first run", "latest", "."):
        other = write(tmp_path / "other.csv", f"a.png,0,1,changed,{name}")
        with pytest.raises(UserError):
            label_corrections.find_reviewed_run(other, tmp_path / "outputs")


def test_the_fixes_of_a_run_are_the_file_in_its_settings(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path / "outputs" / "second")
    assert label_corrections.fixes_of_run(run_dir).empty
    path = write(tmp_path / "label_fixes.csv", "a.png,0,1,changed,first", "b.png,1,1,confirmed,first")
    copy = label_corrections.copy_fixes(path, run_dir)
    path.unlink()
    run_dir.write_config({"label_fixes": str(copy)})
    assert label_corrections.fixes_of_run(run_dir)["file"].tolist() == ["a.png", "b.png"]
