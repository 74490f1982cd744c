"""Tables and folders as people have them become rows as given; what cannot be understood is named with the remedy."""

import json
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import write_noise

from spectacles.core.config import DatasetConfig
from spectacles.core.errors import UserError
from spectacles.data.names import natural_sort
from spectacles.data.sources import Rows, read_rows
from spectacles.data.table_files import read_table

LABELS = ["0", "1", "0"]
NAMES = ["a.png", "b.png", "c.png"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """a.png, b.png and c.png: nothing here looks into files."""
    return make_files(tmp_path / "photos", *NAMES)


def make_files(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return folder


def rows_of(content: str | bytes, photos: Path, name: str = "train.csv", **flags: object) -> Rows:
    path = photos.parent / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_rows(DatasetConfig(train_csv=path, image_dir=photos, **flags))


def pairs(rows: Rows) -> list[tuple[str, str]]:
    return list(zip(rows.frame["file"], rows.frame["label"], strict=True))


def mistake(content: str, photos: Path, name: str = "train.csv", **flags: object) -> str:
    with pytest.raises(UserError) as caught:
        rows_of(content, photos, name, **flags)
    return str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        "file,label\na.png,0\nb.png,1\nc.png,0\n",
        "file,label\na.png,0\nb.png,1\nc.png,0",
        "\ufefffile,label\na.png,0\nb.png,1\nc.png,0\n",
        "file,label\r\na.png,0\r\nb.png,1\r\nc.png,0\r\n",
        "\ufefffile;label\r\na.png;0\r\nb.png;1\r\nc.png;0\r\n",
        "file\tlabel\na.png\t0\nb.png\t1\nc.png\t0\n",
        "file|label\na.png|0\nb.png|1\nc.png|0\n",
        '"file","label"\n"a.png","0"\n"b.png","1"\n"c.png","0"\n',
        "file, label\na.png, 0\nb.png, 1\n\nc.png , 0 \n",
        "label,file\n0,a.png\n1,b.png\n0,c.png\n",
        "file,label\na.png,0.0\nb.png,1.0\nc.png,0.0\n",
    ],
)
def test_every_spelling_of_a_csv_gives_the_same_rows(content, photos):
    rows = rows_of(content, photos)
    assert pairs(rows) == list(zip(NAMES, LABELS, strict=True))
    assert rows.frame["path"].tolist() == [str(photos / name) for name in NAMES]
    assert rows.label_column == "label"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.json", json.dumps(dict(zip(NAMES, (0, 1, 0), strict=True)))),
        ("t.json", json.dumps([{"file": f, "label": x} for f, x in zip(NAMES, LABELS, strict=True)])),
        ("t.json", json.dumps([{f: x} for f, x in zip(NAMES, LABELS, strict=True)])),
        ("t.jsonl", "".join(json.dumps({"image": f, "target": int(x)}) + "\n" for f, x in zip(NAMES, LABELS))),  # noqa: B905
        ("t.jsonl", "\n\n".join(json.dumps({f: x}) for f, x in zip(NAMES, LABELS, strict=True))),
        ("t.JSONL", "\ufeff" + "\n".join(json.dumps({f: x}) for f, x in zip(NAMES, LABELS, strict=True))),
    ],
)
def test_every_form_of_json_gives_the_same_rows(name, content, photos):
    assert pairs(rows_of(content, photos, name)) == list(zip(NAMES, LABELS, strict=True))


def test_a_json_mapping_needs_no_suffixes(photos):
    make_files(photos, "one", "two")
    assert pairs(rows_of('{"one": "x", "two": "y"}', photos, "t.json")) == [("one", "x"), ("two", "y")]


def test_a_label_missing_in_one_json_record_stays_missing(photos):
    content = '{"file": "a.png", "label": 1}\n{"file": "b.png", "label": null}\n{"file": "c.png", "label": 0}'
    assert pairs(rows_of(content, photos, "t.jsonl")) == [("a.png", "1"), ("b.png", ""), ("c.png", "0")]


def test_unlabelled_json_records_are_not_taken_for_a_mapping(tmp_path):
    path = tmp_path / "test.json"
    path.write_text('[{"file": "a.png"}, {"file": "b.png"}]')
    assert read_table(path).to_dict("list") == {"file": ["a.png", "b.png"]}


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["0", "1", "0"], ["0", "1", "0"]),
        (["0.0", "1.0", ""], ["0", "1", ""]),
        (["1.5", "2.0", "1.5"], ["1.5", "2.0", "1.5"]),
        (["-1", "+1", "-1"], ["-1", "+1", "-1"]),
        (["True", "False", "True"], ["True", "False", "True"]),
        (["NA", "None", "nan"], ["", "", ""]),
        (["007", "08", "007"], ["007", "08", "007"]),
        (["with glasses", " without ", "Ünï çödé"], ["with glasses", "without", "Ünï çödé"]),
    ],
)
def test_labels_are_kept_as_text(labels, expected, photos):
    content = "file,label\n" + "".join(f"{name},{label}\n" for name, label in zip(NAMES, labels, strict=True))
    assert rows_of(content, photos).frame["label"].tolist() == expected


def test_a_quoted_name_may_hold_the_delimiter(photos):
    make_files(photos, "d, e.png", 'f "g".png')
    rows = rows_of('file,label\n"d, e.png",0\n"f ""g"".png",1\n', photos)
    assert pairs(rows) == [("d, e.png", "0"), ('f "g".png', "1")]
    assert all(Path(path).is_file() for path in rows.frame["path"])


@pytest.mark.parametrize("column", ["file", "Filename", "IMAGE", "image_path", "img", "photo"])
def test_the_file_column_is_found_by_name(column, photos):
    assert pairs(rows_of(f"note,{column},label\nx.txt,a.png,0\ny.txt,b.png,1\n", photos))[1] == ("b.png", "1")


def test_the_file_column_is_found_by_content(photos):
    assert pairs(rows_of("where,label\na.png,0\nb.png,1\n", photos)) == [("a.png", "0"), ("b.png", "1")]


@pytest.mark.parametrize("column", ["label", "Class", "TARGET", "category", "y"])
def test_the_label_column_is_found_by_name(column, photos):
    rows = rows_of(f"file,age,{column}\na.png,30,0\nb.png,31,1\n", photos)
    assert (rows.label_column, rows.frame["label"].tolist()) == (column, ["0", "1"])


def test_the_only_other_column_is_the_label(photos):
    assert rows_of("id,file,spectacles\n7,a.png,no\n8,b.png,yes\n", photos).label_column == "spectacles"


def test_the_label_column_is_found_by_content(photos):
    names = [f"{number}.png" for number in range(20)]
    make_files(photos, *names)
    lines = [f"{name},{number * 1.25},{number},{number % 2}" for number, name in enumerate(names)]
    rows = rows_of("\n".join(["file,width,serial,wears", *lines]), photos)
    assert rows.label_column == "wears"


def test_an_ambiguous_label_names_the_candidates(photos):
    text = mistake("file,left,right\na.png,0,1\nb.png,1,0\nc.png,0,1\n", photos)
    assert all(word in text for word in ("train.csv", "'left'", "'right'", "--label_column"))


def test_named_columns_win(photos):
    content = "file,label,other,wears\nx.png,p,a.png,0\ny.png,q,b.png,1\n"
    rows = rows_of(content, photos, file_column="other", label_column="wears")
    assert pairs(rows) == [("a.png", "0"), ("b.png", "1")]


def test_file_names_are_built_from_columns(photos):
    make_files(photos, "face-007.png", "face-008.png")
    rows = rows_of(
        "number,glasses\n7,0\n8,1\n", photos, label_column="glasses", filename_template="face-{number:0>3}.png"
    )
    assert pairs(rows) == [("face-007.png", "0"), ("face-008.png", "1")]


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("file_column", "nothing"),
        ("label_column", "nothing"),
        ("group_column", "nothing"),
        ("split_column", "nothing"),
        ("filename_template", "{nothing}.png"),
        ("filename_template", "{file"),
        ("filename_template", "{0}.png"),
        ("filename_template", "{file:d}"),
        ("filename_template", "{file.png}"),
        ("filename_template", "{file[x]}.png"),
    ],
)
def test_a_flag_that_does_not_fit_the_table_is_named(flag, value, photos):
    text = mistake("file,label\na.png,0\nb.png,1\n", photos, **{flag: value})
    assert f"--{flag}" in text and "train.csv" in text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", ""),
        ("t.csv", "\n\n"),
        ("t.csv", "file,label\n"),
        ("t.csv", 'file,label\n"a.png,0\n'),
        ("t.csv", "file,label\na.png,0\nb.png,1,2,3\n"),
        ("t.json", ""),
        ("t.json", "[]"),
        ("t.json", "{}"),
        ("t.json", '"text"'),
        ("t.json", "[[1, 2]]"),
        ("t.jsonl", '{"file": "a.png"'),
        ("t.jsonl", "5"),
    ],
)
def test_a_table_that_cannot_be_read_is_named(name, content, photos):
    assert f"{photos.parent / name}" in mistake(content, photos, name)


def test_rows_longer_than_the_header_are_not_shifted(photos):
    assert "exist" not in mistake("file,label\na.png,0,\nb.png,1,\n", photos)


def test_a_table_in_another_encoding_is_named(photos):
    with pytest.raises(UserError, match=r"train\.csv is not UTF-8"):
        rows_of("file,label\na.png,für\nb.png,0\n".encode("latin-1"), photos)


def test_a_table_without_files_names_the_flags(photos):
    text = mistake("a,b\n1,2\n", photos)
    assert all(word in text for word in ("train.csv", "'a', 'b'", "--file_column", "--filename_template"))


def test_a_table_without_labels_names_the_flag(photos):
    assert "--label_column" in mistake("file\na.png\nb.png\n", photos)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, ["--train_csv", "--image_dir"]),
        ({"train_csv": "missing.csv"}, ["missing.csv", "does not exist"]),
        ({"image_dir": "missing"}, ["missing", "does not exist"]),
        ({"image_dir": "empty"}, ["--image_dir", "empty", "--train_csv"]),
        ({"train_csv": "t.csv", "image_dir": "missing"}, ["missing", "--image_dir"]),
        ({"train_csv": "t.csv", "image_dir": "empty"}, ["t.csv", "empty/a.png", "--image_dir", "--filename_template"]),
        ({"train_csv": "t.csv", "test_csv": "missing.csv"}, ["missing.csv", "does not exist"]),
        ({"train_csv": "t.csv", "test_dir": "empty"}, ["--test_dir", "empty"]),
        ({"train_csv": "t.csv", "test_dir": "missing"}, ["missing", "does not exist"]),
        ({"train_csv": "t.csv", "test_csv": "t.csv", "test_dir": "empty"}, ["t.csv", "--test_dir"]),
    ],
)
def test_what_is_missing_is_named(config, words, tmp_path):
    (tmp_path / "empty").mkdir()
    make_files(tmp_path, *NAMES)
    (tmp_path / "t.csv").write_text("file,label\na.png,0\nb.png,1\n")
    with pytest.raises(UserError) as caught:
        read_rows(DatasetConfig(**{flag: tmp_path / name for flag, name in config.items()}))
    assert all(word in str(caught.value) for word in words)


def test_the_csvs_own_folder_holds_the_files_by_default(tmp_path):
    make_files(tmp_path, *NAMES)
    (tmp_path / "t.csv").write_text("file,label\na.png,0\nb.png,1\n")
    assert read_rows(DatasetConfig(train_csv=tmp_path / "t.csv")).frame["path"][0] == str(tmp_path / "a.png")


def test_absolute_paths_and_subfolders_work(photos):
    make_files(photos, "deep/er/d.png")
    rows = rows_of(f"file,label\n{photos / 'a.png'},0\ndeep/er/d.png,1\n", photos)
    assert rows.frame["path"].tolist() == [str(photos / "a.png"), str(photos / "deep/er/d.png")]


def test_group_and_id_are_taken_along(photos):
    frame = rows_of("id,file,label,person\n7,a.png,0,x\n8,b.png,1, y \n", photos, group_column="person").frame
    assert (frame["id"].tolist(), frame["group"].tolist()) == (["7", "8"], ["x", "y"])


SPLIT_WORDS = {"train": "train", "Training": "train", " val ": "val", "VALID": "val", "validation": "val",
               "test": "test", "Testing": "test", "": "", " ": ""}  # fmt: skip


@pytest.mark.parametrize(("word", "split"), SPLIT_WORDS.items())
def test_the_splits_of_a_column_are_taken_in_every_spelling(word, split, photos):
    rows = rows_of(f"file,label,fold\na.png,0,{word}\nb.png,1,train\n", photos, split_column="fold")
    assert rows.frame["given_split"].tolist() == [split, "train"]


def test_without_the_flag_no_column_decides_the_split(photos):
    rows = rows_of("file,label,split\na.png,0,test\nb.png,1,train\n", photos)
    assert rows.frame["given_split"].tolist() == ["", ""]


def test_the_column_with_the_splits_is_not_taken_for_the_label(photos):
    rows = rows_of("file,wears,fold\na.png,no,train\nb.png,yes,val\nc.png,no,train\n", photos, split_column="fold")
    assert (rows.label_column, rows.frame["label"].tolist()) == ("wears", ["no", "yes", "no"])


@pytest.mark.parametrize("word", ["holdout", "0", "tr ain"])
def test_an_unknown_split_is_named_with_its_row(word, photos):
    text = mistake(f"file,label,fold\na.png,0,train\nb.png,1,{word}\n", photos, split_column="fold")
    assert all(part in text for part in ("train.csv", "row 2", repr(word), "'fold'", "train, val or test"))


def test_a_test_csv_needs_no_column_with_splits(photos):
    (photos.parent / "test.csv").write_text("file,label\nc.png,0\n")
    rows = rows_of(
        "file,label,fold\na.png,0,train\nb.png,1,val\n",
        photos,
        split_column="fold",
        test_csv=photos.parent / "test.csv",
    )
    assert rows.frame["given_split"].tolist() == ["train", "val", "test"]


def test_one_folder_per_class(tmp_path):
    make_files(tmp_path, "class 10/a.png", "class 2/b.png", "class 2/deep/c.png", "class 2/.hidden.png", ".git/d.png")
    assert pairs(read_rows(DatasetConfig(image_dir=tmp_path))) == [
        ("class 2/b.png", "class 2"),
        ("class 2/deep/c.png", "class 2"),
        ("class 10/a.png", "class 10"),
    ]


def test_train_validation_and_test_folders_are_kept(tmp_path):
    make_files(tmp_path, "train/x/a.png", "train/y/b.png", "Validation/x/c.png", "test/y/d.png")
    frame = read_rows(DatasetConfig(image_dir=tmp_path)).frame.sort_values("file")
    assert frame["given_split"].tolist() == ["val", "test", "train", "train"]
    assert frame["label"].tolist() == ["x", "y", "x", "y"]


def test_a_flat_test_folder_beside_train_folders_is_unlabelled_test_data(tmp_path):
    make_files(tmp_path, "train/x/a.png", "train/y/b.png", "test/c.png")
    frame = read_rows(DatasetConfig(image_dir=tmp_path)).frame.set_index("file")
    assert frame.loc["test/c.png", ["label", "given_split"]].tolist() == ["", "test"]


@pytest.mark.parametrize("stray", ["a.png", "train/b.png", "extra/c.png"])
def test_pictures_outside_the_class_folders_are_not_dropped_silently(tmp_path, stray):
    make_files(tmp_path, "train/x/a.png", "train/y/b.png", stray)
    assert stray in set(read_rows(DatasetConfig(image_dir=tmp_path)).frame["file"])


def test_a_flat_test_dir_is_unlabelled(photos):
    folder = make_files(photos.parent / "test", "10.png", "9.png", "deep/1.png", ".DS_Store")
    frame = rows_of("file,label\na.png,0\nb.png,1\n", photos, test_dir=folder).frame
    test = frame[frame["source"] == "test"]
    assert test["file"].tolist() == ["9.png", "10.png", "deep/1.png"]
    assert set(test["label"]) == {""} and set(test["given_split"]) == {"test"}


def test_a_test_dir_with_class_folders_is_labelled(photos):
    folder = make_files(photos.parent / "test", "0/d.png", "1/e.png")
    frame = rows_of("file,label\na.png,0\nb.png,1\n", photos, test_dir=folder).frame
    assert pairs(Rows(frame[frame["source"] == "test"], "", "")) == [("0/d.png", "0"), ("1/e.png", "1")]


@pytest.mark.parametrize(("content", "labels"), [("id,file\n7,a.png\n", [""]), ("id,file,label\n7,a.png,1.0\n", ["1"])])
def test_a_test_csv_is_read_with_or_without_labels(content, labels, photos):
    (photos.parent / "test.csv").write_text(content)
    rows = rows_of("file,label\na.png,0\nb.png,1\n", photos, test_csv=photos.parent / "test.csv")
    test = rows.frame[rows.frame["source"] == "test"]
    assert (test["label"].tolist(), test["id"].tolist(), rows.id_column) == (labels, ["7"], "id")
    assert test["given_split"].tolist() == ["test"]


def test_a_test_csv_goes_with_class_folders_too(tmp_path):
    make_files(tmp_path, "data/x/a.png", "data/y/b.png", "data/c.png")
    (tmp_path / "test.csv").write_text("file\nc.png\n")
    rows = read_rows(DatasetConfig(image_dir=tmp_path / "data", test_csv=tmp_path / "test.csv"))
    assert rows.frame["path"].iloc[-1] == str(tmp_path / "data/c.png")


def test_no_row_is_dropped(photos):
    rows = rows_of("file,label\na.png,0\na.png,0\nmissing.png,1\n,1\nb.png,\n", photos)
    assert pairs(rows) == [("a.png", "0"), ("a.png", "0"), ("missing.png", "1"), ("", "1"), ("b.png", "")]


def test_numbers_sort_as_numbers():
    names = ["10", "2", "class 10", "class 9", "1", "b", "A", "a"]
    assert natural_sort(names) == ["1", "2", "10", "A", "a", "b", "class 9", "class 10"]


# str.isdigit() is true for '²' and '①', which int() rejects
@given(st.lists(st.text(st.sampled_from("a1²①٣½ ß."), max_size=4)))
def test_any_names_can_be_sorted_whatever_their_order(names):
    assert natural_sort(names) == natural_sort(names[::-1])
    assert sorted(natural_sort(names)) == sorted(names)


def test_every_column_is_text(photos):
    frame = rows_of("id,file,label\n1,a.png,2\n3,b.png,4\n", photos).frame.drop(columns="row")
    assert all(isinstance(value, str) for value in frame.to_numpy().ravel())
    assert not frame.isin([None]).to_numpy().any() and not pd.isna(frame).to_numpy().any()


def test_test_labels_under_another_name_are_not_silently_left_unscored(tmp_path):
    write_noise(tmp_path, ["a.png", "b.png"])
    (tmp_path / "train.csv").write_text("file,kind\na.png,cat\nb.png,dog\n")
    (tmp_path / "test.csv").write_text("file,truth\na.png,dog\nb.png,cat\n")
    config = DatasetConfig(train_csv=tmp_path / "train.csv", test_csv=tmp_path / "test.csv", label_column="kind")
    with pytest.raises(UserError, match="'truth' holds the same labels"):
        read_rows(config)


def test_a_test_folder_with_one_unknown_class_is_still_labelled(tmp_path):
    write_noise(tmp_path / "train", ["cat/a.png", "dog/b.png"])
    write_noise(tmp_path / "test", ["cat/c.png", "bird/d.png"])
    frame = read_rows(DatasetConfig(image_dir=tmp_path / "train", test_dir=tmp_path / "test")).frame
    assert sorted(frame.loc[frame["source"] == "test", "label"]) == ["bird", "cat"]


@pytest.mark.parametrize("flag", ["label_column", "group_column", "split_column", "file_column", "filename_template"])
def test_flags_about_columns_do_not_go_with_folders(tmp_path, flag):
    write_noise(tmp_path, ["cat/a.png", "dog/b.png"])
    with pytest.raises(UserError, match=f"--{flag}"):
        read_rows(DatasetConfig(image_dir=tmp_path, **{flag: "x"}))


def test_paths_do_not_depend_on_the_working_directory(tmp_path, monkeypatch):
    write_noise(tmp_path, ["cat/a.png", "dog/b.png"])
    monkeypatch.chdir(tmp_path.parent)
    frame = read_rows(DatasetConfig(image_dir=Path(tmp_path.name))).frame
    assert all(Path(path).is_absolute() for path in frame["path"])


def test_a_table_without_a_header_does_not_lose_its_first_row(tmp_path):
    write_noise(tmp_path, ["a.png", "b.png"])
    (tmp_path / "train.csv").write_text("a.png,cat\nb.png,dog\n")
    with pytest.raises(UserError, match="not a header"):
        read_rows(DatasetConfig(train_csv=tmp_path / "train.csv"))


SLICED = "file,label,sex,light\na.png,0, f ,1.50\nb.png,1,,007\nc.png,0,NA,\n"


def test_slice_columns_are_carried_over_unchanged(photos):
    frame = rows_of(SLICED, photos, slice_columns=" sex,light,,sex ").frame
    assert frame["slice_sex"].tolist() == ["f", "", "NA"]
    assert frame["slice_light"].tolist() == ["1.50", "007", ""]
    assert [column for column in frame.columns if column.startswith("slice_")] == ["slice_sex", "slice_light"]
    assert not any(column.startswith("slice_") for column in rows_of(SLICED, photos, label_column="label").frame)


def test_a_slice_column_is_not_taken_for_the_label(photos):
    content = "file,glasses,sex\na.png,0,1\nb.png,1,0\nc.png,0,1\n"
    assert rows_of(content, photos, slice_columns="sex").label_column == "glasses"


def test_a_missing_slice_column_is_named_with_file_and_columns(photos):
    text = mistake(SLICED, photos, slice_columns="sex,age", label_column="label")
    assert "train.csv has no column 'age' (--slice_columns)" in text and "'sex', 'light'" in text


def test_test_data_may_lack_slice_columns(photos):
    test = photos.parent / "test.csv"
    test.write_text("file,light\na.png,dim\n")
    frame = rows_of(SLICED, photos, slice_columns="sex,light", test_csv=test, label_column="label").frame
    assert frame.loc[3, ["slice_sex", "slice_light"]].tolist() == ["", "dim"]
    folder = make_files(photos.parent / "exam", "x.png")
    frame = rows_of(SLICED, photos, slice_columns="sex", test_dir=folder, label_column="label").frame
    assert frame.loc[3, "slice_sex"] == ""


def test_folders_have_no_slice_columns(photos):
    with pytest.raises(UserError, match="--slice_columns applies to a table"):
        read_rows(DatasetConfig(image_dir=photos, slice_columns="sex"))
