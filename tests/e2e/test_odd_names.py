"""Files and classes with any name, from the command line to every CSV that is written."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from command_line import SMALL, run_script
from pictures import write_noise

from spectacles.core.run_dir import RunDir

CLASSES = ("none", "=1+1", "a\rb")


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def photos(folder: Path) -> list[str]:
    """Three of each class; one of them is called as no file should be."""
    names = [f"{name}/{n}.png" for name in CLASSES for n in ("-1", "=2", "c\r\x1b[2Jd")]
    return write_noise(folder, names)


@pytest.mark.parametrize("safe", [False, True])
def test_tables_of_the_data_hold_any_name_as_it_is(safe: bool, tmp_path: Path) -> None:
    names = photos(tmp_path / "photos")
    (tmp_path / "photos/none/=empty.png").touch()
    flags = ["--spreadsheet_safe"] if safe else []
    done = run_script("dataset.py", "--image_dir", tmp_path / "photos", "--no_pretrained", "--run_name", "r",
                      "--output_dir", tmp_path / "out", *SMALL[:2], *flags)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "classes: =1+1, a\\rb, none" in done.stdout and "\r" not in done.stdout.replace("\r\n", "\n")
    run_dir = RunDir(tmp_path / "out" / "r")
    assert sorted(row["file"] for row in read(run_dir.splits)) == sorted(
        f"'{name}" if safe and name.startswith("=") else name for name in names
    )
    assert [row["file"] for row in read(run_dir.issues) if row["kind"] == "rejected"] == ["none/=empty.png"]


@pytest.mark.parametrize("safe", [False, True])
def test_predictions_hold_any_name_and_any_id_as_it_is(
    safe: bool, tmp_path: Path, make_bundle: Callable[..., Path]
) -> None:
    names = photos(tmp_path)
    ids = ["1", "", "12345678901234567890", "=2", "-3", "+4 5", "@6", "007", "a\rb"]
    tokens = ["1", "null", "12345678901234567890", *map(json.dumps, ids[3:])]
    records = [f'{{"id": {token}, "file": {json.dumps(name)}}}' for token, name in zip(tokens, names, strict=True)]
    (tmp_path / "t.json").write_text(f"[{','.join(records)}]")
    bundle = make_bundle(*CLASSES, label_column="=what")
    flags = ["--spreadsheet_safe"] if safe else []
    done = run_script("predict.py", tmp_path / "t.json", "--bundle", bundle, "--output", tmp_path / "p.csv",
                      "--device", "cpu", *flags)  # fmt: skip
    assert done.returncode == 0, done.stderr

    def shown(text: str) -> str:
        return f"'{text}" if safe and text[:1] in ("=", "+", "@") else text

    rows, submission = read(tmp_path / "p.csv"), read(tmp_path / "submission.csv")
    assert [row["file"] for row in rows] == [shown(name) for name in names]
    assert [row["id"] for row in rows] == [row["id"] for row in submission] == list(map(shown, ids))
    assert {row[shown("=what")] for row in submission} <= set(map(shown, CLASSES))
    assert {f"p_{name}" for name in CLASSES} <= set(rows[0])
    table = pd.read_csv(tmp_path / "p.csv", dtype=str, keep_default_na=False)
    assert table["file"].tolist() == [row["file"] for row in rows]


def test_a_text_file_of_labels_has_one_line_each(tmp_path: Path, make_bundle: Callable[..., Path]) -> None:
    write_noise(tmp_path, ["a.png", "b.png"])
    bundle = make_bundle("a\rb", "c\nd")
    done = run_script("predict.py", tmp_path / "a.png", tmp_path / "b.png", "--bundle", bundle, "--device", "cpu",
                      "--format", "txt", "--output", tmp_path / "p.txt")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert set((tmp_path / "p.txt").read_text().splitlines()) <= {"a\\rb", "c\\nd"}
