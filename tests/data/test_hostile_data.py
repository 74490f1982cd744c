"""Data as they should not be: each gets a clear sentence, or is handled and accounted for; nothing is dropped."""

import csv
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from dataset_runs import row_statuses, run, split_of
from pictures import encoded, noise, write_noise

import evaluate
import predict
import train
from spectacles.core.config import EvaluateConfig, PredictCommand, TrainConfig
from spectacles.core.errors import UserError
from spectacles.core.exit_codes import exit_codes
from spectacles.core.run_dir import RunDir
from spectacles.data import file_index
from spectacles.data.schemas import load_split
from spectacles.data.splits import SPLITS
from spectacles.evaluation import split_scores
from spectacles.inference.inputs import collect

pytestmark = pytest.mark.usefixtures("without_export")

Flags = dict[str, object]
Make = Callable[[Path], Flags]
COUNT = 16
"""Pictures of each data set, two classes in turn."""
LONG = "x" * 300 + ".png"


def rows(count: int = COUNT) -> list[str]:
    return [f"{number}.png,{('no', 'yes')[number % 2]}" for number in range(count)]


def table(*lines: str, text: bytes | None = None, name: str = "t.csv") -> Make:
    """A table of these lines after the plain ones, or one that holds `text` and nothing else."""

    def make(folder: Path) -> Flags:
        write_noise(folder, [f"{number}.png" for number in range(COUNT)])
        content = "\n".join(["file,label", *rows(), *lines, ""]).encode() if text is None else text
        (folder / name).write_bytes(content)
        return {"train_csv": folder / name}

    return make


def folders(*changes: Callable[[Path], object]) -> Make:
    """Folders no and yes in `photos`, after these changes to it."""

    def make(folder: Path) -> Flags:
        photos = folder / "photos"
        for number, name in enumerate(("no", "yes")):
            write_noise(photos / name, [f"{n}.png" for n in range(COUNT // 2)], 100 * number)
        for change in changes:
            change(photos)
        return {"image_dir": photos}

    return make


def link(place: str, target: str) -> Callable[[Path], None]:
    """`target` starts from the folder of the photos."""
    return lambda photos: (photos / place).symlink_to(photos / target)


def add(place: str, content: bytes | None = None, seed: int = 900) -> Callable[[Path], None]:
    """`place` starts from the folder of the photos; a picture unless there is content."""

    def write(photos: Path) -> None:
        path = photos / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(noise(seed)) if content is None else content)

    return write


def outside(photos: Path) -> None:
    write_noise(photos.parent / "elsewhere" / "deep", ["a.png", "b.png"], 300)


def pipe_and_socket(photos: Path) -> None:
    os.mkfifo(photos / "no" / "pipe.png")
    here = os.getcwd()
    os.chdir(photos / "yes")  # the name of a socket may not be long
    try:
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind("socket.png")
    finally:
        os.chdir(here)


ODD = ["with space.png", " spaces around .png ", 'quote "x".png', "it's.png", "line\nbreak.png", "comma, semi;.png",
       "ünï 漢.png", "-rf.png", "=1+1.png", "100%.png", "{id}.png", "*.png", "[a].png", "back\\slash.png"]  # fmt: skip


def odd_names(folder: Path) -> Flags:
    for number, name in enumerate(ODD):
        (folder / name).write_bytes(encoded(noise(number)))
    with (folder / "t.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows(
            [("file", "label"), *((name, number % 2) for number, name in enumerate(ODD))]
        )
    return {"train_csv": folder / "t.csv"}


def no_text(photos: Path) -> None:
    shutil.copy(photos / "no" / "0.png", os.fsencode(photos / "no") + b"/caf\xe9.png")
    write_noise(photos / "b", ["1.png"], 500)
    (photos / "b").rename(os.fsdecode(os.fsencode(photos) + b"/\xff"))


PLAIN = "\n".join(["file,label", *rows(), ""])
SEMICOLONS = "\ufeff" + PLAIN.replace(",", ";").replace("\n", "\r\n")
LOOP = "Too many levels of symbolic links"
TABLE = {
    "BOM, semicolons and CRLF": (table(text=SEMICOLONS.encode()), {}),
    "lines that end as on old Macs": (table(text=PLAIN.replace("\n", "\r").encode()), {}),
    "no end of line at the end": (table(text=PLAIN.strip().encode()), {}),
    "rows twice": (table("0.png,no", "1.png,yes", "1.png,yes"), {"listed more than once": 3}),
    "two labels for a file": (table("0.png,yes"), {"listed with different labels": 2}),
    "missing labels and names": (table("0.png,", "1.png,  ", ",no", "2.png"), {"no label": 3, "no file name": 1}),
    "a name of 300 characters": (table(f"{LONG},no"), {"cannot be read (File name too long)": 1}),
    "a NUL in a name": (table("a\0.png,no"), {"cannot be read (embedded null byte)": 1}),
    "a folder as a file": (lambda folder: [(folder / "d.png").mkdir(), table("d.png,no")(folder)][1],
                           {"cannot be read (Is a directory)": 1}),
    "odd names in a table": (odd_names, {}),
    "an empty file for a table": (table(text=b""), "t.csv cannot be read as a table"),
    "a header and no rows": (table(text=b"file,label\n"), "t.csv has no rows"),
    "a table in UTF-16": (table(text=PLAIN.encode("utf-16")), "t.csv is not UTF-8 text .*: save it as UTF-8"),
    "a picture for a table": (table(text=encoded(noise(0))), "t.csv is not UTF-8 text"),
    "a folder for a table": (lambda folder: {"train_csv": folder}, "is a folder, not a table"),
    "a table with a name that is too long": (lambda folder: {"train_csv": folder / f"{LONG}.csv"}, "does not exist"),
    "only names that are too long": (table(text=f"file,label\n{LONG},a\n{LONG},b\n".encode()),
                                     "none of the 2 files listed in .*t.csv can be found, .*: set --image_dir"),
    "half a character": (table(text=b'{"0.png": "a", "1.png": "\\ud800"}', name="t.json"), "t.json cannot be read"),
    "one class": (table(text=b"file,label\n0.png,no\n1.png,no\n"), "only the class 'no': at least two classes"),
    "a class with one picture": (table(text=(PLAIN.replace("0.png,no", "0.png,rare")).encode()), {}),
    "nothing but broken pictures": (folders(lambda photos: [p.write_bytes(b"") for p in photos.rglob("*.png")]),
                                    "no usable labelled image: at least two classes"),
    "one picture of each class": (table(text=b"file,label\n0.png,no\n1.png,yes\n"),
                                  "no image is left for the val split: give more images of each class"),
    "a link to a folder elsewhere": (folders(outside, link("no/more", "../elsewhere")), {"used": COUNT + 2}),
    "a class that is a link": (folders(outside, link("third", "../elsewhere")), {"used": COUNT + 2}),
    "two links to one folder": (folders(outside, link("no/a", "../elsewhere"), link("no/b", "../elsewhere/deep")),
                                {"used": COUNT + 2}),
    "links in a loop": (folders(link("no/up", "."), link("no/self", "no"), link("round", "."), link("top", "/")), {}),
    "links to each other": (folders(outside, link("no/a", "../elsewhere"), link("../elsewhere/deep/up", "../elsewhere"),
                                    link("../elsewhere/deep/photos", ".")), {"used": COUNT + 2}),
    "links to nowhere": (folders(link("no/gone.png", "nowhere"), link("class", "nowhere")), {"file not found": 2}),
    "a link to itself": (folders(link("no/me.png", "no/me.png")), {f"cannot be read ({LOOP})": 1}),
    "a pipe and a socket": (folders(pipe_and_socket), {"not a regular file but a device, a pipe or a socket": 2}),
    "names that are no text": (folders(no_text), {"its path is not UTF-8 text: rename it": 2}),
    "a picture beside the classes": (folders(add("stray.png")), {"no label": 1}),
    "an archive for a folder": (lambda folder: {"image_dir": table()(folder)["train_csv"]}, "is a file, not a folder"),
    "an empty class": (folders(lambda photos: (photos / "empty").mkdir()), {}),
}  # fmt: skip


@pytest.mark.parametrize(("make", "expected"), TABLE.values(), ids=TABLE)
def test_hostile_data_are_reported_or_accounted_for(
    make: Make, expected: str | dict[str, int], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    flags = make(tmp_path) | {"output_dir": tmp_path_factory.mktemp("outputs")}
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected):
            run(tmp_path, **flags)
        return
    accounting = run(tmp_path, **flags)[0].row_accounting
    rejections = {reason: count for reason, count in expected.items() if reason != "used"}
    assert accounting.rejections == rejections
    assert accounting.rows == accounting.used + sum(rejections.values())
    contradictory = rejections.get("listed with different labels", 0)
    count = len(ODD) if make is odd_names else COUNT
    assert accounting.used == expected.get("used", count - contradictory // 2)


def deny(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Who runs the tests may be root, to whom nothing is forbidden."""
    scandir = os.scandir

    def forbidden(path: os.PathLike[str]) -> Iterator[os.DirEntry[str]]:
        if Path(path) == folder:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidden)


@pytest.mark.parametrize("place", [".", "no", "yes/deep"])
def test_a_folder_that_cannot_be_read_is_named_and_ends_with_exit_code_2(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = folders(add("yes/deep/a.png"))(tmp_path)["image_dir"]
    deny(monkeypatch, photos / place)
    with pytest.raises(SystemExit) as caught, exit_codes():
        run(tmp_path, image_dir=photos)
    assert caught.value.code == 2
    assert f"the folder {photos / place} cannot be read (Permission denied)" in capsys.readouterr().err


def test_empty_class_folders_and_links_not_followed_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make = folders(lambda photos: (photos / "empty").mkdir(), link("no/up", "."))
    with caplog.at_level("INFO", "spectacles"):
        run(tmp_path, **make(tmp_path))
    assert f"{tmp_path}/photos/empty holds no files" in caplog.text
    assert f"the link {tmp_path}/photos/no/up is not followed" in caplog.text


def test_pictures_beside_the_classes_of_the_test_data_are_not_dropped(tmp_path: Path) -> None:
    exam = folders(add("stray.png"))(tmp_path / "exam")["image_dir"]
    report, _ = run(tmp_path, **table()(tmp_path), test_dir=exam)
    assert (report.row_accounting.rows, report.unlabelled) == (2 * COUNT + 1, 1)


def test_spaces_around_a_name_belong_to_it_where_there_is_such_a_file(tmp_path: Path) -> None:
    write_noise(tmp_path, [f"{number}.png" for number in range(COUNT)])
    noise(77).save(tmp_path / "0.png ", "PNG")
    (tmp_path / "t.csv").write_text("\n".join(["file,label", *rows(), "0.png ,no", "1.png ,yes"]))
    _, run_dir = run(tmp_path, train_csv=tmp_path / "t.csv")
    assert row_statuses(run_dir)["0.png"] == [("used", "")] * 2
    assert row_statuses(run_dir)["1.png"] == [("used", ""), ("rejected", "listed more than once")]


TINY = TrainConfig(
    backbone="simple_cnn", no_pretrained=True, image_size=32, epochs=1, head="sgd", head_epochs=1, batch_size=8,
    device="cpu", seed=3,
)  # fmt: skip


SCORING = EvaluateConfig(device="cpu", bootstrap_resamples=20, corruption_images=0)


def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Charts are not turned into pixels."""
    for module in ("evaluation_plots", "reliability_plots"):
        monkeypatch.setattr(f"spectacles.report.{module}.save", lambda figure, path: path)


def test_a_scored_file_that_was_replaced_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_bundle: Callable[..., Path]
) -> None:
    report, run_dir = run(tmp_path, **table()(tmp_path))
    shutil.copytree(make_bundle(*report.classes, data_fingerprint=report.fingerprint), run_dir.bundle)
    run_dir.write_config({"no_pretrained": True})
    undrawn(monkeypatch)
    name = next(name for name, split in split_of(run_dir).items() if split == "test")
    noise(4711).save(tmp_path / name)
    scored = evaluate.run(SCORING, run_dir.for_stage("evaluate"))
    assert any(f"1 file changed after indexing, {tmp_path / name}" in line for line in scored.summary)


def test_a_class_with_a_single_image_is_trained_reported_and_not_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undrawn(monkeypatch)
    lines = [f"{number}.png,{('no', 'yes')[number % 2]}" for number in range(40)]
    write_noise(tmp_path, [f"{number}.png" for number in range(41)])
    (tmp_path / "t.csv").write_text("\n".join(["file,label", *lines, "40.png,rare"]))
    report, run_dir = run(tmp_path, train_csv=tmp_path / "t.csv")
    assert split_of(run_dir)["40.png"] == "train"
    assert any("1 class with a single image ('rare')" in line for line in report.summary)
    for metric in ("roc_auc", "macro_f1"):
        trained = train.run(replace(TINY, metric=metric, class_weights="balanced"), run_dir.for_stage("train"))
        assert 0 <= trained.best_value <= 1
    run_dir.write_config({"no_pretrained": True})
    scored = evaluate.run(SCORING, run_dir.for_stage("evaluate"))
    assert scored.scored_on == "test" and scored.metrics["test_accuracy"] is not None


def test_a_class_without_a_training_image_is_reported(tmp_path: Path) -> None:
    make = folders(*(add(f"{split}/{name}/{n}.png", seed=10 * n + len(name) + 50 * len(split))
                     for split in ("train", "val") for name in ("no", "yes") for n in range(4)),
                   add("val/new/1.png", seed=3000), lambda photos: shutil.rmtree(photos / "no"),
                   lambda photos: shutil.rmtree(photos / "yes"))  # fmt: skip
    report, _ = run(tmp_path, **make(tmp_path))
    assert any("without a training image ('new')" in line for line in report.summary)


def same_size(path: Path) -> None:
    """Another picture in as many bytes."""
    size = path.stat().st_size
    content = encoded(noise(4711))
    path.write_bytes(content[:size] + bytes(max(0, size - len(content))))


CHANGES: dict[str, Callable[[Path], object]] = {
    "gone": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:60]),
    "another picture": lambda path: noise(4711).save(path),
    "another picture of that size": same_size,
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_file_that_is_not_what_was_indexed_stops_training(change: Callable[[Path], object], tmp_path: Path) -> None:
    _, run_dir = run(tmp_path, **table()(tmp_path))
    name = next(name for name, split in split_of(run_dir).items() if split == "train")
    change(tmp_path / name)
    with pytest.raises(UserError, match=rf"{name} .*: restore it, or run the dataset stage again"):
        train.run(TINY, run_dir.for_stage("train"))


def test_a_folder_that_is_gone_stops_training(tmp_path: Path) -> None:
    _, run_dir = run(tmp_path, **folders()(tmp_path))
    shutil.rmtree(tmp_path / "photos")
    with pytest.raises(UserError, match=r"photos/.*\.png .*: restore .*, or run the dataset stage again"):
        train.run(TINY, run_dir.for_stage("train"))


def test_a_replaced_file_is_noticed_although_its_pixels_are_cached(tmp_path: Path) -> None:
    _, run_dir = run(tmp_path, **table()(tmp_path))
    train.run(TINY, run_dir.for_stage("train"))
    name = next(name for name, split in split_of(run_dir).items() if split == "train")
    noise(4711).save(tmp_path / name)
    with pytest.raises(UserError, match=f"{name} has changed"):
        train.run(replace(TINY, epochs=2), run_dir.for_stage("train"))


@pytest.fixture
def indexed(tmp_path: Path) -> tuple[Path, RunDir, pd.DataFrame]:
    _, run_dir = run(tmp_path, **table()(tmp_path))
    return tmp_path, run_dir, load_split(run_dir, *SPLITS)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changes_are_found(change: Callable[[Path], object], indexed: tuple[Path, RunDir, pd.DataFrame]) -> None:
    folder, _, table_of_splits = indexed
    assert file_index.changed_files(table_of_splits) == {}
    change(folder / "3.png")
    assert list(file_index.changed_files(table_of_splits)) == [str(folder / "3.png")]


def test_a_file_that_was_only_touched_is_the_same(
    indexed: tuple[Path, RunDir, pd.DataFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _, table_of_splits = indexed
    (folder / "0.png").touch()
    shutil.copy(folder / "1.png", folder / "copy.png")
    (folder / "copy.png").replace(folder / "1.png")
    read = []
    monkeypatch.setattr(file_index, "read_file", lambda path: read.append(path) or path.read_bytes())
    assert file_index.changed_files(table_of_splits) == {}
    assert sorted(path.name for path in read) == ["0.png", "1.png"]  # the others are not opened


def test_of_many_changed_files_three_are_named(indexed: tuple[Path, RunDir, pd.DataFrame]) -> None:
    folder, _, table_of_splits = indexed
    file_index.require_unchanged(table_of_splits)
    for number in range(5):
        (folder / f"{number}.png").unlink()
    (folder / "5.png").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"^6 of 16 files are no longer what was indexed: .* and 3 more: restore them, or "
    ):
        file_index.require_unchanged(table_of_splits)


def test_predict_answers_or_rejects_every_input(tmp_path: Path, make_bundle: Callable[..., Path]) -> None:
    write_noise(tmp_path / "photos", ["a.png", "b.png"])
    shutil.copy(tmp_path / "photos/a.png", os.fsencode(tmp_path / "photos") + b"/caf\xe9.png")
    (tmp_path / "photos/gone.png").symlink_to("nowhere")
    (tmp_path / "photos/up").symlink_to(tmp_path)
    bundle = make_bundle("no", "yes")
    for kind in ("csv", "jsonl", "txt"):
        output = tmp_path / f"out.{kind}"
        config = PredictCommand(bundle=bundle, output=str(output), format=kind, device="cpu")
        predict.predict_inputs([str(tmp_path / "photos")], config)
    answers = pd.read_csv(tmp_path / "out.csv", keep_default_na=False)
    assert [Path(name).name for name in answers["file"]] == ["a.png", "b.png", "caf\\xe9.png", "gone.png"]
    assert answers["status"].tolist() == ["predicted"] * 3 + ["rejected: file not found"]
    for argument in (LONG, f"{LONG}/a.png", f"{LONG}*.png"):
        with pytest.raises(UserError, match="is neither a file nor a folder and matches nothing"):
            collect([argument], PredictCommand())
    with pytest.raises(UserError, match="does not exist"):
        collect([f"{LONG}.csv"], PredictCommand())


def test_a_table_to_predict_may_have_spaces_around_file_names(tmp_path: Path) -> None:
    write_noise(tmp_path, ["a.png"])
    noise(1).save(tmp_path / "b.png ", "PNG")
    (tmp_path / "t.csv").write_text("file,id\na.png ,1\nb.png ,2\n")
    inputs = collect([str(tmp_path / "t.csv")], PredictCommand())
    assert inputs.paths == [str(tmp_path / "a.png"), str(tmp_path / "b.png ")]


def test_very_many_classes_are_split_and_scored_within_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_bundle: Callable[..., Path]
) -> None:
    count, each = 100, 5
    names = write_noise(tmp_path, [f"{number}.png" for number in range(count * each)])
    (tmp_path / "t.csv").write_text("\n".join(["file,label", *(f"{n},c{i % count}" for i, n in enumerate(names))]))
    report, run_dir = run(tmp_path, train_csv=tmp_path / "t.csv")
    assert len(report.classes) == count
    assert report.images == {"train": 350, "val": 75, "test": 75}
    assert [set(report.counts[split].values()) for split in SPLITS] == [{3, 4}, {0, 1}, {0, 1}]
    shutil.copytree(make_bundle(*report.classes, data_fingerprint=report.fingerprint), run_dir.bundle)
    run_dir.write_config({"no_pretrained": True})
    undrawn(monkeypatch)
    monkeypatch.setattr(split_scores, "MATRIX_CLASSES", 99)
    scored = evaluate.run(SCORING, run_dir.for_stage("evaluate"))
    assert any("no confusion matrix of more than 99 classes" in line for line in scored.summary)
    assert "confusion_matrix" not in json.loads((run_dir.path / "evaluate" / "metrics.json").read_text())["test"]
    monkeypatch.setattr(evaluate, "MOST_PROBABILITIES", 14_999)
    with pytest.raises(UserError, match=r"150 validation and test images of 100 classes are 15,000 .*--val_fraction"):
        evaluate.run(SCORING, run_dir.for_stage("evaluate"))
