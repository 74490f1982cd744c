"""label_fixes.csv as the review page writes it is read back; anything else is told before a run begins."""

import csv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spectacles.core.errors import UserError
from spectacles.core.run_dir import RunDir
from spectacles.data import label_corrections

HEADER = "file,given_label,fixed_label,decision,run"


def write(path: Path, *lines: str, header: str = HEADER) -> Path:
    path.write_text("\r\n".join([header, *lines, ""]), encoding="utf-8", newline="")
    return path


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1).map(str.strip).filter(bool)


@given(names=st.lists(TEXT, min_size=1, max_size=5, unique=True), label=TEXT)
def test_any_name_comes_through(tmp_path_factory, names: list[str], label: str) -> None:
    path = tmp_path_factory.mktemp("fixes") / "label_fixes.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(HEADER.split(","))
        writer.writerows([name, "old", label, "changed", "run 1"] for name in names)
    table = label_corrections.read(path)
    assert table["file"].tolist() == names
    assert set(table["fixed_label"]) == {label}


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["a.png,0,1,perhaps,r"], "row 1: the decision 'perhaps'"),
        (["a.png,0,1,changed,r", "b.png,0,,changed,r"], "row 2: the label of b.png was changed, but 'fixed_label'"),
        ([",0,1,changed,r"], "row 1: the file or the run is not named"),
        (["a.png,0,1,changed,"], "row 1: the file or the run is not named"),
        ([], "has no rows"),
    ],
)
def test_malformed_files_are_told(tmp_path: Path, lines: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        label_corrections.read(write(tmp_path / "label_fixes.csv", *lines))


def test_a_table_of_another_kind_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no column 'given_label'"):
        label_corrections.read(write(tmp_path / "train.csv", "1,a.png", header="id,file"))
    with pytest.raises(UserError, match="does not exist"):
        label_corrections.read(tmp_path / "nowhere.csv")


def test_the_run_before_is_found_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "label_fixes.csv", "a.png,0,1,changed,older", "b.png,0,1,changed,first run")
    with pytest.raises(UserError, match=r"from the run 'first run', which .* does not hold.*--output_dir"):
        label_corrections.run_before(path, tmp_path / "outputs")
    folder = tmp_path / "outputs" / "first run"
    RunDir(folder).write_config({"epochs": 3})
    assert label_corrections.run_before(path, tmp_path / "outputs").path == folder
    for name in ("../outputs/first run", "latest", "."):
        other = write(tmp_path / "other.csv", f"a.png,0,1,changed,{name}")
        with pytest.raises(UserError):
            label_corrections.run_before(other, tmp_path / "outputs")


def test_the_fixes_of_a_run_are_those_in_its_settings(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path / "outputs" / "second")
    assert label_corrections.of_run(run_dir).empty
    path = write(tmp_path / "label_fixes.csv", "a.png,0,1,changed,first", "b.png,1,1,confirmed,first")
    copy = label_corrections.keep(path, run_dir)
    path.unlink()
    run_dir.write_config({"label_fixes": str(copy)})
    assert label_corrections.of_run(run_dir)["file"].tolist() == ["a.png", "b.png"]
