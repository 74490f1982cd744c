"""From files to index and splits: every row is accounted for, nothing leaks, and the same data give the same splits."""

import os
import random
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from dataset_runs import make_rows, row_statuses, run, run_table, split_of
from pictures import encoded, exif, frames, noise, odd_files, photo, png_header, write_csv, write_noise
from PIL import Image

from spectacles.core.errors import UserError
from spectacles.core.results import DatasetReport
from spectacles.core.run_dir import RunDir
from spectacles.data.schemas import SPLIT_ROWS, load_index, load_split
from spectacles.data.splits import SPLITS


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[DatasetReport, RunDir]:
    folder = tmp_path_factory.mktemp("plain")
    return run_table(folder, *make_rows(folder, 100))


def test_the_shares_are_70_15_15_in_every_class(plain):
    counts = plain[0].counts
    for name in ("no", "yes"):
        assert counts["train"][name] == 35
        assert sorted((counts["val"][name], counts["test"][name])) == [7, 8]


def test_splits_and_index_agree(plain):
    report, run_dir = plain
    index = load_index(run_dir)
    splits = load_split(run_dir, "train", "val", "test")
    assert list(splits.columns) == SPLIT_ROWS.names
    pd.testing.assert_frame_equal(splits, index.loc[index["split"] != "", SPLIT_ROWS.names], check_dtype=True)
    assert Counter(splits["split"]) == {split: sum(names.values()) for split, names in report.counts.items()}
    assert report.metrics["images_train"] == 70


def test_only_the_requested_splits_are_loaded(plain):
    assert set(load_split(plain[1], "val")["split"]) == {"val"}
    assert set(load_split(plain[1].for_stage("evaluate"), "val", "test")["split"]) == {"val", "test"}


def test_training_cannot_open_the_test_split(plain):
    with pytest.raises(PermissionError):
        load_split(plain[1].for_stage("train"), "train", "test")


def test_a_run_without_this_stage_says_so(tmp_path):
    with pytest.raises(UserError, match=r"python dataset\.py"):
        load_split(RunDir(tmp_path), "train")


def test_classes_are_in_natural_order(tmp_path):
    names = write_noise(tmp_path, [f"{number}.png" for number in range(30)])
    report, _ = run_table(tmp_path, *[f"{name},{(10, 9, 1)[n % 3]}" for n, name in enumerate(names)])
    assert report.classes == ["1", "9", "10"]


DAMAGES = {
    "empty.jpg": (b"", "rejected", "empty file"),
    "text.jpg": (b"no picture", "rejected", "not an image of a known format (JPEG, PNG, WebP, BMP, GIF, TIFF)"),
    "truncated.jpg": (encoded(noise(70, 200, 200), "JPEG")[:1500], "rejected", "truncated"),
    "large.png": (png_header(9000, 9500), "rejected", "9000 x 9500 pixels is more than 80 million"),
    "bomb.png": (png_header(30000, 30000), "rejected", "too many pixels"),
    "print.jpg": (encoded(noise(71).convert("CMYK"), "JPEG"), "converted", "CMYK converted to RGB"),
    "scan.png": (encoded(Image.fromarray(np.full((9, 9), 999, dtype=np.uint16))), "converted", "16 bits reduced to 8"),
    "palette.png": (encoded(noise(72).convert("P")), "used", ""),
    "alpha.png": (encoded(Image.new("RGBA", (9, 9), (9, 99, 199, 99))), "converted", "transparency put on white"),
    "film.gif": (encoded(noise(73), "GIF", **frames()), "converted", "first of 3 frames"),
    "turned.jpg": (encoded(photo(74, 64, 48), "JPEG", exif=exif(6)), "converted", "EXIF orientation applied"),
}  # fmt: skip


def test_the_row_accounting_counts_every_kind_of_damage_and_every_decision(tmp_path):
    rows = make_rows(tmp_path, 40)
    for name, (content, _, _) in DAMAGES.items():
        (tmp_path / name).write_bytes(content)
    write_noise(tmp_path / "exam", ["x.png", "y.png", "z.png"], 500)
    given = [*rows, *(f"{name},yes" for name in DAMAGES), "gone.png,no", ",no", "0.png,no", "1.png,no", "2.png,"]
    fixes = write_csv(
        tmp_path / "fixes.csv", "file,given_label,fixed_label,decision,run",
        "4.png,no,yes,changed,r", "print.jpg,yes,no,changed,r", "6.png,no,,removed,r", "text.jpg,yes,,removed,r",
        "8.png,no,no,confirmed,r",
    )  # fmt: skip
    test_csv = write_csv(tmp_path / "test.csv", "file,label", "x.png,no", "y.png,zebra", "z.png,", "x.png,no")
    report, run_dir = run_table(
        tmp_path, *given, test_csv=test_csv, test_dir=tmp_path / "exam", label_fixes=fixes
    )  # fmt: skip
    rejections = Counter(reason for _, status, reason in DAMAGES.values() if status == "rejected")
    rejections += Counter({
        "file not found": 1, "no file name": 1, "listed more than once": 1, "listed with different labels": 2,
        "no label": 1, "its label does not occur in the training data": 1, "removed by review": 1,
    })  # fmt: skip
    conversions = Counter(reason for _, status, reason in DAMAGES.values() if status == "converted")
    conversions -= Counter(["CMYK converted to RGB"])
    conversions += Counter({
        "label changed from no to yes by review": 1,
        "CMYK converted to RGB; label changed from yes to no by review": 1,
    })  # fmt: skip
    accounting = report.row_accounting
    assert accounting.rejections == rejections and accounting.conversions == conversions
    assert (accounting.rejected, accounting.converted) == (sum(rejections.values()), sum(conversions.values()))
    assert accounting.rows == len(given) + 4 == accounting.used + accounting.converted + accounting.rejected
    statuses = row_statuses(run_dir)
    assert {name: statuses[name] for name in DAMAGES if name != "print.jpg"} == {
        name: [(status, reason)] for name, (_, status, reason) in DAMAGES.items() if name != "print.jpg"
    }
    assert len(split_of(run_dir)) == accounting.used + accounting.converted - 1  # x.png is asked about twice
    issues = pd.read_csv(run_dir.issues)["kind"]
    assert Counter(issues[issues.isin(["rejected", "converted"])]) == {
        "rejected": accounting.rejected, "converted": accounting.converted,
    }  # fmt: skip


def test_every_row_has_a_status_and_the_row_accounting_adds_up(tmp_path):
    rows = make_rows(tmp_path)
    (tmp_path / "corrupt.png").write_bytes(b"no picture")
    noise(50).convert("CMYK").save(tmp_path / "print.jpg")
    faulty = ["0.png,yes", "1.png,yes", "2.png,", "gone.png,no", "corrupt.png,no", "print.jpg,no", ",no", "5.png,"]
    report, run_dir = run_table(tmp_path, *rows, *faulty)
    statuses = row_statuses(run_dir)
    assert statuses["0.png"] == [("rejected", "listed with different labels")] * 2
    assert statuses["1.png"] == [("used", ""), ("rejected", "listed more than once")]
    assert statuses["2.png"] == statuses["5.png"] == [("used", ""), ("rejected", "no label")]
    assert statuses["gone.png"] == [("rejected", "file not found")]
    assert statuses["corrupt.png"][0][1].startswith("not an image of a known format")
    assert statuses["print.jpg"] == [("converted", "CMYK converted to RGB")]
    accounting = report.row_accounting
    assert accounting.rows == len(rows) + len(faulty) == accounting.used + accounting.converted + accounting.rejected
    assert (accounting.converted, accounting.rejected) == (
        sum(accounting.conversions.values()),
        sum(accounting.rejections.values()),
    )
    assert len(load_index(run_dir)) == accounting.rows
    assert len(split_of(run_dir)) == accounting.used + accounting.converted
    assert f"rejected 2: {'no label'}" in report.summary


def test_a_row_without_a_file_name_says_so(tmp_path):
    _, run_dir = run_table(tmp_path, *make_rows(tmp_path), ",no")
    assert row_statuses(run_dir)[""] == [("rejected", "no file name")]


def test_issues_name_every_rejected_and_converted_file(tmp_path):
    rows = make_rows(tmp_path)
    shutil.copy(tmp_path / "0.png", tmp_path / "copy.png")
    _, run_dir = run_table(tmp_path, *rows, "gone.png,no", "copy.png,yes")
    issues = pd.read_csv(run_dir.issues, keep_default_na=False).set_index("file")
    assert issues.loc["gone.png"].tolist() == ["rejected", "file not found"]
    assert issues.loc["0.png"].tolist() == ["duplicate with another label", "exact duplicate of copy.png"]


def test_slice_columns_are_carried_along_as_text(tmp_path):
    rows = [f"{row},{('f', 'm', '')[n % 3]},00{n}" for n, row in enumerate(make_rows(tmp_path, 40))]
    write_noise(tmp_path / "exam", ["x.png", "y.png"], 500)
    test_csv = write_csv(tmp_path / "test.csv", "file,sex", "x.png, m ", "y.png,")
    _, run_dir = run_table(
        tmp_path, *rows, header="file,label,sex,light", slice_columns="sex, light,sex", test_csv=test_csv,
        test_dir=tmp_path / "exam", label_column="label",
    )  # fmt: skip
    for table in (load_index(run_dir), load_split(run_dir, *SPLITS)):
        by_file = table.set_index("file")[["slice_sex", "slice_light"]]
        assert by_file.loc["0.png"].tolist() == ["f", "000"] and by_file.loc["2.png"].tolist() == ["", "002"]
        assert by_file.loc["x.png"].tolist() == ["m", ""] and by_file.loc["y.png"].tolist() == ["", ""]


def test_groups_stay_whole(tmp_path):
    names = write_noise(tmp_path, [f"{number}.png" for number in range(60)])
    people = [f"person {number // 4}" if number < 56 else "" for number in range(60)]
    rows = [f"{name},{n % 2},{person}" for n, (name, person) in enumerate(zip(names, people, strict=True))]
    _, run_dir = run_table(tmp_path, *rows, header="file,label,person", group_column="person")
    split = split_of(run_dir)
    for person in set(people) - {""}:
        assert len({split[name] for name, own in zip(names, people, strict=True) if own == person}) == 1
    assert set(split.values()) == {"train", "val", "test"}


def test_given_split_folders_are_kept(tmp_path):
    given = {"train": 12, "val": 4, "test": 6}
    for number, (split, count) in enumerate(given.items()):
        for label in ("a", "b"):
            write_noise(tmp_path / split / label, [f"{n}.png" for n in range(count)], 100 * number + ord(label) * 1000)
    report, run_dir = run(tmp_path, image_dir=tmp_path)
    assert {split: report.counts[split]["a"] for split in given} == given
    assert all(file.startswith(split) for file, split in split_of(run_dir).items())


def with_splits(folder: Path, words: list[str]) -> list[str]:
    """One row a word, two classes in turn."""
    return [f"{row},{word}" for row, word in zip(make_rows(folder, len(words)), words, strict=True)]


def test_the_splits_of_a_column_are_kept(tmp_path):
    words = ["train"] * 6 + ["val"] * 4 + ["test"] * 4
    random.Random(0).shuffle(words)
    _, run_dir = run_table(
        tmp_path, *with_splits(tmp_path, words), header="file,label,fold", split_column="fold", seed=5
    )
    assert split_of(run_dir) == {f"{number}.png": word for number, word in enumerate(words)}


@pytest.mark.parametrize("flags", [{}, {"seed": 1}])
def test_rows_without_a_split_fill_only_the_missing_splits(tmp_path, flags):
    words = ["test"] * 8 + [""] * 40
    _, run_dir = run_table(
        tmp_path, *with_splits(tmp_path, words), header="file,label,fold", split_column="fold", **flags
    )
    split = split_of(run_dir)
    assert [split[f"{number}.png"] for number in range(8)] == ["test"] * 8
    assert Counter(split[f"{number}.png"] for number in range(8, 48)) == {"train": 34, "val": 6}


def test_a_rejected_file_keeps_out_of_its_given_split(tmp_path):
    rows = with_splits(tmp_path, ["train", "train", "val", "val", "test", "test"])
    (tmp_path / "4.png").write_bytes(b"no picture")
    report, run_dir = run_table(tmp_path, *rows, header="file,label,fold", split_column="fold")
    assert report.row_accounting.rejected == 1 and "4.png" not in split_of(run_dir)


def test_a_label_that_only_given_test_rows_have_is_rejected_there(tmp_path):
    rows = with_splits(tmp_path, ["train", "train", "val", "val", "test"])
    rows[4] = "4.png,zebra,test"
    _, run_dir = run_table(tmp_path, *rows, header="file,label,fold", split_column="fold")
    assert row_statuses(run_dir)["4.png"] == [("rejected", "its label does not occur in the training data")]


def test_given_test_data_leave_training_85_to_15(tmp_path):
    rows = make_rows(tmp_path, 40)
    write_noise(tmp_path / "exam", ["x.png", "y.png"], 500)
    test_csv = write_csv(tmp_path / "test.csv", "file,label", "x.png,no", "y.png,zebra", "x.png,no")
    report, run_dir = run_table(tmp_path, *rows, test_csv=test_csv, test_dir=tmp_path / "exam")
    assert {split: sum(counts.values()) for split, counts in report.counts.items()} == {
        "train": 34,
        "val": 6,
        "test": 2,  # a row of a submission may name a file again
    }
    assert row_statuses(run_dir)["y.png"] == [("rejected", "its label does not occur in the training data")]


def test_unlabelled_test_images_are_kept_and_counted(tmp_path):
    rows = make_rows(tmp_path, 40)
    write_noise(tmp_path / "exam", ["x.png", "y.png"], 500)
    report, run_dir = run_table(tmp_path, *rows, test_dir=tmp_path / "exam")
    assert report.unlabelled == 2
    assert sum(report.counts["test"].values()) == 0
    assert split_of(run_dir)["y.png"] == "test"


def test_the_given_fractions_are_used(tmp_path):
    report, _ = run_table(tmp_path, *make_rows(tmp_path, 40), val_fraction=0.2, test_fraction=0.3)
    assert [sum(report.counts[split].values()) for split in SPLITS] == [20, 8, 12]


def test_no_test_split_when_none_is_wanted(tmp_path):
    report, _ = run_table(tmp_path, *make_rows(tmp_path, 40), test_fraction=0.0)
    assert [sum(report.counts[split].values()) for split in SPLITS] == [34, 6, 0]


@pytest.mark.parametrize(
    ("flags", "flag"),
    [
        ({"val_fraction": 0.0}, "--val_fraction"),
        ({"val_fraction": 1.0}, "--val_fraction"),
        ({"val_fraction": -0.1}, "--val_fraction"),
        ({"val_fraction": float("nan")}, "--val_fraction"),
        ({"val_fraction": 0.9}, "--val_fraction"),
        ({"test_fraction": -0.1}, "--test_fraction"),
        ({"test_fraction": 1.0}, "--test_fraction"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "--test_fraction"),
        ({"duplicate_distance": 8}, "--duplicate_distance"),
        ({"duplicate_distance": -1}, "--duplicate_distance"),
    ],
)
def test_settings_out_of_range_are_named(tmp_path, flags, flag):
    with pytest.raises(UserError, match=flag):
        run_table(tmp_path, *make_rows(tmp_path, 8), **flags)


def test_a_tiny_fraction_still_gives_an_image(tmp_path):
    report, _ = run_table(tmp_path, *make_rows(tmp_path, 12), val_fraction=0.001, test_fraction=0.001)
    assert report.images == {"train": 10, "val": 1, "test": 1}


@pytest.mark.parametrize("rows", [["0.png,no", "2.png,no"], ["0.png,no", "1.png,"], ["0.png,no", "gone.png,yes"]])
def test_one_class_is_not_enough(tmp_path, rows):
    make_rows(tmp_path, 4)
    with pytest.raises(UserError, match=r"only the class 'no'.*two classes"):
        run_table(tmp_path, *rows)


def test_no_readable_image_is_the_users_mistake(tmp_path):
    (tmp_path / "a.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match="no usable labelled image"):
        run_table(tmp_path, "a.png,no", "a.png,no")


def fingerprint(folder: Path, rows: list[str], **flags: object) -> str:
    return run_table(folder, *rows, **flags)[0].fingerprint


def test_of_two_classes_the_last_in_natural_order_is_positive_unless_another_is_named(tmp_path):
    rows = make_rows(tmp_path)
    report, _ = run_table(tmp_path, *rows)
    assert report.classes == ["no", "yes"]
    assert "positive class: 'yes', the last in natural order; the other one: --positive_class no" in report.summary
    named, _ = run_table(tmp_path, *rows, positive_class="no")
    assert named.classes == ["yes", "no"] and "positive class: 'no'" in named.summary
    assert named.counts == report.counts and named.fingerprint != report.fingerprint
    with pytest.raises(UserError, match="--positive_class maybe is not one of the classes: use 'no' or 'yes'"):
        run_table(tmp_path, *rows, positive_class="maybe")
    third = [row.replace("yes", "third") for row in make_rows(tmp_path, 30)[20:]]
    with pytest.raises(UserError, match="--positive_class no is for two classes, and the data have 3 classes"):
        run_table(tmp_path, *rows, *third, positive_class="no")


def test_the_fingerprint_does_not_depend_on_the_folder(tmp_path):
    rows = make_rows(tmp_path / "here")
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    assert fingerprint(tmp_path / "here", rows) == fingerprint(tmp_path / "there", rows)


@pytest.mark.parametrize("seed", range(3))
def test_the_fingerprint_does_not_depend_on_the_order_of_rows(tmp_path, seed):
    rows = make_rows(tmp_path)
    shuffled = random.Random(seed).sample(rows, len(rows))
    assert fingerprint(tmp_path, rows) == fingerprint(tmp_path, shuffled)


def test_the_fingerprint_changes_with_a_label(tmp_path):
    rows = make_rows(tmp_path)
    assert fingerprint(tmp_path, rows) != fingerprint(tmp_path, ["0.png,yes", *rows[1:]])


def test_the_fingerprint_changes_with_a_files_content(tmp_path):
    rows = make_rows(tmp_path)
    before = fingerprint(tmp_path, rows)
    noise(999).save(tmp_path / "3.png")
    assert fingerprint(tmp_path, rows) != before


def test_the_same_seed_gives_the_same_split_and_another_one_another(tmp_path):
    rows = make_rows(tmp_path)
    first, again, other = (split_of(run_table(tmp_path, *rows, seed=seed)[1]) for seed in (0, 0, 1))
    assert first == again != other


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


def test_odd_files_are_used_converted_or_rejected_and_left_alone(tmp_path):
    data = tmp_path / "data"
    for number, (name, content) in enumerate(odd_files().items()):
        (data / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        (data / "ab"[number % 2] / name).write_bytes(content)
    before = snapshot(data)
    report, run_dir = run(tmp_path, image_dir=data)
    for file, [(status, reason)] in row_statuses(run_dir).items():
        assert Path(file).name.startswith(status), (file, status, reason)
        assert bool(reason) == (status != "used")
    assert (
        report.row_accounting.rows
        == len(odd_files())
        == sum(map(sum, (c.values() for c in report.counts.values()))) + (report.row_accounting.rejected)
    )
    assert snapshot(data) == before


ODD_NAMES = ["NA", "nan", "007", "7", "a,b", 'say "x"', "line\nbreak", " space ", "ünï", "-1", "=1+1", "back\\slash"]


def test_odd_names_survive_unchanged(tmp_path):
    for number, name in enumerate(ODD_NAMES):
        write_noise(tmp_path / "data" / name, [f"{name}{n}.png" for n in range(3)], 10 * number)
    report, run_dir = run(tmp_path, image_dir=tmp_path / "data")
    assert sorted(report.classes) == sorted(ODD_NAMES)
    splits = load_split(run_dir, *SPLITS)
    assert set(splits["label"]) == set(ODD_NAMES)
    assert all(Path(path).is_file() for path in splits["path"])


def test_a_file_name_that_is_not_utf8_is_rejected_not_fatal(tmp_path):
    make_rows(tmp_path / "data" / "a", 6)
    write_noise(tmp_path / "data" / "b", [f"{number}.png" for number in range(6)], 100)
    shutil.copy(tmp_path / "data" / "a" / "0.png", os.fsencode(tmp_path / "data" / "b") + b"/caf\xe9.png")
    report, _ = run(tmp_path, image_dir=tmp_path / "data")
    assert (report.row_accounting.rows, report.row_accounting.rejected) == (13, 1)


def test_single_colour_images_do_not_stop_the_stage(tmp_path):
    rows = make_rows(tmp_path)
    for name, colour in (("black.png", 0), ("white.png", 255)):
        Image.new("L", (40, 40), colour).save(tmp_path / name)
    report, _ = run_table(tmp_path, *rows, "black.png,no", "white.png,yes")
    assert report.row_accounting.used == len(rows) + 2
