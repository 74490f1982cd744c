"""A review's labels reach the stage, and every image keeps the split that it had in the run that was reviewed."""

import shutil
from collections import Counter
from pathlib import Path

import pytest
from dataset_runs import make_rows, run, run_table, split_of
from pictures import noise, write_csv, write_noise

from spectacles.core.run_dir import RunDir
from spectacles.data.schemas import load_split
from spectacles.data.splits import SPLITS


def review(folder: Path, *lines: str) -> Path:
    return write_csv(folder / "fixes.csv", "file,given_label,fixed_label,decision,run", *lines)


def test_after_a_review_every_image_keeps_its_split(tmp_path):
    rows = make_rows(tmp_path, 60)
    before, first = run_table(tmp_path, *rows, run_name="first")
    write_noise(tmp_path, [f"new{number}.png" for number in range(20)], 700)
    shutil.copy(tmp_path / "30.png", tmp_path / "moved.png")
    noise(31).resize((70, 70)).save(tmp_path / "near.png")
    more = [f"new{number}.png,{('no', 'yes')[number % 2]}" for number in range(20)]
    moved = ["moved.png,no" if row.startswith("30.png") else row for row in rows]
    fixes = review(tmp_path, "0.png,no,yes,changed,first", "1.png,yes,,removed,first", "2.png,no,,confirmed,first")
    after, second = run_table(
        tmp_path, *moved, *more, "near.png,yes", label_fixes=fixes, run_name="second", seed=5
    )  # fmt: skip
    old, new = split_of(first), split_of(second)
    assert {name: new.get(name) for name in old if name not in ("1.png", "30.png")} == {
        name: split for name, split in old.items() if name not in ("1.png", "30.png")
    }
    assert "1.png" not in new and new["moved.png"] == old["30.png"] and new["near.png"] == old["31.png"]
    fresh = Counter(new[f"new{number}.png"] for number in range(20))
    assert fresh["train"] == 14 and min(fresh["val"], fresh["test"]) >= 2
    labels = load_split(second, *SPLITS).set_index("file")["label"]
    assert labels["0.png"] == "yes" and labels["2.png"] == "no"
    assert before.fingerprint != after.fingerprint
    assert "splits are those of the run first, except for 21 new images" in after.summary
    assert "label fixes: 1 labels changed, 1 rows removed" in after.summary


def test_a_run_can_be_reviewed_in_its_own_folder(tmp_path):
    rows = make_rows(tmp_path, 40)
    old = split_of(run_table(tmp_path, *rows)[1])
    fixes = review(tmp_path, *(f"{number}.png,no,yes,changed,run" for number in range(0, 16, 2)))
    report, run_dir = run_table(tmp_path, *rows, label_fixes=fixes, seed=9)
    assert split_of(run_dir) == old
    assert report.counts["train"]["yes"] > report.counts["train"]["no"]


@pytest.mark.parametrize(("name", "reason"), [("elsewhere", "there is no run 'elsewhere'"), ("", "name no run")])
def test_without_the_reviewed_run_images_are_split_anew_and_the_summary_says_so(tmp_path, name, reason):
    rows = make_rows(tmp_path, 40)
    _, run_dir = run_table(tmp_path, *rows, run_name="first")
    report, _ = run_table(tmp_path, *rows, label_fixes=review(tmp_path, f"0.png,no,,confirmed,{name}"))
    (line,) = [line for line in report.summary if "split anew" in line]
    assert reason in line
    assert split_of(run_dir) == split_of(RunDir(tmp_path / "outputs" / "run"))


def test_a_content_in_two_splits_stays_in_both(tmp_path):
    rows = make_rows(tmp_path, 40)
    (tmp_path / "exam").mkdir()
    shutil.copy(tmp_path / "3.png", tmp_path / "exam" / "copy.png")
    flags = {"test_dir": tmp_path / "exam", "output_dir": tmp_path / "outputs"}
    old = split_of(run_table(tmp_path, *rows, run_name="first", **flags)[1])
    fixes = review(tmp_path, "0.png,no,,confirmed,first")
    assert split_of(run_table(tmp_path, *rows, label_fixes=fixes, seed=3, **flags)[1]) == old
    assert old["3.png"] != old["copy.png"] == "test"


def test_the_users_table_is_not_touched_by_a_review(tmp_path):
    rows = make_rows(tmp_path, 40)
    table = write_csv(tmp_path / "train.csv", "file,label", *rows)
    content = table.read_bytes()
    run(tmp_path, train_csv=table, label_fixes=review(tmp_path, "0.png,no,yes,changed,r"))
    assert table.read_bytes() == content
